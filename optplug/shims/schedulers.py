"""Shims for all registered schedulers, as classes that a class path can name; see `optplug.shims`."""

from __future__ import annotations

from optplug.shims.factory import make_shims

globals().update(make_shims("scheduler", __name__))
