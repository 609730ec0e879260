"""Engine `foreach`: runs the graph as a straight-line program of `torch._foreach_*` calls.

The program is Python source that is generated once per graph; `source` returns it. Three measures limit its memory
traffic to that of torch's own foreach implementations:

- a product that is added becomes `add(alpha)`, `addcmul` or `addcdiv`;
- an operation that reads a value for the last time writes its result in place of that value;
- the tensors are processed in chunks, so that temporaries are small.

Values with one number per parameter (tensor scalars) are vectors `r0`, `r1`, ...; where element-wise operations use
them they are lists of 0-dim tensors. Matrix functions are called with batches of tensors of one shape. A program that
reduces over several parameters is a generator, which yields the reduction over its chunk and receives the reduction
over all chunks of all buckets.
"""

from __future__ import annotations

import ast
import functools
import linecache
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from optplug.engines.arena import Arena
from optplug.engines.buffers import TensorsByRole, at_least_1d, working_tensors, write_back
from optplug.engines.matrix_calls import call_in_batches, check_shapes
from optplug.engines.protocol import (
    Bucket,
    EngineProtocol,
    PartialReduction,
    Program,
    SuspendedStep,
    combine_partials,
)
from optplug.engines.scalars import StepScalars
from optplug.engines.sparse import as_dense
from optplug.rules.graph import Node
from optplug.rules.matrix import MatrixOperation
from optplug.rules.ops import PREDICATES, REDUCTIONS, compute_tensor_scalars, count_values, fit, reduce_along
from optplug.rules.trace import TracedRule

CHUNK_BYTES = {"cpu": 2 * 2**20}
"""Maximum number of bytes of parameters in a chunk, by device type. A chunk with a single tensor may be larger. On a
CPU a chunk of this size stays in the cache between operations."""

DEFAULT_CHUNK_BYTES = 64 * 2**20
"""The limit for other devices. There each operation is a kernel launch, so chunks are large."""

UNARY = frozenset({"neg", "sqrt", "exp", "log", "abs", "sign"})
BINARY = frozenset({"add", "sub", "mul", "div", "maximum", "minimum"})
COMMUTATIVE = frozenset({"add", "mul", "maximum", "minimum"})


class _Product:
    """A product that `add`, `addcmul` or `addcdiv` can add in one pass over memory.

    Args:
        kind: `"add"`, `"addcmul"` or `"addcdiv"`.
        coefficient: the scalar factor, as source code.
        factors: the element-wise factors.
    """

    def __init__(self, kind: str, coefficient: str, factors: tuple[Node, ...]) -> None:
        self.kind = kind
        self.coefficient = coefficient
        self.factors = factors


