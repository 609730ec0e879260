"""The states of a rule: their declaration, initial values, and how they are loaded from a state dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optplug.engines.buffers import KERNEL_DTYPES
from optplug.engines.scalars import scalar_dtype
from optplug.errors import (
    HyperparameterError,
    HyperparameterTypeError,
    ParameterError,
    RuleError,
    listing,
    one_line,
    short_list,
)


@dataclass(frozen=True)
class State:
    """One state of a rule, stored under the name that torch uses.

    Args:
        name: the key in `optimizer.state[p]` and the argument of the rule.
        scalar: whether the state is one number per parameter (a 0-dim tensor) instead of one per element.
        when: name of the hyperparameter that must be truthy for the state to exist. Default: the state always exists.
        init: the initial value, or the name of the hyperparameter that contains it; `"p"` for a copy of the parameter.
        sparse: whether the state is a sparse tensor for sparse gradients. A step then changes all rows of the state.
            If False, a step changes only the rows in the gradient.
        dim: -1 for one number per row of a matrix, -2 for one per column; the state has size 1 in this dimension. A
            parameter with more than two dimensions is a stack of matrices. The state exists for matrices only.
        matrices: whether the state exists for matrices only (True), or for parameters with fewer than two dimensions
            only (False). Default: for matrices only if `dim` is given, else for all parameters.
        shape: for a state of another shape, which only matrix functions read and compute: a function of the shape of
            the parameter and the options of its group that returns the shape of the state, at least one size.
        shared: for a scalar state, whether it is one float for all parameters of the optimizer. Each parameter group
            contains it under its name. The rule must compute the same new value for every parameter, from scalars and
            from reductions over the optimizer.
    """

    name: str
    scalar: bool = False
    when: str | None = None
    init: float | str = 0.0
    sparse: bool = False
    dim: int | None = None
    matrices: bool | None = None
    shared: bool = False
    shape: Callable[[torch.Size, Mapping[str, Any]], Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if self.dim is not None and self.matrices is None:
            object.__setattr__(self, "matrices", True)
        problems = {
            f"dim={self.dim!r}; it may be -1 or -2": self.dim not in (None, -1, -2),
            f"matrices={self.matrices!r}; it may be True, False or None": self.matrices not in (None, True, False),
            "scalar=True and dim": self.scalar and self.dim is not None,
            "dim and matrices=False": self.dim is not None and self.matrices is False,
            "shared=True without scalar=True": self.shared and not self.scalar,
            "shared=True and matrices": self.shared and self.matrices is not None,
            "sparse=True and scalar=True or dim": self.sparse and (self.scalar or self.dim is not None),
            'init="p" and scalar=True or dim': self.init == "p" and (self.scalar or self.dim is not None),
            "shape and scalar=True, dim or sparse=True": self.shape and (self.scalar or self.dim or self.sparse),
            'shape and init="p"': self.shape and self.init == "p",
            f"shape={self.shape!r}; it must be a function of the shape of a parameter and the options of its group": (
                self.shape is not None and not callable(self.shape)
            ),
        }
        for problem, is_wrong in problems.items():
            if is_wrong:
                raise RuleError(f"State {self.name!r} got {problem}")

    def exists(self, group: Mapping[str, Any], *, matrices: bool) -> bool:
        """Whether parameters of a group have the state.

        Args:
            group: the parameter group.
            matrices: whether the parameters have at least two dimensions.
        """
        return self.matrices in (None, matrices) and (self.when is None or bool(group[self.when]))

    @property
    def is_elementwise(self) -> bool:
        """Whether the state has the shape of the parameter."""
        return not self.scalar and self.dim is None and self.shape is None

    def shape_of(self, p: Tensor, group: Mapping[str, Any]) -> torch.Size:
        """Return the shape of the state of a parameter, if the state is not a scalar.

        Raises:
            RuleError: the function `shape` fails, or does not return a shape.
        """
        if self.shape is not None:
            try:
                shape = self.shape(p.shape, group)
            except Exception as error:
                raise RuleError(
                    f"State {self.name!r}: the function shape fails for a parameter of shape {tuple(p.shape)}: "
                    f"{type(error).__name__}: {one_line(error)}"
                ) from error
            if not _is_shape(shape):
                raise RuleError(f"State {self.name!r}: shape must return a tuple of sizes, at least one; got {shape!r}")
            return torch.Size(shape)
        if self.dim is None:
            return p.shape
        return torch.Size(1 if d == p.ndim + self.dim else size for d, size in enumerate(p.shape))

    def initial_value(self, p: Tensor, g: Tensor, group: Mapping[str, Any], dtype: torch.dtype | None) -> Tensor:
        """Return the value of the state before the first step.

        Args:
            p: the parameter.
            g: its gradient.
            group: its parameter group.
            dtype: `state_dtype` of the optimizer.
        """
        if self.init == "p":
            return torch.empty_like(p, dtype=elementwise_dtype(p, dtype)).copy_(p)
        value = self.initial_number(group)
        if isinstance(value, Tensor):  # with differentiable=True, autograd must record its use
            value = value.reshape(()) if group["differentiable"] else float(value.detach())
        if self.scalar:
            return torch.zeros((), dtype=scalar_dtype(), device=scalar_device(p, group)).add(value)
        dtype = elementwise_dtype(p, dtype)
        if self.sparse and g.layout is torch.sparse_coo:
            return torch.zeros_like(g, dtype=dtype)
        if not self.is_elementwise:
            return p.new_zeros(self.shape_of(p, group), dtype=dtype).add_(value)
        if p.is_complex():
            value = value * (1 + 1j)
        if isinstance(value, Tensor):
            return torch.zeros_like(p, dtype=dtype).add(value)
        # The pages of zeros_like are allocated when the first step writes to them, by all threads of its kernel.
        return torch.full_like(p, value, dtype=dtype) if value else torch.zeros_like(p, dtype=dtype)

    def initial_number(self, group: Mapping[str, Any]) -> Any:
        """Return the number that the elements of the state, or the scalar state, have before the first step."""
        return group[self.init] if isinstance(self.init, str) else self.init

    def applies_to(self, p: Tensor) -> bool:
        """Whether a parameter with this number of dimensions can have the state."""
        return self.matrices in (None, is_matrix(p))

    def is_required(self, p: Tensor) -> bool:
        """Whether every state dict with a state of this parameter contains this state. Step counts may be missing."""
        return self.name != "step" and not self.shared and self.when is None and self.applies_to(p)

    def check(self, value: Any, p: Tensor, group: Mapping[str, Any], prefix: str) -> None:
        """Check that a value from a state dict fits the state of a parameter.

        Args:
            value: the value.
            p: the parameter.
            group: its parameter group.
            prefix: start of the message.

        Raises:
            ParameterError: the value has the wrong shape.
            HyperparameterTypeError: the value is not a tensor; for a scalar state, neither a tensor nor a number.
        """
        if self.scalar:
            if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
                raise HyperparameterTypeError(f"{prefix} must be a number, got {value!r}")
            if isinstance(value, Tensor) and value.numel() != 1:
                raise ParameterError(f"{prefix} must be one number, got a tensor of shape {tuple(value.shape)}")
        elif not isinstance(value, Tensor):
            raise HyperparameterTypeError(f"{prefix} must be a tensor, got {value!r}")
        elif value.shape != (shape := self.shape_of(p, group)):
            expected = "the parameter has" if self.is_elementwise else "expected"
            raise ParameterError(f"{prefix} has shape {tuple(value.shape)}, {expected} {tuple(shape)}")

    def restore(self, value: Any, p: Tensor, group: Mapping[str, Any], dtype: torch.dtype | None) -> Tensor:
        """Return a copy of a value from a state dict, with the device and dtype of the state.

        This corrects torch's loading, which casts all states but `step` to the dtype of the parameter. Old state dicts
        contain plain numbers.

        Args:
            value: the value.
            p: the parameter.
            group: its parameter group.
            dtype: `state_dtype` of the optimizer.
        """
        if self.scalar:
            return torch.as_tensor(value, dtype=scalar_dtype(), device=scalar_device(p, group)).detach().clone()
        copy: Tensor = value.to(p.device, elementwise_dtype(p, dtype), copy=True)
        return copy


def _is_shape(value: Any) -> bool:
    """Whether a value is a sequence of sizes, at least one."""
    return isinstance(value, (tuple, list)) and bool(value) and all(isinstance(n, int) and n >= 0 for n in value)


def is_matrix(p: Tensor) -> bool:
    """Whether a parameter is a matrix or a stack of matrices."""
    return p.ndim >= 2


def matrix_not_in_place_reason(
    p: Tensor, g: Tensor, states: Mapping[State, Tensor], group: Mapping[str, Any], *, uses_dims: bool
) -> str | None:
    """Return why a kernel cannot update a parameter in place by a rule that uses its rows and columns, or calls matrix
    functions; None if it can.

    Args:
        p: the parameter.
        g: its gradient.
        states: its states that are not scalars.
        group: its parameter group.
        uses_dims: whether the rule uses rows and columns.
    """
    if uses_dims and not is_matrix(p):
        return "it has fewer than two dimensions, the rule uses rows and columns of matrices"
    if not p.is_contiguous():
        return "its rows are not contiguous"
    if not g.is_contiguous():
        return "the rows of its gradient are not contiguous"
    for state, t in states.items():
        if not t.is_contiguous():
            return f"the rows of its {state.name} are not contiguous"
    for state, t in states.items():
        if state.is_elementwise:
            continue
        if t.shape != (shape := state.shape_of(p, group)):
            return f"its {state.name} has shape {tuple(t.shape)}, not {tuple(shape)}"
        if t.device != p.device or t.dtype not in KERNEL_DTYPES or t.is_neg():
            return f"its {state.name} is not a plain floating-point tensor on {p.device}"
    return None


def check_saved_states(
    state_dict: Mapping[str, Any],
    optimizer_name: str,
    states: Sequence[State],
    params: Sequence[tuple[Tensor, Mapping[str, Any]]],
) -> None:
    """Check that a state dict contains the states of this optimizer and these parameters. Additional keys are allowed.

    Args:
        state_dict: the state dict of an optimizer.
        optimizer_name: name of the optimizer, for messages.
        states: the states that the optimizer declares.
        params: all parameters of the optimizer, in order, each with its group after loading.

    Raises:
        HyperparameterError: the states are those of another optimizer.
        ParameterError: a state has the wrong shape.
        HyperparameterTypeError: a state has the wrong type.
    """
    indices = [i for group in state_dict["param_groups"] for i in group["params"]]
    for position, (i, (p, group)) in enumerate(zip(indices, params, strict=False)):  # torch compares the lengths
        saved = state_dict["state"].get(i) or {}
        declared = {state.name: state for state in states if state.applies_to(p)}
        missing = {name for name, state in declared.items() if state.is_required(p)} - set(saved)
        unknown = set(saved) - set(declared)
        if saved and (missing or unknown & {"step", "n_iter"}):  # all optimizers of torch but SGD have a step count
            raise HyperparameterError(
                f"this is the state of another optimizer, with the keys {short_list(sorted(saved))}; "
                f"{optimizer_name} keeps {listing(sorted(declared))}"
            )
        for name in (name for name in declared if saved.get(name) is not None):
            prefix = f"{optimizer_name}: {name} of parameter {position} in the state dict"
            declared[name].check(saved[name], p, group, prefix)


def scalar_device(p: Tensor, group: Mapping[str, Any]) -> torch.device:
    """Return the device of scalar states.

    It is the CPU, where they can be read without synchronization; with `capturable`, it is the parameter's device.
    """
    return p.device if group["capturable"] else torch.device("cpu")


def elementwise_dtype(p: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype of a parameter's element-wise states; `dtype` is the optimizer's `state_dtype`."""
    if dtype is None:
        return p.dtype
    return dtype.to_complex() if p.is_complex() else dtype


def init_missing_states(
    states: Sequence[State],
    param_state: dict[str, Any],
    p: Tensor,
    g: Tensor,
    group: Mapping[str, Any],
    dtype: torch.dtype | None,
) -> bool:
    """Add the states that a parameter lacks to its state dict.

    Args:
        states: the states that exist for the group.
        param_state: the state dict of the parameter.
        p: the parameter.
        g: its gradient.
        group: its parameter group.
        dtype: `state_dtype` of the optimizer.

    Returns:
        Whether this is the first step: all element-wise states were missing. For a rule with scalar states only: all
        states were missing.
    """
    missing = [state for state in states if param_state.get(state.name) is None]
    for state in missing:
        param_state[state.name] = state.initial_value(p, g, group, dtype)
    if g.layout is torch.strided:
        for state in states:  # a dense gradient changes every row, so a sparse state becomes dense
            if state.sparse and param_state[state.name].layout is not torch.strided:
                param_state[state.name] = param_state[state.name].to_dense()
    if not missing:
        return False
    decisive = [state for state in states if not state.scalar] or states
    return all(state in missing for state in decisive)
