"""`RuleOptimizer` and its parts: parameter groups, hyperparameters, state, buckets, and the dispatch to engines.

This package contains no algorithm, no lookup of plugins by name, and no configuration.
"""
