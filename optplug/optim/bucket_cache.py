"""The buckets of a parameter group, cached from one optimizer step to the next while they remain valid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from operator import is_not
from typing import Any

import torch
from torch import Tensor

from optplug.optim.buckets import Bucket, BucketTensors
from optplug.optim.buffers import PLAIN_TYPES, TensorsByRole
from optplug.optim.packed_scalars import AddressReader
from optplug.optim.tensor_guard import TensorGuard


def gather_roles(
    names: Sequence[str], params: list[Tensor], grads: list[Tensor], states: Sequence[dict[str, Any]]
) -> TensorsByRole:
    """Collect the parameters, their gradients and their element-wise states by role.

    Args:
        names: names of the element-wise states.
        params: the parameters.
        grads: the gradient of each parameter.
        states: the state dict of each parameter.

    Raises:
        KeyError: a parameter lacks one of the states.
        TypeError: a parameter has no state dict.
    """
    return {"p": params, "g": grads, **{name: [state[name] for state in states] for name in names}}


def split_by_bucket(
    buckets: Sequence[Bucket],
    roles: TensorsByRole,
    states: list[dict[str, Any]] | None = None,
    addresses: Any = None,
    scalar_states: TensorsByRole | None = None,
) -> list[BucketTensors]:
    """Split the tensors of a parameter group, and the data that belongs to them, by bucket.

    Args:
        buckets: the buckets of the group.
        roles: the tensors of the whole group, by role.
        states: the state dict of each parameter; None if states are missing.
        addresses: the addresses of all tensors, one row per role; None if they have not been read.
        scalar_states: the scalar states by name; None if states are missing.
    """
    if len(buckets) == 1:
        return [BucketTensors(buckets[0], roles, states, addresses, scalar_states)]
    return [
        BucketTensors(
            bucket,
            {role: [tensors[i] for i in bucket.indices] for role, tensors in roles.items()},
            None if states is None else [states[i] for i in bucket.indices],
            None if addresses is None else addresses[:, bucket.indices],
            None
            if scalar_states is None
            else {name: [tensors[i] for i in bucket.indices] for name, tensors in scalar_states.items()},
        )
        for bucket in buckets
    ]


class CachedBuckets:
    """The buckets of a parameter group, valid while the properties of its tensors and the parameters' addresses last.

    The cache holds no tensors: gradients must be freed after use, and states may move to another device.

    Args:
        key: everything else the buckets depend on; compared with `==`.
        buckets: the buckets of the group.
        roles: all tensors of the group, including the element-wise states.
        read_addresses: reads the addresses of all tensors at once, for an engine that needs them; else None.
    """

    def __init__(
        self, key: Any, buckets: Sequence[Bucket], roles: TensorsByRole, read_addresses: AddressReader | None
    ) -> None:
        self._key = key
        self._read_addresses = read_addresses
        self._buckets = buckets
        self._state_names = [name for name in roles if name not in ("p", "g")]
        self._scalar_names = buckets[0].variant.scalar_states
        self._length = len(roles["p"])
        self._guard = TensorGuard(list(chain(*roles.values())))
        self._param_addresses = list(map(Tensor.data_ptr, roles["p"]))

    @staticmethod
    def can_cache(roles: TensorsByRole) -> bool:
        """Whether `TensorGuard` can check these tensors: all must be dense and of plain types."""
        return all(type(t) in PLAIN_TYPES and t.layout is torch.strided for t in chain(*roles.values()))

    def lookup(
        self, key: Any, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]]
    ) -> list[BucketTensors] | None:
        """Return the cached buckets with these tensors, or None if the buckets may be invalid.

        Args:
            key: as in the constructor.
            params: the parameters of the group that have a gradient.
            grads: the gradient of each parameter.
            states: the state dict of each parameter; None for a parameter without state.
        """
        if len(params) != self._length or key != self._key:
            return None
        try:
            roles = gather_roles(self._state_names, params, grads, states)
            scalar_states = {name: [state[name] for state in states] for name in self._scalar_names}
        except (KeyError, TypeError):
            return None
        if not all(map(is_not, chain(*scalar_states.values()), repeat(None))):
            return None
        tensors = list(chain(*roles.values()))
        if not self._guard.matches(tensors):
            return None
        if self._read_addresses is None:
            addresses, param_addresses = None, list(map(Tensor.data_ptr, params))
        else:
            addresses = self._read_addresses(tensors).reshape(len(roles), -1)
            param_addresses = addresses[0].tolist()
        if param_addresses != self._param_addresses:  # moved parameters may now overlap in memory
            return None
        return split_by_bucket(self._buckets, roles, states, addresses, scalar_states)
