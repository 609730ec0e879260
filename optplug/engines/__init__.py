"""Engines: each runs the graph of a rule, or the rule itself, on tensors. None knows a rule by name."""

from __future__ import annotations

import functools


def why_not_numba() -> str | None:
    """Why engine `numba` cannot run here, or None. Imports the compiler."""
    try:
        import numba  # noqa: F401
    except ModuleNotFoundError:
        return "numba is not installed (pip install 'optplug[cpu]')"
    except Exception as error:  # it may refuse the numpy it finds
        return f"numba cannot be imported: {error}"
    return _why_not_this_numba()


@functools.cache
def _why_not_this_numba() -> str | None:
    try:
        from optplug.engines import numba  # noqa: F401
    except Exception as error:
        return f"this version of numba does not serve: {type(error).__name__}: {error}"
    return None