class _ProgramWriter:
    """Generates the source code for one graph."""

    def __init__(self, traced: TracedRule) -> None:
        self.traced = traced
        self.lines: list[str] = []
        # The variable that holds the value of a node.
        self.registers: dict[Node, str] = {}
        self.temporary_count = 0
        self.vector_count = 0
        self.call_count = 0
        self.constants = {n: f"c{i}" for i, n in enumerate(traced.hoisted_scalars)}
        # The list of 0-dim tensors of a tensor scalar.
        self.lists: dict[Node, str] = {}
        self.roles = {"p", "g", *traced.variant.array_states}
        self.output_roles = set(traced.outputs)
        # How many outputs and nodes use a node, in the graph and (`remaining_reads`) in the operations after fusion.
        self.consumers: Counter[Node] = Counter(traced.outputs.values())
        for node in traced.nodes:
            self.consumers.update(node.args)
        self.operations: list[tuple[Node, _Product | None, Node | None]] = []
        fused: set[Node] = set()
        for node in reversed(traced.nodes):
            if node not in fused and node.op != "input":
                product, base = self._fuse(node, fused)
                self.operations.append((node, product, base))
        self.operations.reverse()
        self.remaining_reads: Counter[Node] = Counter()
        for node, product, base in self.operations:
            self.remaining_reads.update(self._operands(node, product, base))

    # ------------------------------------------------------------------ fusion

    def _fuse(self, node: Node, fused: set[Node]) -> tuple[_Product | None, Node | None]:
        """Match `x + s * y`, `x + s * y * z`, `x + s * y / z` and the same with `-`.

        Returns:
            The product and `x`, or None and None for other nodes.
        """
        if node.op in ("add", "sub") and _kinds(node) == {node.kind} and node.is_array:
            for which in (1, 0) if node.op == "add" else (1,):
                inner: set[Node] = set()
                product = self._match_product(node.args[which], inner)
                if inner:
                    fused |= inner
                    if node.op == "sub":
                        product.coefficient = _negate_code(product.coefficient)
                    return product, node.args[1 - which]
        return None, None

    def _match_product(self, node: Node, inner: set[Node]) -> _Product:
        """Match a node as a product. Nodes with one consumer become part of the product and are added to `inner`."""
        if self.consumers[node] == 1 and node.op in ("mul", "div"):
            a, b = node.args
            if node.op == "mul" and _is_scaled(node):
                inner.add(node)
                scalar, value = (a, b) if b.is_array else (b, a)
                product = self._match_product(value, inner)
                return _Product(
                    product.kind, _multiply_code(self._scalar(scalar), product.coefficient), product.factors
                )
            if _kinds(node) == {node.kind}:
                inner.add(node)
                coefficient, a = self._split_coefficient(a, inner)
                other, b = self._split_coefficient(b, inner) if node.op == "mul" else ("1.0", b)
                return _Product(f"addc{node.op}", _multiply_code(coefficient, other), (a, b))
        return _Product("add", "1.0", (node,))

    def _split_coefficient(self, node: Node, inner: set[Node]) -> tuple[str, Node]:
        """Split a node into a scalar coefficient, as source code, and an element-wise factor."""
        if self.consumers[node] == 1 and node.op == "mul" and _is_scaled(node):
            inner.add(node)
            scalar, value = node.args if node.args[1].is_array else node.args[::-1]
            coefficient, value = self._split_coefficient(value, inner)
            return _multiply_code(self._scalar(scalar), coefficient), value
        return "1.0", node

    def _operands(self, node: Node, product: _Product | None, base: Node | None) -> list[Node]:
        """The lists of tensors that an operation reads."""
        if product is not None and base is not None:
            return [base, *product.factors]
        return [a for a in node.args if a.is_array]

    # ---------------------------------------------------------------- emission

    def source(self, name: str) -> str:
        """The source code of a function of this name."""
        traced = self.traced
        for node in traced.nodes:
            if node.op == "input":
                self.registers[node] = node.value
        output_nodes = Counter(traced.outputs.values())
        for node, product, base in self.operations:
            operands = self._operands(node, product, base)
            self.remaining_reads.subtract(operands)
            dead = [a for a in operands if self._is_dead(a, output_nodes)]
            self._emit(node, product, base, [a for a in dead if a.kind == node.kind])
            for operand in dict.fromkeys(dead):
                register = self.registers[operand]
                if register != self.registers[node] and register not in self.roles:
                    self.lines.append(f"del {register}")
        self._write_back()
        if traced.tensor_outputs:
            values = ", ".join(self._tensor_scalar(node) for node in traced.tensor_outputs.values())
            self.lines.append(f"return ({values},)")
        roles = ", ".join(["p", "g", *traced.variant.array_states])
        constants = "".join(f", {c}" for c in self.constants.values())
        return f"def {name}({roles}{constants}):\n" + "\n".join(f"    {line}" for line in self.lines or ["pass"]) + "\n"

    def _is_dead(self, node: Node, output_nodes: Counter[Node]) -> bool:
        return self.remaining_reads[node] == 0 and not output_nodes[node]

    def _can_overwrite(self, node: Node, dead: list[Node]) -> bool:
        """Whether an operation may write in place of a node: of a dead temporary, or of the old value of an output."""
        if node not in dead:
            return False
        register = self.registers[node]
        return register in self.output_roles if register in self.roles else True

    def _emit(self, node: Node, product: _Product | None, base: Node | None, dead: list[Node]) -> None:
        if product is not None and base is not None:
            factors = ", ".join(self.registers[f] for f in product.factors)
            keyword = "alpha" if product.kind == "add" else "value"
            tail = "" if product.coefficient == "1.0" else f", {keyword}={product.coefficient}"
            self._call(node, f"_foreach_{product.kind}", base, f"{factors}{tail}", self._can_overwrite(base, dead))
            return
        op, args = node.op, node.args
        if node.kind == "tensor":
            self._emit_tensor_scalar(node)
        elif node.is_call:
            arrays = "".join(f"{self.registers[a]}, " for a in args if a.is_array)
            scalars = "".join(f"{self._scalar(a)}, " for a in args if not a.is_array)
            self._assign(node, f"_call(_functions[{self.call_count}], ({arrays}), ({scalars}))")
            self.call_count += 1
        elif node.is_reduction:
            values = ", ".join(self.registers[a] for a in args)
            self._assign(node, f"_reduce_along('{op}', {node.value}, {values})")
        elif op in UNARY:
            self._call(node, f"_foreach_{op}", args[0], "", self._can_overwrite(args[0], dead))
        elif op == "lerp":
            rest = f"{self.registers[args[1]]}, {self._scalar(args[2])}"
            self._call(node, "_foreach_lerp", args[0], rest, self._can_overwrite(args[0], dead))
        elif op in BINARY:
            self._binary(node, dead)
        else:  # torch has no foreach functions for comparisons, logic and where
            compute = "where" if op == "where" else f"logical_{op}" if op in ("and", "or", "not") else op
            values = ", ".join(self._scalar(a) if a.kind == "scalar" else self._list(a) for a in args)
            self._assign(node, f"_for_each_tensor('{compute}', {values})")

    def _emit_tensor_scalar(self, node: Node) -> None:
        """Compute one number per parameter: by a reduction, or from other such numbers."""
        if node.op == "numel":
            expression = f"_count(p, {node.value!r})"
        elif node.is_reduction:
            expression = f"_reduce('{node.op}', {', '.join(self.registers[a] for a in node.args)})"
            if node.is_shared:
                expression = f"yield '{node.op}', '{node.value}', {expression}"
        else:
            expression = f"_compute('{node.op}', {', '.join(map(self._tensor_scalar, node.args))})"
        self.registers[node] = f"r{self.vector_count}"
        self.vector_count += 1
        self.lines.append(f"{self.registers[node]} = {expression}")

    def _tensor_scalar(self, node: Node) -> str:
        return self._scalar(node) if node.kind == "scalar" else self.registers[node]

    def _list(self, node: Node) -> str:
        """The variable with the list of tensors of a value. The tensors of a tensor scalar are 0-dim."""
        if node.is_array:
            return self.registers[node]
        if node not in self.lists:
            self.lists[node] = f"l{self.registers[node][1:]}"
            self.lines.append(f"{self.lists[node]} = _to_list({self.registers[node]}, p)")
        return self.lists[node]

    def _binary(self, node: Node, dead: list[Node]) -> None:
        a, b = node.args
        method = f"_foreach_{node.op}"
        if a.kind != "scalar" and b.kind != "scalar":
            if node.op in COMMUTATIVE and not self._can_overwrite(a, dead) and self._can_overwrite(b, dead):
                a, b = b, a
            self._call(node, method, a, self._list(b), self._can_overwrite(a, dead))
        elif a.kind != "scalar":
            self._call(node, method, a, self._scalar(b), self._can_overwrite(a, dead))
        elif node.op in COMMUTATIVE:
            self._call(node, method, b, self._scalar(a), self._can_overwrite(b, dead))
        else:  # s - x and s / x
            first, then = (
                ("_foreach_neg", "_foreach_add_") if node.op == "sub" else ("_foreach_reciprocal", "_foreach_mul_")
            )
            self._call(node, first, b, "", self._can_overwrite(b, dead))
            self.lines.append(f"{then}({self.registers[node]}, {self._scalar(a)})")

    def _call(self, node: Node, method: str, target: Node, rest: str, in_place: bool) -> None:
        arguments = self._list(target) + (f", {rest}" if rest else "")
        if in_place:
            self.registers[node] = self.registers[target]
            self.lines.append(f"{method}_({arguments})")
        else:
            self._assign(node, f"{method}({arguments})")

    def _assign(self, node: Node, expression: str) -> None:
        self.temporary_count += 1
        self.registers[node] = f"t{self.temporary_count}"
        self.lines.append(f"{self.registers[node]} = {expression}")

    def _write_back(self) -> None:
        """Copy the outputs that were not computed in place."""
        copies = {
            role: self.registers[node] for role, node in self.traced.outputs.items() if self.registers[node] != role
        }
        for role, source in copies.items():
            if source in self.output_roles:  # the memory of another output, which may be overwritten first
                self.temporary_count += 1
                copies[role] = f"t{self.temporary_count}"
                self.lines.append(f"{copies[role]} = _for_each_tensor('clone', {source})")
        for role, source in copies.items():
            if self.traced.outputs[role].kind == "whole":
                self.lines.append(f"_check_shapes('{role}', {role}, {source})")
            self.lines.append(f"_foreach_copy_({role}, {source})")

    def _scalar(self, node: Node) -> str:
        return repr(float(node.value)) if node.op == "const" else self.constants[node]


