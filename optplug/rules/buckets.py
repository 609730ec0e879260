"""Buckets: which parameters of a group step together, and which gradients a rule takes."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from optplug.engines.report import BucketReport
from optplug.errors import SparseGradientError
from optplug.rules.buffers import PLAIN
from optplug.rules.trace import Traced, Variant


@dataclass
class Bucket:
    """Parameters of one group that one engine steps together; `kind` is what they share, of `by_kind`.

    `traced` is None for the loop.
    """

    group: int
    kind: tuple[Any, ...]
    engine: str
    reason: str
    variant: Variant
    traced: Traced | None
    params: list[Tensor]
    grads: list[Tensor]

    @property
    def sparse(self) -> bool:
        return self.grads[0].layout is torch.sparse_coo

    def obstacle(self) -> str | None:
        """Why no engine but the loop can take these tensors, or None."""
        if self.engine == "loop":
            return None
        p_type, _, _, g_type, _, _, overlaps = self.kind
        if not (p_type in PLAIN and g_type in PLAIN):
            return f"{(g_type if p_type in PLAIN else p_type).__name__} is no plain tensor"
        return "it shares memory with another parameter, or with itself" if overlaps else None

    def report(self, *, ran: bool) -> BucketReport:
        p, elements = self.params[0], sum(map(Tensor.numel, self.params))
        return BucketReport(self.group, self.engine, self.reason, len(self.params), elements, p.dtype, p.device, ran)


_ABOUT_P = operator.attrgetter("dtype", "device")
_ABOUT_G = operator.attrgetter("dtype", "layout")


def by_kind(
    params: Sequence[Tensor], grads: Sequence[Tensor], shared: frozenset[int]
) -> dict[tuple[Any, ...], Sequence[int]]:
    """Indices by type, dtype and device of the parameter, the gradient's type, dtype and layout, and shared memory."""
    kinds = [
        (p_type, *about_p, g_type, *about_g, False)
        for p_type, about_p, g_type, about_g in zip(
            map(type, params), map(_ABOUT_P, params), map(type, grads), map(_ABOUT_G, grads), strict=True
        )
    ]
    if not shared and len(set(kinds)) == 1:
        return {kinds[0]: range(len(kinds))}
    found: dict[tuple[Any, ...], list[int]] = {}
    for i, kind in enumerate(kinds):
        found.setdefault((*kind[:-1], i in shared), []).append(i)
    return found  # type: ignore[return-value]


def check_layout(bucket: Bucket, owner: str, capabilities: Set[str], remedy: str) -> None:
    """Refuse gradients of a layout that the rule is not for.

    Args:
        owner: the optimizer's name. capabilities: its own. remedy: how to go on, for the end of the message.

    Raises:
        SparseGradientError: with torch's text where torch has one.
    """
    layout = bucket.grads[0].layout
    if layout is torch.strided:
        if "sparse_only" in capabilities:
            raise SparseGradientError(f"{owner} does not support dense gradients{remedy}")
    elif "sparse" not in capabilities:
        raise SparseGradientError(f"{owner} does not support sparse gradients{remedy}")
    elif layout is not torch.sparse_coo:
        raise SparseGradientError(f"{owner} takes sparse gradients of layout torch.sparse_coo, not {layout}")
    elif bucket.variant.decay != "none":
        raise SparseGradientError(
            "weight_decay option is not compatible with sparse gradients: they name some rows, and a decay is for all"
        )


def split_sparse(bucket: Bucket, sparse_states: Sequence[str], state: Mapping[Tensor, Any]) -> Iterator[Bucket]:
    """Sparse gradients step the rows they name; where a sparse state has become dense, the gradient is made so."""
    on_rows: list[int] = []
    whole: list[int] = []
    for i, p in enumerate(bucket.params):
        kept = [state[p].get(name) for name in sparse_states] if p in state else []
        dense = any(t is not None and t.layout is torch.strided for t in kept)
        (whole if dense else on_rows).append(i)
    if on_rows:
        reason = f"{bucket.reason}; on the rows of sparse gradients"
        yield replace(
            bucket, reason=reason, params=[bucket.params[i] for i in on_rows], grads=[bucket.grads[i] for i in on_rows]
        )
    if whole:
        grads = [bucket.grads[i].to_dense() for i in whole]
        kind = (*bucket.kind, "made dense")
        yield replace(bucket, kind=kind, params=[bucket.params[i] for i in whole], grads=grads)
