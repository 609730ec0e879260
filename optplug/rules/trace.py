"""A rule with its static choices made (`Variant`), and the graph it is traced to (`Traced`)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optplug.errors import RuleError, did_you_mean, listing
from optplug.rules.graph import Graph, Node, Symbol
from optplug.rules.ops import ON_FLOATS
from optplug.rules.prelude import Decay, prelude

RuleFunction = Callable[..., Any]

FIRST = "first"
"""The keyword by which a rule asks whether this is the parameter's first step with its state: 1.0 or 0.0."""


SHRINK = "1 - lr * weight_decay"
"""The hyperparameter of decoupled decay. No rule can have one of this name."""


@dataclass(frozen=True)
class Signature:
    """What a rule takes: `rule(p, g, *states, *, hypers, flags)`; flags are the keywords whose default is a bool."""

    states: tuple[str, ...]
    hypers: tuple[str, ...]
    flags: tuple[str, ...]


@functools.lru_cache(maxsize=1024)
def signature_of(rule: RuleFunction) -> Signature:
    """Read a rule's signature.

    Raises:
        RuleError: for a rule that does not begin with `p, g` or takes `*args` or `**kwargs`.
    """
    parameters = inspect.signature(rule).parameters.values()
    positional = [q.name for q in parameters if q.kind in (q.POSITIONAL_ONLY, q.POSITIONAL_OR_KEYWORD)]
    keywords = [q for q in parameters if q.kind is q.KEYWORD_ONLY]
    if len(positional) + len(keywords) != len(parameters) or len(positional) < 2:
        raise RuleError(f"{rule.__qualname__} must be rule(p, g, *states, *, hypers, flags) without *args or **kwargs")
    return Signature(
        states=tuple(positional[2:]),
        hypers=tuple(q.name for q in keywords if not isinstance(q.default, bool)),
        flags=tuple(q.name for q in keywords if isinstance(q.default, bool)),
    )


@dataclass(frozen=True)
class Variant:
    """A rule with every static choice made: calling it on values of any kind is one update of one parameter.

    Args:
        rule: the pure function.
        flags: the rule's flags and their values.
        present: the states that exist; the rule receives None for the others.
        scalars: those of them that are scalars rather than element-wise.
        maximize: ascend instead of descend.
        decay: which weight decay the prelude applies.
    """

    rule: RuleFunction
    flags: tuple[tuple[str, bool], ...] = ()
    present: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    maximize: bool = False
    decay: Decay = "none"

    @property
    def hypers(self) -> tuple[str, ...]:
        """The hyperparameters that this variant reads, the prelude's included."""
        names = list(signature_of(self.rule).hypers)
        wanted = {"none": (), "coupled": ("weight_decay",), "decoupled": (SHRINK,)}[self.decay]
        return tuple(dict.fromkeys([*names, *wanted]))

    @property
    def elementwise(self) -> tuple[str, ...]:
        """The states with one element per parameter element."""
        return tuple(s for s in self.present if s not in self.scalars)

    def __call__(self, p: Any, g: Any, states: Mapping[str, Any], hypers: Mapping[str, Any]) -> dict[str, Any]:
        """The new parameter (`"p"`) and states by name.

        Raises:
            RuleError: when the rule returns something else than `(p, *states)`.
        """
        signature = signature_of(self.rule)
        p, g = prelude(
            p,
            g,
            weight_decay=hypers.get("weight_decay"),
            shrink=hypers.get(SHRINK),
            maximize=self.maximize,
            decay=self.decay,
        )
        # A state that is declared but absent is None; so is one that nobody declared.
        arguments = [states.get(name) for name in signature.states]
        returned = self.rule(p, g, *arguments, **{h: hypers[h] for h in signature.hypers}, **dict(self.flags))
        outputs = returned if isinstance(returned, tuple) else (returned,)
        if len(outputs) != 1 + len(signature.states):
            raise RuleError(
                f"{self.rule.__qualname__} returned {len(outputs)} values; it must return the parameter and its "
                f"{len(signature.states)} states ({listing(signature.states)}), in that order"
            )
        named = dict(zip(("p", *signature.states), outputs, strict=True))
        for name, value in named.items():
            if (value is None) != (name != "p" and name not in self.present):
                verb = "returned None for" if value is None else "made up the absent state"
                raise RuleError(
                    f"{self.rule.__qualname__} {verb} {name!r}: return each state that was given, and no other"
                )
        return {name: value for name, value in named.items() if value is not None}


