"""Configurations of optimizers and schedulers: parsing, checks, JSON Schema, parameter groups, construction.

The package contains no algorithm and does not depend on Lightning.
"""