def _is_scaled(node: Node) -> bool:
    """Whether a node is an operation on an array and a scalar."""
    return _kinds(node) == {"scalar", node.kind} and node.is_array


def _kinds(node: Node) -> set[str]:
    return {a.kind for a in node.args}


def _multiply_code(a: str, b: str) -> str:
    return b if a == "1.0" else a if b == "1.0" else f"{a} * {b}"


def _negate_code(coefficient: str) -> str:
    return coefficient[1:] if coefficient.startswith("-") and "*" not in coefficient else f"-{coefficient}"


def _for_each_tensor(op: str, *operands: Any) -> list[Tensor]:
    """Apply an operation without a foreach function tensor by tensor. Scalar operands apply to all tensors."""
    sequences = (list, tuple)  # torch._foreach_* functions return tuples
    length = next(len(x) for x in operands if isinstance(x, sequences))
    rows = zip(*(x if isinstance(x, sequences) else [x] * length for x in operands), strict=True)
    if op == "where":
        return [_select(*row) for row in rows]
    if op in PREDICATES:
        return [getattr(torch, op)(*_tensors_first(row)) for row in rows]
    if op.startswith("logical_"):
        return [getattr(torch, op)(*_to_bool_tensors(row)) for row in rows]
    return [getattr(torch, op)(*row) for row in rows]


