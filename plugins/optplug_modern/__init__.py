"""Optimizers published after those of the `torch.optim` documentation: their specs. This module does not import torch.

The package has one module per algorithm, and helper modules that only one algorithm uses. Code that several algorithms
share belongs in `optplug.optim`.
"""

from optplug import OptimizerSpec, hookimpl


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    return [
        OptimizerSpec("lion", "optplug_modern.lion:Lion", "sign of an interpolated momentum", {"complex"}),
        OptimizerSpec("nadam", "optplug_modern.nadam:NAdam", "Adam with Nesterov momentum", {"complex"}),
        OptimizerSpec(
            "radam", "optplug_modern.radam:RAdam", "Adam with a rectified adaptive learning rate", {"complex"}
        ),
    ]
