"""Compilation of LLVM code with Numba's code generator.

Numba's front end (Python bytecode, type inference) is bypassed: it takes ten times as long as code generation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from llvmlite import ir
from numba.core.codegen import JITCPUCodegen
from numba.core.compiler_lock import global_compiler_lock


class CompiledFunction:
    """A compiled function. The code is freed together with this object.

    Args:
        name: the name of the function.
        write_function: adds the function to a module.

    Attributes:
        address: the address of the code.
    """

    def __init__(self, name: str, write_function: Callable[[ir.Module], None]) -> None:
        with global_compiler_lock:
            self._library = _codegen().create_library(name)  # type: ignore[no-untyped-call]
            module = self._library.create_ir_module(name)
            write_function(module)
            self._library.add_ir_module(module)
            self._library.finalize()
        self.address: int = self._library.get_pointer_to_function(name)


def has_float16_conversion() -> bool:
    """Whether this processor converts float16 with its own instructions.

    On x86 processors without F16C, LLVM calls a library function that is not available.
    """
    triple, _, features = _codegen().magic_tuple()  # type: ignore[no-untyped-call]
    return not triple.startswith(("x86", "i686")) or "+f16c" in features


@functools.cache
def _codegen() -> JITCPUCodegen:
    return JITCPUCodegen("optplug")  # type: ignore[no-untyped-call]
