"""What schedulers are made of: the closed-form base class, warmup, parameter groups added late, learning-rate access.

No schedule by name, no configuration, no trainer.
"""
