"""Buckets in an optimizer step: grouping of parameters, and the check of gradient layouts."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optplug.engines.buffers import TensorsByRole
from optplug.engines.protocol import Bucket, BucketKey
from optplug.errors import SparseGradientError


class ReadyStep(NamedTuple):
    """A bucket with all its tensors in one optimizer step.

    Args:
        bucket: the bucket.
        roles: the parameters, the gradients and the element-wise states.
        states: the state dict of each parameter.
        scalar_states: the scalar states by name.
        first: for each parameter whether this is its first step; None if it is the first step of none.
        addresses: the addresses of all tensors in `roles`, one row per role; None if they have not been read.
    """

    bucket: Bucket
    roles: TensorsByRole
    states: list[dict[str, Any]]
    scalar_states: TensorsByRole
    first: Sequence[bool] | None
    addresses: Any = None

    @property
    def grads(self) -> list[Tensor]:
        return self.roles["g"]


class PendingStep(NamedTuple):
    """A bucket whose parameters may lack states, as before their first step.

    Args:
        bucket: the bucket.
        params: the parameters.
        grads: the gradient of each parameter.
    """

    bucket: Bucket
    params: list[Tensor]
    grads: list[Tensor]


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
        optimizer_name: name of the optimizer.
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
    elif bucket.settings.variant.decay_kind != "none":
        raise SparseGradientError(
            "weight_decay option is not compatible with sparse gradients: "
            "weight decay changes all rows, a sparse gradient only some"
        )
    elif "agc" in bucket.settings.variant.clips:
        raise SparseGradientError(
            "agc is not compatible with sparse gradients: it needs the norm of the whole parameter, "
            "a step with a sparse gradient reads only some rows; use clip_norm instead"
        )


def split_sparse_bucket(
    bucket: Bucket,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    sparse_states: Sequence[str],
    state: Mapping[Tensor, Any],
) -> Iterator[Bucket]:
    """Split a bucket with sparse gradients by whether the gradients must be converted to dense ones.

    A sparse gradient normally steps the rows in its indices. Once a sparse state of the parameter has become dense,
    the gradient is converted to a dense one.

    Args:
        bucket: a bucket with sparse gradients.
        params: the parameters of the whole group.
        grads: the gradient of each parameter.
        sparse_states: names of the states that are sparse where gradients are sparse.
        state: the state of the optimizer.

    Raises:
        SparseGradientError: a parameter is expanded, or a gradient and a state have different sparse dimensions.
    """
    split: dict[bool, list[int]] = {False: [], True: []}
    for i in bucket.indices:
        p, g = params[i], grads[i]
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
                lengths=[params[i].numel() for i in indices],
                shapes=[params[i].shape for i in indices],
            )
