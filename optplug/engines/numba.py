"""Engine `numba`: runs each segment of the graph as one fused CPU kernel over all tensors of a bucket, in several
threads.

What steps a bucket is in `optplug.engines.cpu_programs`, whose import imports Numba. So it is imported when it is
needed, and the import of this module does not import Numba.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch

from optplug.engines.buffers import AddressReader
from optplug.engines.protocol import Bucket, BucketKey, EngineProtocol, Program, graph_obstacle
from optplug.rules.trace import TracedRule


class NumbaEngine(EngineProtocol):
    name = "numba"
    advantage = "one fused kernel"
    in_place = True
    takes_rows = True
    reduces = True
    calls = True

    def unsupported(self, key: BucketKey, traced: TracedRule | None) -> str | None:
        if obstacle := graph_obstacle(key):
            return obstacle
        if key.device.type != "cpu":
            return f"the parameter is on {key.device}, engine numba runs on the CPU only"
        return key.not_in_place_reason or unavailable_reason(key.dtypes)

    def unavailable(self) -> str | None:
        return unavailable_reason()

    def bytes_per_element(self, bucket: Bucket) -> float | None:
        from optplug.engines.cpu_programs import bytes_per_element

        return bytes_per_element(bucket)

    def segments(self, bucket: Bucket) -> int | None:
        from optplug.engines.cpu_programs import segments

        return len(segments(bucket))

    def address_reader(self) -> AddressReader | None:
        from optplug.engines.addresses import read_addresses

        return read_addresses

    def prepare(self, bucket: Bucket) -> Program:
        from optplug.engines.cpu_programs import DenseProgram, MatrixProgram, RowProgram, SegmentedProgram

        if not bucket.key.has_dense_grads:
            return RowProgram(bucket)
        if bucket.graph.uses_dims:
            return MatrixProgram(bucket)
        return SegmentedProgram(bucket) if bucket.graph.reduces else DenseProgram(bucket)


def unavailable_reason(dtypes: Iterable[torch.dtype] = ()) -> str | None:
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
        from optplug.engines import cpu_kernel  # noqa: F401
    except Exception as error:
        return f"this version of numba is not supported: {type(error).__name__}: {error}"
    return None


@functools.cache
def _float16_incompatibility() -> str | None:
    from optplug.engines.compiler import has_float16_conversion

    return None if has_float16_conversion() else "this processor has no instruction (F16C) that converts float16"
