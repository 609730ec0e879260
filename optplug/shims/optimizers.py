"""The optimizers of all installed plugins, as classes that a class path can name; see `optplug.shims`."""

from __future__ import annotations

from optplug.shims.factory import shims

globals().update(shims("optimizer", __name__))
