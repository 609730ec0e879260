"""Engines: each runs the graph of a rule, or the rule itself, on tensors. None knows a rule by name."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch


def why_not_numba(dtypes: Iterable[torch.dtype] = ()) -> str | None:
    """Why engine `numba` cannot run here, on tensors of these dtypes; None if it can. Imports the compiler."""
    try:
        import numba  # noqa: F401
    except ModuleNotFoundError:
        return "numba is not installed (pip install 'optplug[cpu]')"
    except Exception as error:  # it may refuse the numpy it finds
        return f"numba cannot be imported: {error}"
    halves = any(dtype.to_real() is torch.float16 for dtype in dtypes)
    return _why_not_this_numba() or (_why_not_float16() if halves else None)


@functools.cache
def _why_not_this_numba() -> str | None:
    try:
        from optplug.engines import numba  # noqa: F401
    except Exception as error:
        return f"this version of numba does not serve: {type(error).__name__}: {error}"
    return None


@functools.cache
def _why_not_float16() -> str | None:
    from optplug.engines.compiler import converts_half

    return None if converts_half() else "this processor has no instruction (F16C) that converts float16"
