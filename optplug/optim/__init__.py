"""`RuleOptimizer` and what it is made of: parameters, hyperparameters, state, buckets, the dispatch to engines.

No algorithm, no plugin look-up by name, no configuration.
"""
