"""Engines: each engine runs the traced graph of a rule, or the rule itself, on tensors.

This package contains no optimizer, no parameter groups and no single rule, and not the choice of an engine, which is in
`optplug.optim.dispatch`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch


def numba_unavailable_reason(dtypes: Iterable[torch.dtype] = ()) -> str | None:
    """Why engine `numba` cannot run on this machine on tensors of these dtypes; None if it can. Imports Numba."""
    try:
        import numba  # noqa: F401
    except ModuleNotFoundError:
        return "numba is not installed (pip install 'optplug[cpu]')"
    except Exception as error:  # for example an incompatible version of NumPy
        return f"numba cannot be imported: {error}"
    uses_float16 = any(dtype.to_real() is torch.float16 for dtype in dtypes)
    return _numba_incompatibility() or (_float16_incompatibility() if uses_float16 else None)


@functools.cache
def _numba_incompatibility() -> str | None:
    try:
        from optplug.engines import numba  # noqa: F401
    except Exception as error:
        return f"this version of numba is not supported: {type(error).__name__}: {error}"
    return None


@functools.cache
def _float16_incompatibility() -> str | None:
    from optplug.engines.compiler import has_float16_conversion

    return None if has_float16_conversion() else "this processor has no instruction (F16C) that converts float16"
