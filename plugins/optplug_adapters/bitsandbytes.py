"""The optimizers of bitsandbytes: with a state of 8 or 32 bits, and with a paged state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from optplug import OptimizerSpec, hookimpl
from optplug_adapters.packages import Entry, entry, optimizers

_MOMENTUM = ({"lr": 0.01, "momentum": 0.9},)
"""Cases for classes that require a learning rate, and a momentum other than 0, which is the default."""

_FAULTY_STATE = (
    "its state has room for one of its two momenta, which is an error of bitsandbytes: use ademamix or paged_ademamix "
    "of bitsandbytes, whose state has 32 bits too"
)


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    return optimizers(
        "bitsandbytes",
        *_variants("Adagrad", "step size from the sum of all squared gradients"),
        *_variants("Adam", "adaptive moment estimation", is_paged=True),
        *_variants("AdamW", "Adam with decoupled weight decay", is_paged=True),
        *_variants("AdEMAMix", "Adam with a second, slower momentum", is_paged=True),
        *_variants("LAMB", "Adam with a step size per layer"),
        *_variants("LARS", "SGD with a step size per layer", cases=_MOMENTUM),
        *_variants("Lion", "sign of an interpolated momentum", is_paged=True),
        *_variants("RMSprop", "step size from a running average of squared gradients"),
        *_variants("SGD", "SGD with momentum", cases=_MOMENTUM),
        entry(
            "PytorchLARS",
            "LARS in plain torch, with a bound on the update",
            name="pytorch_lars",
            cases=({"momentum": 0.9},),  # the default, 0, fails in step()
        ),
        module="bitsandbytes.optim",
        source="optim/__init__.py",
    )


def _variants(cls: str, summary: str, *, is_paged: bool = False, **fields: Any) -> Iterator[Entry]:
    """Yield the entries of a class and of its variants by bits and, if it has them, with a paged state."""
    for prefix in ("", "Paged") if is_paged else ("",):
        for bits, state in (("", ""), ("8bit", ", state of 8 bits"), ("32bit", ", state of 32 bits")):
            variant = {"unsupported": _FAULTY_STATE} if (cls, bits) == ("AdEMAMix", "32bit") else {}
            name = f"paged_{cls}{bits}" if prefix else f"{cls}{bits}"
            paging = ", in paged memory" if prefix else ""
            yield entry(f"{prefix}{cls}{bits}", f"{summary}{state}{paging}", name=name.lower(), **fields, **variant)