def _select(condition: Tensor | float, a: Tensor | float, b: Tensor | float) -> Tensor:
    if isinstance(condition, Tensor):
        return torch.where(condition, a, b)
    selected, like = (a, b) if condition else (b, a)
    return selected.clone() if isinstance(selected, Tensor) else torch.full_like(like, selected)  # type: ignore[arg-type]


def _tensors_first(row: tuple[Any, ...]) -> tuple[Any, ...]:
    a, b = row
    return row if isinstance(a, Tensor) else (torch.full_like(b, a), b)


def _to_bool_tensors(row: tuple[Any, ...]) -> tuple[Any, ...]:
    like = next(x for x in row if isinstance(x, Tensor))
    return tuple(x if isinstance(x, Tensor) else torch.full_like(like, bool(x)) for x in row)


def _reduce(op: str, *operands: list[Tensor]) -> Tensor:
    """Reduce each tensor to a number. Returns a vector."""
    return torch.stack([REDUCTIONS[op](*tensors) for tensors in zip(*operands, strict=True)])


def _reduce_along(op: str, dim: int, *operands: list[Tensor]) -> list[Tensor]:
    """Reduce each matrix along a dimension."""
    return [reduce_along(op, dim, *tensors) for tensors in zip(*operands, strict=True)]


def _call(operation: MatrixOperation, arrays: Sequence[list[Tensor]], scalars: Sequence[float]) -> list[Tensor]:
    """Apply a matrix function to all tensors."""
    return call_in_batches(operation, arrays, scalars, arrays[0][0].dtype)


def _count(tensors: list[Tensor], what: int | str | None) -> Tensor:
    """The result of `count_values` for each tensor, as a vector."""
    counts = [count_values(t.shape, what) for t in tensors]
    return torch.tensor(counts, dtype=torch.float64, device="cpu").to(tensors[0].device)


