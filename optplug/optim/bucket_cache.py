"""Plans: the buckets of a group, kept for as long as they are right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from operator import is_not
from typing import Any

import torch
from torch import Tensor

from optplug.optim.buckets import Bucket, BucketTensors
from optplug.optim.buffers import PLAIN, Roles
from optplug.optim.packed_scalars import Reader
from optplug.optim.tensor_guard import TensorGuard


def roles_of(names: Sequence[str], params: list[Tensor], grads: list[Tensor], kept: Sequence[dict[str, Any]]) -> Roles:
    """The parameters, their gradients and their element-wise states; KeyError or TypeError when a state is missing."""
    return {"p": params, "g": grads, **{name: [state[name] for state in kept] for name in names}}


def split_by_bucket(
    buckets: Sequence[Bucket],
    roles: Roles,
    kept: list[dict[str, Any]] | None = None,
    places: Any = None,
    scalars: Roles | None = None,
) -> list[BucketTensors]:
    """The tensors of a group, and what is known of them, dealt out to its buckets."""
    if len(buckets) == 1:
        return [BucketTensors(buckets[0], roles, kept, places, scalars)]
    return [
        BucketTensors(
            bucket,
            {role: [tensors[i] for i in bucket.members] for role, tensors in roles.items()},
            None if kept is None else [kept[i] for i in bucket.members],
            None if places is None else places[:, bucket.members],
            None if scalars is None else {n: [tensors[i] for i in bucket.members] for n, tensors in scalars.items()},
        )
        for bucket in buckets
    ]


class CachedBuckets:
    """The buckets of a group, right while its tensors are like those they were found for, and the parameters there.

    It holds none of the tensors: a gradient must be free to go, and a state may move to another device.

    Args:
        key: what else the buckets depend on, comparable.
        buckets: of the group.
        roles: all its tensors, states included.
        read: reads the addresses of all of them at once, for an engine that wants them.
    """

    def __init__(self, key: Any, buckets: Sequence[Bucket], roles: Roles, read: Reader | None) -> None:
        self._key = key
        self._read = read
        self._buckets = buckets
        self._names = [name for name in roles if name not in ("p", "g")]
        self._scalars = buckets[0].variant.scalars
        self._length = len(roles["p"])
        self._likeness = TensorGuard(list(chain(*roles.values())))
        self._where = list(map(Tensor.data_ptr, roles["p"]))

    @staticmethod
    def can_be_for(roles: Roles) -> bool:
        """Whether likeness can be told of these tensors: dense ones of plain types."""
        return all(type(t) in PLAIN and t.layout is torch.strided for t in chain(*roles.values()))

    def batches(
        self, key: Any, params: list[Tensor], grads: list[Tensor], kept: list[dict[str, Any]]
    ) -> list[BucketTensors] | None:
        """The buckets with these tensors, or None where they may no longer be right.

        Args:
            kept: what the optimizer keeps for each parameter, or None for one without states.
        """
        if len(params) != self._length or key != self._key:
            return None
        try:
            roles = roles_of(self._names, params, grads, kept)
            values = {name: [state[name] for state in kept] for name in self._scalars}
        except (KeyError, TypeError):
            return None
        if not all(map(is_not, chain(*values.values()), repeat(None))):
            return None
        tensors = list(chain(*roles.values()))
        if not self._likeness.holds(tensors):
            return None
        if self._read is None:
            places, where = None, list(map(Tensor.data_ptr, params))
        else:
            places = self._read(tensors).reshape(len(roles), -1)
            where = places[0].tolist()
        if where != self._where:  # they may overlap now
            return None
        return split_by_bucket(self._buckets, roles, kept, places, values)
