"""Buckets: which parameters of a group step together, and which gradients a rule takes."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optplug.engines.report import BucketReport
from optplug.errors import SparseGradientError
from optplug.optim.buffers import PLAIN, Roles
from optplug.rules.trace import Traced, Variant


class BucketKey(NamedTuple):
    """What the parameters of a bucket share, and their gradients and states."""

    p_type: type
    p_dtype: torch.dtype
    device: torch.device
    g_type: type
    g_dtype: torch.dtype
    layout: torch.layout
    overlaps: bool = False
    """Some of their memory is another parameter's too."""

    misfit: str | None = None
    """Why no kernel of our own can work where they lie."""

    s_dtypes: tuple[torch.dtype, ...] = ()
    """The dtypes of their element-wise states."""

    made_dense: bool = False
    """Their gradients are sparse and to be made dense, since a state is."""

    def obstacle(self) -> str | None:
        """Why no engine but the loop can take these tensors, or None."""
        for found in (self.p_type, self.g_type):
            if found not in PLAIN:
                return f"{found.__name__} is no plain tensor"
        return "it shares memory with another parameter, or with itself" if self.overlaps else None


@dataclass
class Bucket:
    """Parameters of one group that one engine steps together; `traced` is None for the loop.

    It knows them by their indices among those of the group that have a gradient, so that it may outlive a step.
    """

    group: int
    key: BucketKey
    engine: str
    reason: str
    variant: Variant
    traced: Traced | None
    members: Sequence[int]
    elements: int
    bytes_per_element: float | None
    table: Any = None
    """Where the engine wants one: the chunks of its tensors."""

    def report(self, *, ran: bool) -> BucketReport:
        return BucketReport(
            group=self.group,
            engine=self.engine,
            reason=self.reason,
            tensors=len(self.members),
            elements=self.elements,
            dtype=self.key.p_dtype,
            device=self.key.device,
            bytes_per_element=self.bytes_per_element,
            ran=ran,
        )


class BucketTensors(NamedTuple):
    """A bucket's tensors in one step.

    Args:
        roles: the parameters, the gradients and, when `kept` has all of them, the element-wise states.
        kept: what the optimizer keeps for each parameter; None when states are missing from it.
        places: the addresses of all these tensors, one row a role, where they have been read already.
        scalars: the scalar states by name, where `kept` is known to have them.
    """

    bucket: Bucket
    roles: Roles
    kept: list[dict[str, Any]] | None
    places: Any
    scalars: Roles | None


_ABOUT_P = operator.attrgetter("dtype", "device")
_ABOUT_G = operator.attrgetter("dtype", "layout")


def by_key(
    params: Sequence[Tensor], grads: Sequence[Tensor], more: Sequence[tuple[Any, ...]]
) -> dict[BucketKey, list[int]]:
    """Indices by kind; `more` has for each parameter the fields of its kind from `overlaps` on."""
    found: dict[BucketKey, list[int]] = {}
    rows = zip(map(type, params), map(_ABOUT_P, params), map(type, grads), map(_ABOUT_G, grads), more, strict=True)
    for i, (p_type, about_p, g_type, about_g, rest) in enumerate(rows):
        found.setdefault(BucketKey(p_type, *about_p, g_type, *about_g, *rest), []).append(i)
    return found


def check_layout(bucket: Bucket, owner: str, capabilities: Set[str], remedy: str) -> None:
    """Refuse gradients of a layout that the rule is not for.

    Args:
        owner: the optimizer's name. capabilities: its own. remedy: how to go on, for the end of the message.

    Raises:
        SparseGradientError: with torch's text where torch has one.
    """
    layout = bucket.key.layout
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


def split_sparse(
    bucket: Bucket, roles: Roles, sparse_states: Sequence[str], state: Mapping[Tensor, Any]
) -> Iterator[Bucket]:
    """Sparse gradients step the rows they name; where a sparse state has become dense, the gradient is made so.

    Raises:
        SparseGradientError: a parameter is expanded, or a gradient's rows are not those of its state.
    """
    split: dict[bool, list[int]] = {False: [], True: []}
    for i in bucket.members:
        p, g = roles["p"][i], roles["g"][i]
        if any(size > 1 and stride == 0 for size, stride in zip(p.shape, p.stride(), strict=True)):
            raise SparseGradientError(
                "unsupported operation: more than one element of the written-to tensor refers to a single memory "
                "location: an expanded parameter takes no sparse gradient"
            )
        kept = [state[p][name] for name in sparse_states if name in state[p]] if p in state else []
        for t in kept:
            if t.layout is torch.sparse_coo and g.is_sparse and t.sparse_dim() != g.sparse_dim():
                raise SparseGradientError(
                    f"a gradient with {g.sparse_dim()} sparse dimensions does not fit a state with {t.sparse_dim()}"
                )
        split[any(t.layout is torch.strided for t in kept)].append(i)
    for dense, members in split.items():
        if members:
            yield replace(
                bucket,
                key=bucket.key._replace(made_dense=dense),
                reason=bucket.reason if dense else f"{bucket.reason}; on the rows of sparse gradients",
                members=members,
                elements=sum(roles["p"][i].numel() for i in members),
            )
