"""The optimizers of optimi, the package of the distribution torch-optimi."""

from optplug import OptimizerSpec, hookimpl
from optplug_adapters.packages import Entry, entry, optimizers


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    return optimizers(
        "optimi",
        _entry("Adam", "Adam with Kahan summation for low precision"),
        _entry("AdamW", "Adam with decoupled weight decay, and Kahan summation for low precision"),
        _entry("Adan", "Adam with Nesterov momentum and the difference of gradients"),
        _entry("Lion", "sign of an interpolated momentum"),
        _entry("RAdam", "Adam with a rectified adaptive learning rate"),
        _entry("Ranger", "RAdam with Lookahead"),
        _entry("SGD", "SGD with decoupled weight decay, and Kahan summation for low precision", "complex", "sparse"),
        _entry("StableAdamW", "AdamW with the update clipping of Adafactor", name="stable_adamw"),
    )


def _entry(cls: str, summary: str, *capabilities: str, name: str = "") -> Entry:
    return entry(cls, summary, *capabilities, name=name, cases=({"lr": 1e-3},))  # lr is required
