"""The rule language: its operations, the graph a rule is traced to, and the prelude that every rule shares.

No optimizer, no parameter groups, no engine: a rule does not know how it is run.
"""
