"""The operations of update rules, under their public names. See `optplug.rules.ops` and `optplug.rules.matrix`."""

from optplug.rules.matrix import matrix as matrix
from optplug.rules.ops import *  # noqa: F403
from optplug.rules.ops import __all__ as _on_elements

__all__ = [*_on_elements, "matrix"]
