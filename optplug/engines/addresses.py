"""Where tensors lie, for many tensors at once: a thousand calls from Python take longer than a kernel for them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from torch import Tensor

from optplug.engines._torch_compat import data_ptr_reader_address
from optplug.engines.compiler import Compiled

INT, OBJECT = ir.IntType(64), ir.IntType(8).as_pointer()


def addresses(tensors: list[Tensor]) -> np.ndarray[Any, Any]:
    """The address of each tensor's first element, int64.

    Args:
        tensors: dense ones of plain types, known to be such: nothing is checked here.
    """
    read = _reader()
    if read is None:
        return np.array(list(map(Tensor.data_ptr, tensors)), np.int64)
    found = np.empty(len(tensors), np.int64)
    read(tensors, found.ctypes.data, len(tensors))
    return found


@functools.cache
def _reader() -> Callable[[list[Tensor], int, int], None] | None:
    """A loop around the function by which torch's own compiled code finds the data of its arguments."""
    data_ptr = data_ptr_reader_address()
    if data_ptr is None:
        return None

    def write(module: ir.Module) -> None:
        signature = ir.FunctionType(ir.VoidType(), [OBJECT, INT.as_pointer(), INT])
        function = ir.Function(module, signature, "addresses")
        tensors, found, count = function.args
        item = ir.Function(module, ir.FunctionType(OBJECT, [OBJECT, INT]), "PyList_GetItem")
        entry, test, body, done = map(function.append_basic_block, ("entry", "test", "body", "done"))
        build = ir.IRBuilder(entry)
        build.branch(test)
        build.position_at_end(test)
        i = build.phi(INT)
        i.add_incoming(INT(0), entry)
        build.cbranch(build.icmp_signed("<", i, count), body, done)
        build.position_at_end(body)
        torchs = build.inttoptr(INT(data_ptr), ir.FunctionType(INT, [OBJECT]).as_pointer())
        address = build.call(torchs, [build.call(item, [tensors, i])])
        build.store(address, build.gep(found, [i]))
        i.add_incoming(build.add(i, INT(1)), body)
        build.branch(test)
        build.position_at_end(done)
        build.ret_void()

    compiled = Compiled("addresses", write)
    holding_the_gil = ctypes.PYFUNCTYPE(None, ctypes.py_object, ctypes.c_void_p, ctypes.c_int64)
    function = holding_the_gil(compiled.address)

    def read(tensors: list[Tensor], found: int, count: int, keep: Compiled = compiled) -> None:
        function(tensors, found, count)

    return read
