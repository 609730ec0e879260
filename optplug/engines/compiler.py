"""Numba's compiler, given LLVM code: without its front end, whose type inference takes ten times as long."""

from __future__ import annotations

import functools
from collections.abc import Callable

from llvmlite import ir
from numba.core.codegen import JITCPUCodegen
from numba.core.compiler_lock import global_compiler_lock


class Compiled:
    """A compiled function, which is there for as long as this object.

    Args:
        name: of the function. write: adds it to a module.

    Attributes:
        address: of its code.
    """

    def __init__(self, name: str, write: Callable[[ir.Module], None]) -> None:
        with global_compiler_lock:
            self._library = _codegen().create_library(name)  # type: ignore[no-untyped-call]
            module = self._library.create_ir_module(name)
            write(module)
            self._library.add_ir_module(module)
            self._library.finalize()
        self.address: int = self._library.get_pointer_to_function(name)


def converts_half() -> bool:
    """Whether code for this processor converts float16 by itself: on x86 without F16C it calls what is not there."""
    triple, _, features = _codegen().magic_tuple()  # type: ignore[no-untyped-call]
    return not triple.startswith(("x86", "i686")) or "+f16c" in features


@functools.cache
def _codegen() -> JITCPUCodegen:
    return JITCPUCodegen("optplug")  # type: ignore[no-untyped-call]
