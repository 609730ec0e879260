"""The optimizers of lion-pytorch."""

from optplug import OptimizerSpec, hookimpl
from optplug_adapters.packages import entry, optimizers


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    package = "lion_pytorch"
    return [
        *optimizers(package, entry("Lion", "sign of an interpolated momentum, of the authors' package", "sparse")),
        *optimizers(
            package,
            entry("Lion", "Lion that scales down updates against the gradient", name="cautious_lion"),
            module="lion_pytorch.cautious_lion",
            source="cautious_lion.py",
        ),
        *optimizers(
            package,
            entry("Lion", "Lion with foreach functions", name="foreach_lion"),
            module="lion_pytorch.foreach",
            source="foreach.py",
        ),
    ]
