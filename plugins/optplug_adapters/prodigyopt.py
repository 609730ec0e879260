"""The optimizers of prodigyopt."""

from optplug import OptimizerSpec, hookimpl
from optplug_adapters.packages import entry, optimizers


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    package = "prodigyopt"
    return [
        *optimizers(package, entry("Prodigy", "Adam with an estimated step size, of the authors' package", "one_lr")),
        *optimizers(
            package,
            entry(
                "ProdigyReference",
                "Prodigy as in the paper, without the options that save memory",
                "one_lr",
                name="prodigy_reference",
            ),
            module="prodigyopt.prodigy_reference",
            source="prodigy_reference.py",
        ),
    ]
