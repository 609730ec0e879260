"""Optimizers published after those of the `torch.optim` documentation: their specs. This module does not import torch.

The package has one module per algorithm, and helper modules that only one algorithm or its variants use. Code that
several algorithms share belongs in `optplug.optim`.
"""

from optplug import OptimizerSpec, hookimpl


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    return [
        OptimizerSpec(
            "adabelief",
            "optplug_modern.adabelief:AdaBelief",
            "Adam with the deviation of the gradient from its average",
            {"complex", "fused"},
        ),
        OptimizerSpec(
            "adafactor", "optplug_modern.adafactor:Adafactor", "adaptive steps with factored second moments", {"fused"}
        ),
        OptimizerSpec(
            "adan",
            "optplug_modern.adan:Adan",
            "Nesterov momentum with the change of the gradient",
            {"complex", "fused"},
        ),
        OptimizerSpec(
            "ademamix", "optplug_modern.ademamix:AdEMAMix", "Adam with a fast and a slow average", {"complex", "fused"}
        ),
        OptimizerSpec(
            "adopt",
            "optplug_modern.adopt:ADOPT",
            "Adam that scales a gradient by those before it",
            {"complex", "fused"},
        ),
        OptimizerSpec(
            "lamb", "optplug_modern.lamb:Lamb", "Adam with a trust ratio for each parameter", {"complex", "fused"}
        ),
        OptimizerSpec(
            "lars", "optplug_modern.lars:Lars", "SGD with a trust ratio for each parameter", {"complex", "fused"}
        ),
        OptimizerSpec("lion", "optplug_modern.lion:Lion", "sign of an interpolated momentum", {"complex", "fused"}),
        OptimizerSpec(
            "muon",
            "optplug_modern.muon:Muon",
            "orthogonalized momentum, for matrices of hidden layers",
            {"fused", "matrix_only"},
        ),
        OptimizerSpec("nadam", "optplug_modern.nadam:NAdam", "Adam with Nesterov momentum", {"complex", "fused"}),
        OptimizerSpec(
            "prodigy", "optplug_modern.prodigy:Prodigy", "Adam that estimates its step size", {"complex", "fused"}
        ),
        OptimizerSpec(
            "radam", "optplug_modern.radam:RAdam", "Adam with a rectified adaptive learning rate", {"complex", "fused"}
        ),
        OptimizerSpec(
            "schedule_free_adamw",
            "optplug_modern.schedule_free_adamw:ScheduleFreeAdamW",
            "AdamW with averaged iterates instead of a learning rate schedule",
            {"complex", "fused", "modes"},
        ),
        OptimizerSpec(
            "schedule_free_sgd",
            "optplug_modern.schedule_free_sgd:ScheduleFreeSGD",
            "SGD with averaged iterates instead of a learning rate schedule",
            {"complex", "fused", "modes"},
        ),
        OptimizerSpec("signum", "optplug_modern.signum:Signum", "sign of the momentum", {"complex", "fused"}),
        OptimizerSpec(
            "soap", "optplug_modern.soap:SOAP", "Adam in the eigenbases of Shampoo's preconditioner", {"fused"}
        ),
    ]
