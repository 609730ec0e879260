"""The operations of update rules, under their public names. See `optplug.rules.ops`."""

from optplug.rules.ops import *  # noqa: F403
from optplug.rules.ops import __all__ as __all__
