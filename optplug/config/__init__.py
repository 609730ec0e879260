"""From what users write to optimizers and schedulers: parse and check, JSON Schema, parameter groups, build.

No algorithm by name, no trainer, no Lightning.
"""
