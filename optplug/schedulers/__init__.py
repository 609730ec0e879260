"""The parts of schedulers: the closed-form base class, warmup, groups added late, access to learning rates.

This package contains no schedule by name, no configuration, and no trainer.
"""
