"""The buckets of a parameter group, cached from one optimizer step to the next while they remain valid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from operator import is_not
from typing import Any

import torch
from torch import Tensor

from optplug.engines.buffers import PLAIN_TYPES, AddressReader, TensorsByRole
from optplug.engines.protocol import Bucket, GroupSettings
from optplug.optim.buckets import ReadyStep
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


class CachedBuckets:
    """The buckets of a parameter group, valid while the properties of its tensors and the parameters' addresses last.

    The cache holds no tensors: gradients must be freed after use, and states may move to another device.

    Args:
        settings: everything else the buckets depend on; compared with `==`.
        buckets: the buckets of the group.
        roles: all tensors of the group, including the element-wise states.

    Attributes:
        read_addresses: reads the addresses of all tensors at once, for an engine that needs them; else None.
    """

    def __init__(self, settings: GroupSettings, buckets: Sequence[Bucket], roles: TensorsByRole) -> None:
        self._settings = settings
        self._buckets = buckets
        self._state_names = settings.variant.array_states
        self._scalar_names = settings.variant.own_scalar_states
        self._length = len(roles["p"])
        # Without states every step is a first step.
        has_states = settings.variant.array_states or settings.variant.own_scalar_states
        self._first = None if has_states else [True] * self._length
        self._guard = TensorGuard(list(chain(*roles.values())))
        self._param_addresses = list(map(Tensor.data_ptr, roles["p"]))
        readers = [bucket.engine.address_reader() for bucket in buckets]
        self.read_addresses: AddressReader | None = next(filter(None, readers), None)

    @staticmethod
    def can_cache(roles: TensorsByRole) -> bool:
        """Whether `TensorGuard` can check these tensors: all must be dense and of plain types."""
        return all(type(t) in PLAIN_TYPES and t.layout is torch.strided for t in chain(*roles.values()))

    def lookup(
        self, settings: GroupSettings, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]]
    ) -> list[ReadyStep] | None:
        """Return the cached buckets with these tensors, or None if the buckets may be invalid.

        Args:
            settings: as in the constructor.
            params: the parameters of the group that have a gradient.
            grads: the gradient of each parameter.
            states: the state dict of each parameter; None for a parameter without state.
        """
        if len(params) != self._length or settings != self._settings:
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
        if self.read_addresses is None:
            addresses, param_addresses = None, list(map(Tensor.data_ptr, params))
        else:
            addresses = self.read_addresses(tensors).reshape(len(roles), -1)
            param_addresses = addresses[0].tolist()
        if param_addresses != self._param_addresses:  # moved parameters may now overlap in memory
            return None
        if len(self._buckets) == 1:
            return [ReadyStep(self._buckets[0], roles, states, scalar_states, self._first, addresses)]
        return [
            ReadyStep(
                bucket,
                {role: [tensors[i] for i in bucket.indices] for role, tensors in roles.items()},
                [states[i] for i in bucket.indices],
                {name: [values[i] for i in bucket.indices] for name, values in scalar_states.items()},
                self._first and [True] * len(bucket.indices),
                None if addresses is None else addresses[:, bucket.indices],
            )
            for bucket in self._buckets
        ]