def _to_list(numbers: Tensor, tensors: list[Tensor]) -> Sequence[Tensor]:
    """A vector with one number per tensor, or one number for all of them, as a list of 0-dim tensors."""
    return numbers.unbind() if numbers.ndim else [numbers] * len(tensors)


def _lerp(a: list[Tensor], b: list[Tensor], weight: float) -> Any:
    """As `ops.lerp`: a weight of 1 gives b exactly. torch's function returns NaN where a is infinite."""
    return [t.clone() for t in b] if weight == 1 else torch._foreach_lerp(a, b, weight)


def _extreme(name: str) -> Callable[..., Any]:
    """As the function of torch with this name. A number that is too large for the dtype becomes infinite."""
    function = getattr(torch, name)
    return lambda a, b: function(a, fit(b, a[0].dtype) if isinstance(b, float) else b)


def _lerp_(a: list[Tensor], b: list[Tensor], weight: float) -> None:
    if weight == 1:
        torch._foreach_copy_(a, b)
    else:
        torch._foreach_lerp_(a, b, weight)


@functools.lru_cache(maxsize=1024)
def source(traced: TracedRule) -> str:
    """The straight-line program of a graph, as Python source."""
    return _ProgramWriter(traced).source("step")


@functools.lru_cache(maxsize=1024)
def count_list_accesses(traced: TracedRule) -> int:
    """The number of lists of tensors that all operations of the program read or write, in total."""
    count = 0
    for line in ast.parse(source(traced)).body[0].body:  # type: ignore[attr-defined]
        for call in ast.walk(line):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            lists = {a.id for a in call.args if isinstance(a, ast.Name) and not re.fullmatch(r"[clr]\d+", a.id)}
            if call.func.id.startswith(("_foreach_", "_for_each_")):
                names = [a.id for a in call.args if isinstance(a, ast.Name) and a.id in lists]
                # The target of `_foreach_copy_` is an argument, but it is written only.
                count += len(names) + (call.func.id != "_foreach_copy_")
            elif call.func.id in ("_reduce", "_reduce_along"):
                count += len(lists)
    return count


@functools.lru_cache(maxsize=1024)
def _compile_step(traced: TracedRule) -> Callable[..., Any]:
    text = source(traced)
    filename = f"<optplug foreach {traced.variant.rule.__qualname__} {hash(text):x}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)  # tracebacks show the source
    functions = (_for_each_tensor, _reduce, _reduce_along, _call, _count, _to_list)
    namespace: dict[str, Any] = {function.__name__: function for function in functions}
    namespace.update({"_compute": compute_tensor_scalars, "inf": math.inf, "nan": math.nan})
    namespace["_check_shapes"] = check_shapes
    namespace["_functions"] = [node.value for node in traced.nodes if node.is_call]
    namespace.update((name, getattr(torch, name)) for name in dir(torch) if name.startswith("_foreach_"))
    namespace.update({"_foreach_lerp": _lerp, "_foreach_lerp_": _lerp_})
    extremes = [f"_foreach_{op}{suffix}" for op in ("maximum", "minimum") for suffix in ("", "_")]
    namespace.update({name: _extreme(name) for name in extremes})
    exec(compile(text, filename, "exec"), namespace)  # noqa: S102 - source generated above
    compiled: Callable[..., Any] = namespace["step"]
    return compiled


