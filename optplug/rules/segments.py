"""Cuts a graph into segments: each is one pass over memory, and reduces values for the segments after it.

A matrix function is called between segments: after those that compute its operands, before those that use its result.

A value crosses a cut in one of three ways. A later segment reads it again, if it is an input that has not been
overwritten or an output that has been written; or computes it again, if that reads at most `RECOMPUTED_READS` more
values; otherwise an earlier segment stores it in a temporary. A matrix function reads its operands in the first or the
last way, and its result is a temporary.

The level of a value is the number of reductions and matrix functions that it depends on one after another. All values
of one level and one kind are computed in one segment: element-wise values in a pass over all elements, values of rows
in a pass over the rows, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from optplug.rules.graph import KINDS, Kind, Node, join_kinds

RECOMPUTED_READS = 2
"""How many values a computation may read again. A temporary costs as much: it is written once and read once."""


@dataclass(frozen=True, eq=False)
class Segment:
    """One pass over memory.

    Attributes:
        space: the kind of the values that it computes: `"element"`, or `"row"`, `"column"` or `"matrix"`.
        level: the level of the values.
        nodes: the values that it reads or computes, in topological order.
        loads: where it reads the values that it does not compute: a role, or a temporary such as `"t0"`.
        stores: the values that it writes, by role or temporary.
        reductions: the reductions of its values to one number per parameter.
        line_reductions: the reductions along one dimension, by the temporary that they are written to.
        constants: the scalars and tensor scalars that its operations use, constants excepted.
    """

    space: Kind
    level: int
    nodes: Sequence[Node]
    loads: Mapping[Node, str]
    stores: Mapping[str, Node]
    reductions: Sequence[Node]
    line_reductions: Mapping[str, Node]
    constants: Sequence[Node]


@dataclass(frozen=True, eq=False)
class MatrixCall:
    """A call of a matrix function, before the first segment of its level.

    Attributes:
        level: the level of the result.
        node: the result.
        operands: where the function reads each array: a role, or a temporary.
        result: the temporary that is the result.
    """

    level: int
    node: Node
    operands: Sequence[str]
    result: str


class Cut(NamedTuple):
    """The segments of a graph, and the calls between them, in the order in which they run."""

    segments: Sequence[Segment]
    calls: Sequence[MatrixCall]


def levels(nodes: Sequence[Node]) -> dict[Node, int]:
    """Return for each node how many reductions and matrix functions it depends on one after another.

    A reduction over several parameters also has at least the level of the one before it: their order is that of the
    rule, also where a variant of the rule has more reductions than another.

    Args:
        nodes: all nodes of a graph that are needed, in topological order.
    """
    found: dict[Node, int] = {}
    last_shared = 0
    for node in nodes:
        found[node] = max((found[a] for a in node.args), default=0) + (node.is_reduction or node.is_call)
        if node.is_shared:
            last_shared = found[node] = max(found[node], last_shared)
    return found


def cut(nodes: Sequence[Node], outputs: Mapping[str, Node], narrow: frozenset[str] = frozenset()) -> Cut:
    """Cut a graph into segments.

    Args:
        nodes: all nodes that are needed, in topological order. All reductions among them are computed.
        outputs: the new value of each role that is written.
        narrow: the roles whose dtype is narrower than that of the arithmetic. Their new values are not read again,
            because storing has rounded them.
    """
    return _Cutter(nodes, outputs, narrow).cut()


_Pass = tuple[int, int]
"""A level, and the index of a kind in `KINDS`: within a level, values of rows are computed before those of elements."""

_CALLS = -1
"""Takes the place of the index of a kind for the matrix functions of a level, which are called before its segments."""


class _Cutter:
    def __init__(self, nodes: Sequence[Node], outputs: Mapping[str, Node], narrow: frozenset[str]) -> None:
        self.nodes = nodes
        self.outputs = {role: n for role, n in outputs.items() if n.kind != "whole"}  # those are written at the end
        self.narrow = narrow
        self.levels = levels(nodes)
        self.stores: dict[_Pass, dict[str, Node]] = {}
        self.reductions: dict[_Pass, list[Node]] = {}
        self.temporaries: dict[Node, str] = {}
        for node in nodes:
            if node.is_array and node.kind != "whole":
                self.stores.setdefault(self._pass(node), {})
            if node.is_reduction:
                self.reductions.setdefault(self._pass(node), []).append(node)
                self.stores.setdefault(self._pass(node), {})
        for role, node in self.outputs.items():
            self.stores.setdefault(self._written(node), {})[role] = node

    def cut(self) -> Cut:
        segments: list[Segment] = []
        calls: list[MatrixCall] = []
        called_in = {(self.levels[node], _CALLS) for node in self.nodes if node.is_call}
        # From the last to the first, because a segment may need a value that an earlier one then stores.
        for k in sorted({*self.stores, *called_in}, reverse=True):
            if k in called_in:
                calls += [self._call(node, k) for node in self.nodes if node.is_call and self.levels[node] == k[0]]
            else:
                segments.append(self._segment(k))
        needed = [s for s in segments if s.stores or s.reductions or s.line_reductions]
        return Cut(needed[::-1] or [Segment("element", 0, [], {}, {}, [], {}, [])], calls[::-1])

    def _call(self, node: Node, k: _Pass) -> MatrixCall:
        operands = [self._source(a, k) or self._store(a) for a in node.args if a.is_array]
        return MatrixCall(k[0], node, operands, self._store(node))

    def _pass(self, node: Node) -> _Pass:
        """Return the pass that computes a value, or the first one that can read an input."""
        if node.is_reduction:
            return self.levels[node] - 1, KINDS.index(join_kinds(a.kind for a in node.args))
        return self.levels[node], KINDS.index(node.kind)

    def _written(self, node: Node) -> _Pass:
        """Return the pass that writes an output: that of its kind, also for a reduction that another pass computes."""
        return self.levels[node], KINDS.index(node.kind)

    def _segment(self, k: _Pass) -> Segment:
        level, space = k[0], KINDS[k[1]]
        reductions = self.reductions.get(k, [])
        loads: dict[Node, str] = {}
        computed: set[Node] = set()
        crossing: dict[Node, None] = {}
        stack = [n for n in self.stores[k].values() if not self._is_reduced_in(n, k)]
        stack += [a for n in reductions for a in n.args]
        while stack:
            node = stack.pop()
            if not node.is_array or node in computed or node in loads or node in crossing:
                continue
            if self._is_computed_in(node, k):
                computed.add(node)
                stack.extend(node.args)
            elif (source := self._source(node, k)) is not None:
                loads[node] = source
            else:
                crossing[node] = None
        for node in crossing:  # after the others, because they may read what the segment reads anyway
            again = self._recomputed(node, k, loads)
            if again is None:
                loads[node] = self._store(node)
            else:
                operations, reads = again
                computed |= operations
                loads.update({n: self._source(n, k) or self._store(n) for n in reads})
        return Segment(
            space=space,
            level=level,
            nodes=[n for n in self.nodes if n in computed or n in loads],
            loads=loads,
            stores={name: n for name, n in self.stores[k].items() if not self._is_reduced_in(n, k)},
            reductions=[n for n in reductions if not n.is_array],
            line_reductions={name: n for name, n in self.stores[k].items() if self._is_reduced_in(n, k)},
            constants=self._constants(computed),
        )

    def _is_computed_in(self, node: Node, k: _Pass) -> bool:
        return self._pass(node) == k and node.op != "input" and not node.is_reduction and not node.is_call

    def _is_reduced_in(self, node: Node, k: _Pass) -> bool:
        return node.is_reduction and self._pass(node) == k

    def _constants(self, computed: set[Node]) -> list[Node]:
        used = {a for n in computed for a in n.args}
        return [n for n in self.nodes if n in used and not n.is_array and n.op != "const"]

    def _source(self, node: Node, k: _Pass) -> str | None:
        """Return the role from which pass k can read a value of an earlier pass, or an input."""
        if node.op == "input":
            role = str(node.value)
            if role not in self.outputs or k <= self._written(self.outputs[role]):
                return role
        for role, output in self.outputs.items():
            if output is node and self._written(node) < k and (role not in self.narrow or node.op == "input"):
                return role
        return None

    def _recomputed(self, node: Node, k: _Pass, loads: Mapping[Node, str]) -> tuple[set[Node], set[Node]] | None:
        """Return the operations that compute a value of an earlier pass again, and the values that they read.

        Returns None if they read too much, or if the value belongs to another space. Reads of values with one number
        per row or column are not counted.
        """
        operations: set[Node] = set()
        reads: set[Node] = set()
        stack = [node]
        while stack:
            n = stack.pop()
            if not n.is_array or n in operations or n in reads or n in loads:
                continue
            if KINDS.index(n.kind) != k[1] or n.is_reduction or n.is_call:
                if n is node:
                    return None
                reads.add(n)
            elif self._source(n, k) is not None:
                reads.add(n)
            elif n.op == "input":  # it has been overwritten
                return None
            else:
                operations.add(n)
                stack.extend(n.args)
        counted = [n for n in reads if KINDS.index(n.kind) == k[1]]
        return (operations, reads) if len(counted) <= RECOMPUTED_READS else None

    def _store(self, node: Node) -> str:
        """Return the temporary of a value. The pass that computes the value, or reads an input, stores it there."""
        if node not in self.temporaries:
            self.temporaries[node] = f"t{len(self.temporaries)}"
            if not node.is_call:
                self.stores[self._pass(node)][self.temporaries[node]] = node
        return self.temporaries[node]
