"""A rule with its static choices (`RuleVariant`), and the graph that it is traced to (`TracedRule`)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optplug.errors import RuleError, listing, suggest
from optplug.rules.graph import KIND_NAMES, Graph, Kind, Node, Symbol
from optplug.rules.modifiers import DecayKind, postlude, prelude
from optplug.rules.ops import DIMS, FLOAT_OPERATIONS
from optplug.rules.segments import Cut, MatrixCall, Segment, cut, levels

RuleFunction = Callable[..., Any]

FIRST_STEP = "first"
"""The keyword of a rule that is 1.0 in a parameter's first step with its state, and 0.0 in later steps."""

DECAY_FACTOR = "1 - lr * weight_decay"
"""The hyperparameter of decoupled weight decay. The name is not a valid identifier, so no rule can use it."""


@dataclass(frozen=True)
class RuleSignature:
    """The signature of a rule: `rule(p, g, *states, *, hyperparameters, flags)`.

    Attributes:
        states: the names of the states.
        hyperparameters: the keywords that are not flags.
        flags: the keywords whose default is a bool.
    """

    states: tuple[str, ...]
    hyperparameters: tuple[str, ...]
    flags: tuple[str, ...]


@functools.lru_cache(maxsize=1024)
def rule_signature(rule: RuleFunction) -> RuleSignature:
    """Read the signature of a rule.

    Raises:
        RuleError: the rule does not begin with `p, g`, or takes `*args` or `**kwargs`.
    """
    parameters = inspect.signature(rule).parameters.values()
    positional = [q.name for q in parameters if q.kind in (q.POSITIONAL_ONLY, q.POSITIONAL_OR_KEYWORD)]
    keywords = [q for q in parameters if q.kind is q.KEYWORD_ONLY]
    if len(positional) + len(keywords) != len(parameters) or len(positional) < 2:
        raise RuleError(
            f"{rule.__qualname__} must be rule(p, g, *states, *, hyperparameters, flags) without *args or **kwargs"
        )
    return RuleSignature(
        states=tuple(positional[2:]),
        hyperparameters=tuple(q.name for q in keywords if not isinstance(q.default, bool)),
        flags=tuple(q.name for q in keywords if isinstance(q.default, bool)),
    )


