"""Buckets: the parameters of a group that are stepped together, and the check of gradient layouts."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optplug.engines.report import BucketReport
from optplug.errors import SparseGradientError
from optplug.optim.buffers import PLAIN_TYPES, TensorsByRole
from optplug.rules.trace import RuleVariant, TracedRule


class BucketKey(NamedTuple):
    """The properties that all parameters of a bucket, their gradients and their states have in common."""

    param_type: type
    param_dtype: torch.dtype
    device: torch.device
    grad_type: type
    grad_dtype: torch.dtype
    grad_layout: torch.layout
    shares_memory: bool = False
    """Whether the parameters overlap in memory with other parameters or with themselves."""

    not_in_place_reason: str | None = None
    """Why a fused kernel cannot update the tensors in place; None if it can."""

    state_dtypes: tuple[torch.dtype, ...] = ()
    """The dtypes of the element-wise states."""

    densify_grads: bool = False
    """Whether the sparse gradients are converted to dense ones because a state is dense."""

    def loop_only_reason(self) -> str | None:
        """Why only engine `loop` can step these tensors; None if other engines can."""
        for tensor_type in (self.param_type, self.grad_type):
            if tensor_type not in PLAIN_TYPES:
                return f"{tensor_type.__name__} is not a plain tensor"
        return "the parameter shares memory with another parameter or with itself" if self.shares_memory else None


@dataclass
class Bucket:
    """Parameters of one group that one engine steps together.

    A bucket holds indices instead of tensors, so that it can be reused in later steps.

    Attributes:
        group: index of the parameter group.
        key: the properties that the parameters have in common.
        engine: name of the engine.
        reason: why this engine was chosen.
        variant: the rule with the flags of the group.
        traced: the graph of the rule; None for engine `loop`.
        indices: the parameters, as indices into those of the group that have a gradient.
        elements: number of elements of all parameters.
        bytes_per_element: bytes that a step reads and writes per element; None if unknown.
        table: cache of an engine: how it splits the tensors into chunks.
    """

    group: int
    key: BucketKey
    engine: str
    reason: str
    variant: RuleVariant
    traced: TracedRule | None
    indices: Sequence[int]
    elements: int
    bytes_per_element: float | None
    table: Any = None

    def report(self, *, ran: bool) -> BucketReport:
        return BucketReport(
            group=self.group,
            engine=self.engine,
            reason=self.reason,
            tensors=len(self.indices),
            elements=self.elements,
            dtype=self.key.param_dtype,
            device=self.key.device,
            bytes_per_element=self.bytes_per_element,
            ran=ran,
        )


class BucketTensors(NamedTuple):
    """The tensors of a bucket in one optimizer step.

    Args:
        bucket: the bucket.
        roles: the parameters, the gradients and, if `states` is given, the element-wise states.
        states: the state dict of each parameter; None if states are missing.
        addresses: the addresses of all tensors in `roles`, one row per role; None if they have not been read.
        scalar_states: the scalar states by name; None if `states` may lack some of them.
    """

    bucket: Bucket
    roles: TensorsByRole
    states: list[dict[str, Any]] | None
    addresses: Any
    scalar_states: TensorsByRole | None


_PARAM_FIELDS = operator.attrgetter("dtype", "device")
_GRAD_FIELDS = operator.attrgetter("dtype", "layout")


def group_by_key(
    params: Sequence[Tensor], grads: Sequence[Tensor], more_fields: Sequence[tuple[Any, ...]]
) -> dict[BucketKey, list[int]]:
    """Return the indices of the parameters by bucket key.

    Args:
        params: the parameters.
        grads: the gradient of each parameter.
        more_fields: for each parameter the fields of its key from `shares_memory` on; may be empty.
    """
    found: dict[BucketKey, list[int]] = {}
    rows = zip(
        map(type, params),
        map(_PARAM_FIELDS, params),
        map(type, grads),
        map(_GRAD_FIELDS, grads),
        more_fields,
        strict=True,
    )
    for i, (param_type, param_fields, grad_type, grad_fields, more) in enumerate(rows):
        found.setdefault(BucketKey(param_type, *param_fields, grad_type, *grad_fields, *more), []).append(i)
    return found


def check_grad_layout(bucket: Bucket, optimizer_name: str, capabilities: Set[str], remedy: str) -> None:
    """Raise an error if the optimizer does not support the layout of the gradients.

    Args:
        bucket: the bucket to check.
        owner: name of the optimizer.
        capabilities: capabilities of the optimizer.
        remedy: end of the message: what the user can do instead.

    Raises:
        SparseGradientError: the layout is not supported. The message begins with torch's where torch has one.
    """
    layout = bucket.key.grad_layout
    if layout is torch.strided:
        if "sparse_only" in capabilities:
            raise SparseGradientError(f"{optimizer_name} does not support dense gradients{remedy}")
    elif "sparse" not in capabilities:
        raise SparseGradientError(f"{optimizer_name} does not support sparse gradients{remedy}")
    elif layout is not torch.sparse_coo:
        raise SparseGradientError(
            f"{optimizer_name} supports sparse gradients of layout torch.sparse_coo only, got {layout}"
        )
    elif bucket.variant.decay_kind != "none":
        raise SparseGradientError(
            "weight_decay option is not compatible with sparse gradients: "
            "weight decay changes all rows, a sparse gradient only some"
        )


def split_sparse_bucket(
    bucket: Bucket, roles: TensorsByRole, sparse_states: Sequence[str], state: Mapping[Tensor, Any]
) -> Iterator[Bucket]:
    """Split a bucket with sparse gradients by whether the gradients must be converted to dense ones.

    A sparse gradient normally steps the rows in its indices. Once a sparse state of the parameter has become dense,
    the gradient is converted to a dense one.

    Args:
        bucket: a bucket with sparse gradients.
        roles: the tensors of the whole group.
        sparse_states: names of the states that are sparse where gradients are sparse.
        state: the state of the optimizer.

    Raises:
        SparseGradientError: a parameter is expanded, or a gradient and a state have different sparse dimensions.
    """
    split: dict[bool, list[int]] = {False: [], True: []}
    for i in bucket.indices:
        p, g = roles["p"][i], roles["g"][i]
        if any(size > 1 and stride == 0 for size, stride in zip(p.shape, p.stride(), strict=True)):
            raise SparseGradientError(
                "unsupported operation: more than one element of the written-to tensor refers to a single memory "
                "location: an expanded parameter cannot be stepped with a sparse gradient"
            )
        values = [state[p][name] for name in sparse_states if name in state[p]] if p in state else []
        for t in values:
            if t.layout is torch.sparse_coo and g.is_sparse and t.sparse_dim() != g.sparse_dim():
                raise SparseGradientError(
                    f"a gradient with {g.sparse_dim()} sparse dimensions does not fit a state with {t.sparse_dim()}"
                )
        split[any(t.layout is torch.strided for t in values)].append(i)
    for densify, indices in split.items():
        if indices:
            yield replace(
                bucket,
                key=bucket.key._replace(densify_grads=densify),
                reason=bucket.reason if densify else f"{bucket.reason}; on the rows of sparse gradients",
                indices=indices,
                elements=sum(roles["p"][i].numel() for i in indices),
            )
