"""Cuts a graph into segments: each is one pass over memory, and reduces values for the segments after it.

A value crosses a cut in one of three ways. A later segment reads it again, if it is an input that has not been
overwritten or an output that has been written; or computes it again, if that reads at most `RECOMPUTED_READS` more
values; otherwise an earlier segment stores it in a temporary.

The number of the first segment that can use a value is its level. An operation that ends a pass, so that its result can
be used in the next segment only, raises the level: see `levels`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optplug.rules.graph import Node

RECOMPUTED_READS = 2
"""How many values a computation may read again. A temporary costs as much: it is written once and read once."""


@dataclass(frozen=True, eq=False)
class Segment:
    """One pass over memory.

    Attributes:
        nodes: the element-wise values that it reads or computes, in topological order.
        loads: where it reads the values that it does not compute: a role, or a temporary such as `"t0"`.
        stores: the values that it writes, by role or temporary.
        reductions: the reductions of its values.
        constants: the scalars and tensor scalars that its operations use, constants excepted.
    """

    nodes: Sequence[Node]
    loads: Mapping[Node, str]
    stores: Mapping[str, Node]
    reductions: Sequence[Node]
    constants: Sequence[Node]


def levels(nodes: Sequence[Node]) -> dict[Node, int]:
    """Return for each node the number of the first segment that can use it.

    Args:
        nodes: all nodes of a graph that are needed, in topological order.
    """
    found: dict[Node, int] = {}
    for node in nodes:
        found[node] = max((found[a] for a in node.args), default=0) + node.is_reduction
    return found


def cut(nodes: Sequence[Node], outputs: Mapping[str, Node]) -> list[Segment]:
    """Cut a graph into segments.

    Args:
        nodes: all nodes that are needed, in topological order. All reductions among them are computed.
        outputs: the new value of each role that is written.
    """
    return _Cutter(nodes, outputs).cut()


class _Cutter:
    def __init__(self, nodes: Sequence[Node], outputs: Mapping[str, Node]) -> None:
        self.nodes = nodes
        self.outputs = outputs
        self.levels = levels(nodes)
        last_used = [self.levels[n] for n in outputs.values()] + [self.levels[n] - 1 for n in nodes if n.is_reduction]
        self.count = 1 + max(last_used, default=0)
        self.stores: list[dict[str, Node]] = [{} for _ in range(self.count)]
        self.reductions: list[list[Node]] = [[] for _ in range(self.count)]
        self.temporaries: dict[Node, str] = {}
        for role, node in outputs.items():
            self.stores[self.levels[node]][role] = node
        for node in nodes:
            if node.is_reduction:
                self.reductions[self.levels[node] - 1].append(node)

    def cut(self) -> list[Segment]:
        # From the last to the first, because a segment may need a value that an earlier one then stores.
        return [self._segment(k) for k in reversed(range(self.count))][::-1]

    def _segment(self, k: int) -> Segment:
        loads: dict[Node, str] = {}
        computed: set[Node] = set()
        crossing: dict[Node, None] = {}
        stack = [*self.stores[k].values(), *(a for n in self.reductions[k] for a in n.args)]
        while stack:
            node = stack.pop()
            if not node.is_elementwise or node in computed or node in loads or node in crossing:
                continue
            if self.levels[node] == k and node.op != "input":
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
                loads.update(reads)
        return Segment(
            nodes=[n for n in self.nodes if n in computed or n in loads],
            loads=loads,
            stores=self.stores[k],
            reductions=self.reductions[k],
            constants=self._constants(computed),
        )

    def _constants(self, computed: set[Node]) -> list[Node]:
        used = {a for n in computed for a in n.args}
        return [n for n in self.nodes if n in used and not n.is_elementwise and n.op != "const"]

    def _source(self, node: Node, k: int) -> str | None:
        """Return the role from which segment k can read a value of an earlier segment, or an input."""
        if node.op == "input":
            written_in = self.levels[self.outputs[node.value]] if node.value in self.outputs else self.count
            if k <= written_in:
                return str(node.value)
        for role, output in self.outputs.items():
            if output is node and self.levels[node] < k:
                return role
        return None

    def _recomputed(self, node: Node, k: int, loads: Mapping[Node, str]) -> tuple[set[Node], dict[Node, str]] | None:
        """Return the operations and the reads that compute a value of an earlier segment; None if it reads too much."""
        operations: set[Node] = set()
        reads: dict[Node, str] = {}
        stack = [node]
        while stack:
            n = stack.pop()
            if not n.is_elementwise or n in operations or n in reads or n in loads:
                continue
            source = self._source(n, k)
            if source is not None:
                reads[n] = source
            elif n.op == "input":  # it has been overwritten
                return None
            else:
                operations.add(n)
                stack.extend(n.args)
        return (operations, reads) if len(reads) <= RECOMPUTED_READS else None

    def _store(self, node: Node) -> str:
        """Let the segment that computes a value, or reads an input, store it in a temporary. Return its name."""
        if node not in self.temporaries:
            self.temporaries[node] = f"t{len(self.temporaries)}"
            self.stores[self.levels[node]][self.temporaries[node]] = node
        return self.temporaries[node]
