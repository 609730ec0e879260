"""The rule language: its operations, the graph that a rule is traced to, and the modifiers that every rule shares.

This package contains no optimizer, no parameter groups and no engine. A rule does not depend on the engine that runs
it.
"""