@dataclass(frozen=True)
class RuleVariant:
    """A rule with all its static choices. A call computes one update of one parameter, on values of any kind.

    Args:
        rule: the pure function.
        flags: the rule's flags and their values.
        present_states: the names of the states that exist. The rule receives None for the others.
        scalar_states: the names of the existing states that are scalars and not element-wise.
        state_dims: the existing states with one number per row (-1) or per column (-2) of a matrix.
        shared_states: the names of the scalar states that are one number for all parameters.
        whole_states: the names of the existing states of another shape.
        maximize: ascend instead of descend.
        clips: which of `modifiers.CLIPS` the prelude applies, in their order.
        decay_kind: which weight decay the prelude applies.
        cautious: whether the postlude omits updates that do not descend.
    """

    rule: RuleFunction
    flags: tuple[tuple[str, bool], ...] = ()
    present_states: tuple[str, ...] = ()
    scalar_states: tuple[str, ...] = ()
    state_dims: tuple[tuple[str, int], ...] = ()
    shared_states: tuple[str, ...] = ()
    whole_states: tuple[str, ...] = ()
    maximize: bool = False
    clips: tuple[str, ...] = ()
    decay_kind: DecayKind = "none"
    cautious: bool = False

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """The names of the hyperparameters that this variant reads, including those of the modifiers."""
        own = rule_signature(self.rule).hyperparameters
        of_decay = {"none": (), "coupled": ("weight_decay",), "decoupled": (DECAY_FACTOR,)}[self.decay_kind]
        return tuple(dict.fromkeys([*own, *self.clips, *of_decay]))

    def state_kind(self, name: str) -> Kind:
        """Return the kind of an existing state."""
        if name in self.scalar_states:
            return "scalar"
        dims = dict(self.state_dims)
        return "whole" if name in self.whole_states else DIMS[dims[name]] if name in dims else "element"

    @property
    def array_states(self) -> tuple[str, ...]:
        """The names of the existing states that are not scalars."""
        return tuple(s for s in self.present_states if s not in self.scalar_states)

    @property
    def own_scalar_states(self) -> tuple[str, ...]:
        """The names of the scalar states that each parameter has for itself."""
        return tuple(s for s in self.scalar_states if s not in self.shared_states)

    def __call__(self, p: Any, g: Any, states: Mapping[str, Any], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the new parameter (`"p"`) and the new states, by name.

        Args:
            p: the parameter.
            g: the gradient.
            states: the states by name.
            hyperparameters: the values by name.

        Raises:
            RuleError: the rule does not return `(p, *states)`.
        """
        signature = rule_signature(self.rule)
        p, g = prelude(
            p,
            g,
            hyperparameters,
            maximize=self.maximize,
            clips=self.clips,
            decay_kind=self.decay_kind,
            decay_factor=hyperparameters.get(DECAY_FACTOR),
        )
        # The rule receives None for a state that does not exist.
        arguments = [states.get(name) for name in signature.states]
        keywords = {name: hyperparameters[name] for name in signature.hyperparameters}
        returned = self.rule(p, g, *arguments, **keywords, **dict(self.flags))
        outputs = returned if isinstance(returned, tuple) else (returned,)
        if len(outputs) != 1 + len(signature.states):
            raise RuleError(
                f"{self.rule.__qualname__} returned {len(outputs)} values; it must return the parameter and its "
                f"{len(signature.states)} states ({listing(signature.states)}), in that order"
            )
        named = dict(zip(("p", *signature.states), outputs, strict=True))
        for name, value in named.items():
            if (value is None) != (name != "p" and name not in self.present_states):
                problem = "returned None for" if value is None else "returned a value for the absent state"
                raise RuleError(
                    f"{self.rule.__qualname__} {problem} {name!r}: it must return each state that it received, "
                    "and None for the others"
                )
        named["p"] = postlude(p, g, named["p"], cautious=self.cautious)
        return {name: value for name, value in named.items() if value is not None}


class TracedRule:
    """The graph of a rule variant: its segments, and the scalars that are hoisted out of them.

    Attributes:
        outputs: for `"p"` and each element-wise state that changes, the node of the new value.
        tensor_outputs: for each scalar state whose new value is a tensor scalar, the node of the new value.
        nodes: the element-wise values and tensor scalars that the outputs depend on, in topological order. Reductions
            over several parameters are included even if no output depends on them: all buckets must compute them.
        inputs: the names of the element-wise inputs among them: `"p"`, `"g"` and states.
        hoisted_scalars: the scalar nodes that `nodes` use. `compute_scalars` computes their values.
        uses_dims: whether the rule uses values with one number per row or column of a matrix.
        matrix_functions: the names of the matrix functions, in the order of their calls.
        segments: the passes over memory, if no role is narrow. A rule that does not reduce has one.
        scalars_by_level: for each level the tensor scalars that are not reductions, in topological order. They can be
            computed before the segments of this level.
    """

    def __init__(self, variant: RuleVariant, lengths: Mapping[str, int]) -> None:
        """Trace a variant.

        Args:
            variant: the rule variant.
            lengths: the length of each hyperparameter that is a tuple; 0 for a number.

        Raises:
            RuleError: the rule uses an unsupported operation or returns wrong values.
        """
        graph = Graph()
        states = {name: graph.input(name, variant.state_kind(name)) for name in variant.present_states}
        symbols: dict[str, Any] = {}
        for name in variant.hyperparameters:
            length = lengths[name]
            items = tuple(graph.input(f"{name}[{i}]", "scalar") for i in range(length))
            symbols[name] = items if length else graph.input(name, "scalar")
        results = variant(graph.input("p", "element"), graph.input("g", "element"), states, symbols)

        self.variant = variant
        self.outputs: dict[str, Node] = {}
        self.tensor_outputs: dict[str, Node] = {}
        self._scalar_outputs: dict[str, Node] = {}
        for name, result in results.items():
            node = result.node if isinstance(result, Symbol) else graph.const(_check_constant(variant, name, result))
            expected = "element" if name == "p" else variant.state_kind(name)
            if node.kind != expected and (node.kind, expected) != ("tensor", "scalar"):
                raise RuleError(
                    f"{variant.rule.__qualname__} returned {KIND_NAMES[node.kind]} for {name!r}, which is "
                    f"{KIND_NAMES[expected]}"
                )
            if name in variant.shared_states and not _is_uniform(node):
                raise RuleError(
                    f"{variant.rule.__qualname__} returned a number for each parameter for {name!r}, which all "
                    'parameters share; it may depend on reductions with over="optimizer" only'
                )
            if node.kind == "tensor":
                self.tensor_outputs[name] = node
            elif node.kind == "scalar":
                self._scalar_outputs[name] = node
            elif node.value != name:  # an unchanged state is not written
                self.outputs[name] = node

        shared = [n for n in graph.nodes if n.is_shared]
        live = _live_nodes([*self.outputs.values(), *self.tensor_outputs.values(), *shared])
        needed_nodes = [n for n in graph.nodes if n in live]
        self.nodes = [n for n in needed_nodes if n.kind != "scalar"]
        self.inputs = tuple(n.value for n in self.nodes if n.op == "input")
        self.hoisted_scalars = [
            n for n in needed_nodes if n.kind == "scalar" and n.op != "const" and any(n in t.args for t in self.nodes)
        ]
        self.uses_dims = any(n.kind in ("matrix", "row", "column") for n in self.nodes)
        self.matrix_functions = tuple(n.value.name for n in self.nodes if n.is_call)
        self._needed_nodes = needed_nodes
        self._cuts: dict[frozenset[str], Cut] = {}
        self.segments = self.cut()
        level = levels(needed_nodes)
        self.scalars_by_level: dict[int, list[Node]] = {}
        for node in self.nodes:
            if node.kind == "tensor" and not node.is_reduction:
                self.scalars_by_level.setdefault(level[node], []).append(node)
        needed = _live_nodes([*self.hoisted_scalars, *self._scalar_outputs.values()])
        self._scalar_inputs = [n for n in graph.nodes if n in needed and n.op == "input"]
        self._scalar_constants = {n: n.value for n in graph.nodes if n in needed and n.op == "const"}
        self._scalar_program = [
            (n, FLOAT_OPERATIONS[n.op], n.args) for n in graph.nodes if n in needed and n.op not in ("input", "const")
        ]

    def compute_scalars(self, values: Mapping[str, Any]) -> tuple[list[float], dict[str, float]]:
        """Return the values of the hoisted scalars and the new scalar states by name, computed in float64.

        Args:
            values: hyperparameters, numbers or tuples, and scalar states, by name.
        """
        flat: dict[str, float] = {}
        for name, value in values.items():
            if isinstance(value, (tuple, list)):
                flat.update((f"{name}[{i}]", item) for i, item in enumerate(value))
            else:
                flat[name] = value
        computed: dict[Node, float] = dict(self._scalar_constants)
        for node in self._scalar_inputs:
            computed[node] = flat[node.value]
        for node, operation, operands in self._scalar_program:
            computed[node] = operation(*[computed[a] for a in operands])
        hoisted = [float(computed[n]) for n in self.hoisted_scalars]
        return hoisted, {name: float(computed[n]) for name, n in self._scalar_outputs.items()}

    def cut(self, narrow: frozenset[str] = frozenset()) -> Sequence[Segment]:
        """Return the segments, cut once for each set of narrow roles; see `optplug.rules.segments.cut`."""
        return self._cut(narrow).segments

    def calls(self, narrow: frozenset[str] = frozenset()) -> Sequence[MatrixCall]:
        """Return the calls of matrix functions between the segments."""
        return self._cut(narrow).calls

    def _cut(self, narrow: frozenset[str]) -> Cut:
        if narrow not in self._cuts:
            self._cuts[narrow] = cut(self._needed_nodes, self.outputs, narrow)
        return self._cuts[narrow]

    def temporaries(self, segments: Sequence[Segment]) -> dict[str, Node]:
        """Return the values that segments or matrix functions store for later segments, by their names."""
        stored = {name: node for s in segments for name, node in {**s.stores, **s.line_reductions}.items()}
        results = {name: node for s in segments for node, name in s.loads.items() if node.is_call}
        return {name: node for name, node in {**stored, **results}.items() if name not in self.outputs}

    @functools.cached_property
    def reduces(self) -> bool:
        """Whether the rule reduces, uses the number of elements, or calls matrix functions."""
        return any(node.kind != "element" or node.is_call for node in self.nodes)

    @functools.cached_property
    def needs_matrices(self) -> bool:
        """Whether the rule uses rows and columns, or their numbers: parameters must be matrices."""
        return self.uses_dims or any(node.op == "numel" and node.value in DIMS for node in self.nodes)

    @functools.cached_property
    def shared_reductions(self) -> int:
        """The number of reductions over several parameters."""
        return sum(node.is_shared for node in self.nodes)

    def __str__(self) -> str:
        lines = [f"{n!r}" for n in self.nodes]
        outputs = {**self.outputs, **self.tensor_outputs}
        return "\n".join([*lines, *(f"{name} <- %{node.index}" for name, node in outputs.items())])


def _is_uniform(node: Node) -> bool:
    """Whether a scalar or tensor scalar has the same value for all parameters of the optimizer.

    Scalars are taken as equal: they depend on hyperparameters and states.
    """
    if node.is_reduction:
        return bool(node.value == "optimizer")
    return node.op != "numel" and all(map(_is_uniform, node.args))


def _check_constant(variant: RuleVariant, name: str, result: Any) -> float:
    if isinstance(result, (int, float)):
        return result
    raise RuleError(
        f"{variant.rule.__qualname__} returned {result!r} for {name!r}: it must return values computed from its "
        "arguments, or numbers"
    )


def _live_nodes(outputs: Iterable[Node]) -> set[Node]:
    """The nodes that the outputs depend on, including the outputs."""
    live: set[Node] = set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack.extend(node.args)
    return live


@functools.lru_cache(maxsize=1024)
def trace(variant: RuleVariant, lengths: tuple[tuple[str, int], ...]) -> TracedRule | RuleError:
    """Trace a variant, or return the error why it cannot be traced. The result is cached in both cases.

    Args:
        variant: the rule variant.
        lengths: the name of each hyperparameter and 0 for a number, n for a tuple of n numbers.
    """
    try:
        return TracedRule(variant, dict(lengths))
    except RuleError as error:
        return error.with_traceback(None)
    except Exception as error:  # code of the rule that fails on symbols, such as a call of a function of numbers
        return RuleError(f"{variant.rule.__qualname__} cannot be traced: {type(error).__name__}: {error}")


def missing_hyperparameter_message(variant: RuleVariant, known: Sequence[str]) -> str | None:
    """The error message for a rule that needs a hyperparameter which its optimizer does not have; None if it has all.

    Args:
        variant: the rule variant.
        known: the names of the optimizer's hyperparameters.
    """
    for name in variant.hyperparameters:
        if name not in (FIRST_STEP, DECAY_FACTOR) and name not in known:
            return (
                f"{variant.rule.__qualname__} needs the hyperparameter {name!r}, but its optimizer does not have "
                f"it{suggest(name, known)}"
            )
    return None
