"""Reads the data addresses of many tensors at once.

A thousand calls of `Tensor.data_ptr` from Python take longer than one optimizer step on small tensors.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from torch import Tensor

from optplug.engines._torch_compat import data_ptr_reader_address
from optplug.engines.compiler import CompiledFunction

INT64, OBJECT = ir.IntType(64), ir.IntType(8).as_pointer()


def read_addresses(tensors: list[Tensor]) -> np.ndarray[Any, Any]:
    """The address of each tensor's first element, int64.

    Args:
        tensors: dense tensors of plain types. This is not checked.
    """
    read = _compile_reader()
    if read is None:
        return np.array(list(map(Tensor.data_ptr, tensors)), np.int64)
    addresses = np.empty(len(tensors), np.int64)
    read(tensors, addresses.ctypes.data, len(tensors))
    return addresses


@functools.cache
def _compile_reader() -> Callable[[list[Tensor], int, int], None] | None:
    """Compile a loop over the C function that torch's compiled code uses to read data pointers.

    Returns None if this version of torch does not have that function.
    """
    data_ptr = data_ptr_reader_address()
    if data_ptr is None:
        return None

    def write_function(module: ir.Module) -> None:
        signature = ir.FunctionType(ir.VoidType(), [OBJECT, INT64.as_pointer(), INT64])
        function = ir.Function(module, signature, "read_addresses")
        tensors, addresses, count = function.args
        get_item = ir.Function(module, ir.FunctionType(OBJECT, [OBJECT, INT64]), "PyList_GetItem")
        entry, test, body, done = map(function.append_basic_block, ("entry", "test", "body", "done"))
        build = ir.IRBuilder(entry)
        build.branch(test)
        build.position_at_end(test)
        i = build.phi(INT64)
        i.add_incoming(INT64(0), entry)
        build.cbranch(build.icmp_signed("<", i, count), body, done)
        build.position_at_end(body)
        read_data_ptr = build.inttoptr(INT64(data_ptr), ir.FunctionType(INT64, [OBJECT]).as_pointer())
        address = build.call(read_data_ptr, [build.call(get_item, [tensors, i])])
        build.store(address, build.gep(addresses, [i]))
        i.add_incoming(build.add(i, INT64(1)), body)
        build.branch(test)
        build.position_at_end(done)
        build.ret_void()

    compiled = CompiledFunction("read_addresses", write_function)
    function_type = ctypes.PYFUNCTYPE(None, ctypes.py_object, ctypes.c_void_p, ctypes.c_int64)  # holds the GIL
    function = function_type(compiled.address)

    def read(tensors: list[Tensor], addresses: int, count: int, keep_alive: CompiledFunction = compiled) -> None:
        function(tensors, addresses, count)

    return read