def split_chunks(traced: TracedRule, tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Split tensors into chunks: consecutive slices whose total size is within the limit, or that hold one tensor.

    A rule that calls matrix functions has one chunk, so that all tensors of one shape are in one batch.

    Args:
        traced: the graph.
        tensors: tensors of one dtype on one device.
    """
    limit = CHUNK_BYTES.get(tensors[0].device.type, DEFAULT_CHUNK_BYTES)
    if source(traced).count("_foreach_") == 1:  # a single operation cannot reuse the cache
        limit = DEFAULT_CHUNK_BYTES
    sizes = [numel * tensors[0].element_size() for numel in map(Tensor.numel, tensors)]
    if sum(sizes) <= limit or traced.matrix_functions:
        yield slice(0, len(tensors))
        return
    start, chunk_size = 0, 0
    for i, size in enumerate(sizes):
        if i > start and chunk_size + size > limit:
            yield slice(start, i)
            start, chunk_size = i, 0
        chunk_size += size
    yield slice(start, len(tensors))


class ForeachEngine(EngineProtocol):
    name = "foreach"
    advantage = "few calls for all tensors"
    reduces = True
    calls = True

    def bytes_per_element(self, bucket: Bucket) -> float | None:
        dtypes = bucket.key.dtypes
        written = [dtypes[0], *dtypes[2:]]
        work = functools.reduce(torch.promote_types, written).itemsize
        # Tensors of another dtype than the work dtype are copied to it; parameters and states also back.
        copied = [dtype.itemsize + work for dtype in (*dtypes, *written) if dtype.itemsize != work]
        return count_list_accesses(bucket.graph) * work + sum(copied)

    def prepare(self, bucket: Bucket) -> Program:
        return _ForeachProgram(bucket)


class _ForeachProgram:
    """Steps the parameters with equal scalars together, in chunks."""

    def __init__(self, bucket: Bucket) -> None:
        self._graph = bucket.graph
        self._run = _compile_step(bucket.graph)
        self._densify_grads = bucket.key.densify_grads
        self._state_dtype = bucket.settings.state_dtype

    def step(self, roles: TensorsByRole, scalars: StepScalars, addresses: Any, arena: Arena) -> SuspendedStep | None:
        if self._graph.shared_reductions:
            return self._step_with_totals(roles, scalars)
        for constants, chunk, indices in self._chunks(roles, scalars):
            with self._work(chunk) as work:
                self._store(scalars, self._run(*work.values(), *constants), indices)
        return None

    def _step_with_totals(self, roles: TensorsByRole, scalars: StepScalars) -> SuspendedStep:
        """Run the programs of all chunks together. Each reduction over several parameters needs all of them."""
        with ExitStack() as stack:
            chunks = list(self._chunks(roles, scalars))
            works = [stack.enter_context(self._work(chunk)) for _, chunk, _ in chunks]
            running = [
                self._run(*work.values(), *constants) for work, (constants, _, _) in zip(works, chunks, strict=True)
            ]
            total: Tensor | None = None
            for _ in range(self._graph.shared_reductions):
                partials = [self._partial(*program.send(total)) for program in running]
                total = yield combine_partials(partials)
            for program, (_, _, indices) in zip(running, chunks, strict=True):
                try:
                    program.send(total)
                except StopIteration as stop:
                    self._store(scalars, stop.value, indices)

    @staticmethod
    def _partial(op: str, scope: str, values: Tensor) -> PartialReduction:
        return combine_partials([PartialReduction(op, scope, value) for value in values])

    def _chunks(
        self, roles: TensorsByRole, scalars: StepScalars
    ) -> Iterator[tuple[list[float], TensorsByRole, Sequence[int]]]:
        """Return the constants, the tensors and the indices of the parameters of each chunk."""
        rows = scalars.rows(self._graph)
        for row in rows:
            selected = roles
            if len(rows) > 1:
                selected = {role: [tensors[i] for i in row.indices] for role, tensors in roles.items()}
            for part in split_chunks(self._graph, selected["p"]):
                chunk = {role: tensors[part] for role, tensors in selected.items()}
                yield row.constants, chunk, row.indices[part]

    @contextmanager
    def _work(self, chunk: TensorsByRole) -> Iterator[TensorsByRole]:
        """Provide the tensors to compute on, and write the results to the optimizer's tensors on exit."""
        with as_dense(chunk, densify_grads=self._densify_grads) as dense:
            work = working_tensors(dense, self._state_dtype)
            if self._graph.reduces:
                yield {role: list(map(at_least_1d, tensors)) for role, tensors in work.items()}
            else:
                yield work
            if work is not dense:
                write_back(work, dense)

    def _store(self, scalars: StepScalars, values: Sequence[Tensor] | None, indices: Sequence[int]) -> None:
        if values:
            scalars.set_states(dict(zip(self._graph.tensor_outputs, values, strict=True)), indices)
