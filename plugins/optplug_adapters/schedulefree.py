"""The optimizers of schedulefree."""

from __future__ import annotations

from collections.abc import Iterator

from optplug import OptimizerSpec, hookimpl
from optplug_adapters.packages import Entry, entry, optimizers

_FURTHER_CAPABILITIES = {
    "schedule_free_sgd": ("complex", "sparse"),
    "schedule_free_sgd_reference": ("complex",),
}


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    return optimizers(
        "schedulefree",
        *_variants("AdamW", "", "Closure", "Paper", "Reference"),
        *_variants("RAdam", "", "Closure"),
        *_variants("SGD", "", "Closure", "Reference"),
        *(_wrapper(variant) for variant in ("", "Reference")),
    )


def _variants(base: str, *variants: str) -> Iterator[Entry]:
    """Yield the entries of an optimizer, named as in the Trainer of transformers: `schedule_free_adamw`."""
    summary = f"{base} with averaged weights instead of a schedule"
    notes = {
        "": "",
        "Closure": ", which step(closure) switches itself",
        "Paper": ", as in the paper",
        "Reference": ", with a copy of each weight",
    }
    for variant in variants:
        name = f"schedule_free_{base}_{variant}".lower().rstrip("_")
        mode = "closure" if variant == "Closure" else "modes"
        further = _FURTHER_CAPABILITIES.get(name, ())
        yield entry(f"{base}ScheduleFree{variant}", summary + notes[variant], mode, *further, name=name)


def _wrapper(variant: str) -> Entry:
    return entry(
        f"ScheduleFreeWrapper{variant}",
        "any optimizer, with averaged weights instead of a schedule"
        + (", with copies of each weight" if variant else ""),
        *("complex", "modes", "sparse"),  # as far as the base does
        name=f"schedule_free_wrapper_{variant}".lower().rstrip("_"),
        target=f"optplug_adapters.schedulefree_wrapper:ScheduleFreeWrapper{variant}",
        base="base",
    )