class Traced:
    """The graph of a variant: what it computes per element, and the scalars hoisted out of it.

    Attributes:
        outputs: for `"p"` and each element-wise state that changes, the node of its new value.
        nodes: the element-wise nodes that the outputs need, in topological order.
        reads: the element-wise inputs among them (`"p"`, `"g"` and states).
        hoisted: the scalar nodes that element-wise nodes use; `scalars` computes their values.
    """

    def __init__(self, variant: Variant, hypers: Mapping[str, int]) -> None:
        """Trace. `hypers` gives each hyperparameter's length: 0 for a number, n for a tuple of n numbers."""
        graph = Graph()
        states = {name: graph.input(name, elementwise=name not in variant.scalars) for name in variant.present}
        symbols: dict[str, Any] = {}
        for name in variant.hypers:
            length = hypers[name]
            items = tuple(graph.input(f"{name}[{i}]", elementwise=False) for i in range(length))
            symbols[name] = items if length else graph.input(name, elementwise=False)
        results = variant(graph.input("p", elementwise=True), graph.input("g", elementwise=True), states, symbols)

        self.variant = variant
        self.outputs: dict[str, Node] = {}
        self._scalar_outputs: dict[str, Node] = {}
        for name, result in results.items():
            node = result.node if isinstance(result, Symbol) else graph.const(_constant(variant, name, result))
            if node.elementwise != (name not in variant.scalars):
                kinds = ("an element-wise value", "a scalar")
                expected, got = kinds if name not in variant.scalars else kinds[::-1]
                raise RuleError(f"{variant.rule.__qualname__} returned {got} for {name!r}, which is {expected}")
            if name in variant.scalars:
                self._scalar_outputs[name] = node
            elif node.value != name:  # a state returned as it came is not written
                self.outputs[name] = node

        live = _live(self.outputs.values())
        self.nodes = [n for n in graph.nodes if n in live and n.elementwise]
        self.reads = tuple(n.value for n in self.nodes if n.op == "input")
        self.hoisted = [
            n
            for n in graph.nodes
            if n in live and not n.elementwise and n.op != "const" and any(n in t.args for t in self.nodes)
        ]
        needed = _live([*self.hoisted, *self._scalar_outputs.values()])
        self._program = [n for n in graph.nodes if n in needed]

    def scalars(self, values: Mapping[str, Any]) -> tuple[list[float], dict[str, float]]:
        """The hoisted scalars and the new scalar states, in float64.

        Args:
            values: hyperparameters, tuples included, and scalar states by name.
        """
        flat: dict[str, float] = {}
        for name, value in values.items():
            if isinstance(value, (tuple, list)):
                flat.update((f"{name}[{i}]", item) for i, item in enumerate(value))
            else:
                flat[name] = value
        computed: dict[Node, float] = {}
        for node in self._program:
            if node.op == "const":
                computed[node] = node.value
            elif node.op == "input":
                computed[node] = flat[node.value]
            else:
                computed[node] = ON_FLOATS[node.op](*(computed[a] for a in node.args))
        hoisted = [float(computed[n]) for n in self.hoisted]
        return hoisted, {name: float(computed[n]) for name, n in self._scalar_outputs.items()}

    def __str__(self) -> str:
        lines = [f"{n!r}" for n in self.nodes]
        return "\n".join([*lines, *(f"{name} <- %{node.index}" for name, node in self.outputs.items())])


def _constant(variant: Variant, name: str, result: Any) -> float:
    if isinstance(result, (int, float)):
        return result
    raise RuleError(f"{variant.rule.__qualname__} returned {result!r} for {name!r}")


def _live(outputs: Any) -> set[Node]:
    live: set[Node] = set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack.extend(node.args)
    return live


@functools.lru_cache(maxsize=1024)
def trace(variant: Variant, hypers: tuple[tuple[str, int], ...]) -> Traced | RuleError:
    """The graph of a variant, traced once; or, remembered as well, why the rule cannot be traced."""
    try:
        return Traced(variant, dict(hypers))
    except RuleError as error:
        return error.with_traceback(None)
    except Exception as error:  # the author's code met a symbol where it wanted a number
        return RuleError(f"{variant.rule.__qualname__} cannot be traced: {type(error).__name__}: {error}")


def missing_hypers(variant: Variant, known: Sequence[str]) -> str | None:
    """The complaint about a rule that asks for a hyperparameter its optimizer does not have, or None."""
    for name in variant.hypers:
        if name not in (FIRST, SHRINK) and name not in known:
            return (
                f"{variant.rule.__qualname__} asks for {name!r}, but its optimizer has "
                f"{listing(known)}{did_you_mean(name, known)}"
            )
    return None
