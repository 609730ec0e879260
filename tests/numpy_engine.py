"""An engine that runs graphs with NumPy: the example of what a new engine consists of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from optplug.engines.arena import Arena
from optplug.engines.buffers import TensorsByRole, working_tensors, write_back
from optplug.engines.protocol import Bucket, BucketKey, EngineProtocol, Program, graph_obstacle
from optplug.engines.scalars import StepScalars
from optplug.engines.sparse import as_dense
from optplug.rules.graph import Node
from optplug.rules.trace import TracedRule

OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "abs": np.abs,
    "sign": np.sign,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "lerp": lambda a, b, weight: b if weight == 1 else a + weight * (b - a),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "where": np.where,
}


class NumpyEngine(EngineProtocol):
    name = "numpy"
    advantage = "NumPy arrays"

    def unsupported(self, key: BucketKey, traced: TracedRule | None) -> str | None:
        if obstacle := graph_obstacle(key):
            return obstacle
        if key.device.type != "cpu":
            return f"the parameter is on {key.device}, engine numpy runs on the CPU only"
        return "engine numpy takes real parameters only" if key.param_dtype.is_complex else None

    def prepare(self, bucket: Bucket) -> Program:
        return NumpyProgram(bucket)


class NumpyProgram:
    """Interprets the graph, one parameter after another. 16-bit parameters are computed in float32."""

    def __init__(self, bucket: Bucket) -> None:
        self.graph = bucket.graph
        self.densify_grads = bucket.key.densify_grads
        narrow = bucket.key.param_dtype in (torch.float16, torch.bfloat16)
        self.dtype = torch.float32 if narrow else bucket.settings.state_dtype

    def step(self, roles: TensorsByRole, scalars: StepScalars, addresses: Any, arena: Arena) -> None:
        for constants, _, indices in scalars.rows(self.graph):
            for i in indices:
                one = {role: tensors[i : i + 1] for role, tensors in roles.items()}
                with as_dense(one, densify_grads=self.densify_grads) as dense:
                    work = working_tensors(dense, self.dtype)
                    self.run({role: tensor.detach().numpy() for role, (tensor,) in work.items()}, constants)
                    write_back(work, dense)

    def run(self, arrays: dict[str, Any], constants: list[float]) -> None:
        values: dict[Node, Any] = dict(zip(self.graph.hoisted_scalars, constants, strict=True))
        with np.errstate(all="ignore"):
            for node in self.graph.nodes:
                operands = [float(arg.value) if arg.op == "const" else values[arg] for arg in node.args]
                values[node] = arrays[node.value] if node.op == "input" else OPERATIONS[node.op](*operands)
        outputs = {role: np.copy(values[node]) for role, node in self.graph.outputs.items()}
        for role, array in outputs.items():
            arrays[role][...] = array
