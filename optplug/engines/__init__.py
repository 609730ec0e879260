"""Engines run a rule over a bucket of tensors. They know no particular rule, and no registry."""
