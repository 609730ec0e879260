"""The optimizers and learning-rate schedulers of timm."""

from optplug import OptimizerSpec, SchedulerSpec, hookimpl
from optplug_adapters.packages import NO_EMPTY_TENSOR, entry, optimizers, schedulers


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    return [
        *optimizers(
            "timm",
            entry("AdaBelief", "Adam with the deviation of the gradient from its average"),
            entry("Adafactor", "adaptive steps with factored second moments"),
            entry("AdafactorBigVision", "Adafactor as in Big Vision", name="adafactor_bv"),
            entry("Adahessian", "Adam with estimates of the Hessian's diagonal", "create_graph"),
            entry("AdamP", "Adam without the radial part of the update"),
            entry("AdamWLegacy", "Adam with decoupled weight decay", "complex", name="adamw_legacy"),
            entry("Adan", "Nesterov momentum with the change of the gradient"),
            entry("Adopt", "Adam that scales a gradient by those before it", "complex"),
            entry("LaProp", "momentum of normalized gradients", "complex"),
            entry("Lamb", "Adam with a trust ratio for each parameter"),
            entry("Lars", "SGD with a trust ratio for each parameter", "complex", "sparse"),
            entry("Lion", "sign of an interpolated momentum", "complex"),
            entry("Lookahead", "slow weights that follow another optimizer's", base="base_optimizer"),
            entry("MADGRAD", "dual averaging with a cube root"),
            entry("Mars", "Adam with reduced variance"),
            entry("Muon", "orthogonalized momentum for matrices, AdamW for other parameters"),
            entry("NAdamLegacy", "Adam with Nesterov momentum", name="nadam_legacy"),
            entry("NAdamW", "NAdam with decoupled weight decay", "complex"),
            entry("NvNovoGrad", "Adam with one second moment for each parameter"),
            entry("RAdamLegacy", "Adam with a rectified adaptive learning rate", name="radam_legacy"),
            entry("RMSpropTF", "RMSprop as in TensorFlow", name="rmsprop_tf"),
            entry("SGDP", "SGD without the radial part of the update", cases=({"lr": 0.1},)),
            entry("SGDW", "SGD with decoupled weight decay", "complex", "sparse"),
            module="timm.optim",
            source="optim/__init__.py",
        ),
        *optimizers(
            "timm",
            entry("Kron", "SGD with a Kronecker-factored preconditioner", shapes=NO_EMPTY_TENSOR),
            module="timm.optim.kron",
            source="optim/kron.py",
        ),
    ]


@hookimpl
def optplug_schedulers() -> list[SchedulerSpec]:
    return schedulers(
        "timm",
        entry(
            "CosineLRScheduler",
            "half a cosine to lr_min, with warmup, cycles and noise",
            name="cosine_lr_scheduler",
            length="t_initial",
            lengths=("warmup_t",),
            cases=({"t_initial": 5}, {"t_initial": 5, "warmup_t": 2, "warmup_lr_init": 0.01}),
        ),
        entry(
            "MultiStepLRScheduler",
            "multiplies by decay_rate at each of several steps, with warmup and noise",
            name="multi_step_lr_scheduler",
            lengths=("decay_t", "warmup_t"),
            cases=({"decay_t": [2, 4], "decay_rate": 0.5},),
        ),
        entry(
            "PlateauLRScheduler",
            "reduces the learning rate when a metric stops improving, with warmup and noise",
            "metric",
            name="plateau_lr_scheduler",
        ),
        entry(
            "PolyLRScheduler",
            "a polynomial decay to lr_min, with warmup, cycles and noise",
            name="poly_lr_scheduler",
            length="t_initial",
            lengths=("warmup_t",),
            cases=({"t_initial": 5},),
        ),
        entry(
            "StepLRScheduler",
            "multiplies by decay_rate every decay_t steps, with warmup and noise",
            name="step_lr_scheduler",
            lengths=("decay_t", "warmup_t"),
            cases=({"decay_t": 2, "decay_rate": 0.5},),
        ),
        entry(
            "TanhLRScheduler",
            "a hyperbolic tangent to lr_min, with warmup, cycles and noise",
            name="tanh_lr_scheduler",
            length="t_initial",
            lengths=("warmup_t",),
            cases=({"t_initial": 5},),
        ),
        entry(
            "WSDLRScheduler",
            "warmup, a constant learning rate, and a decay at the end",
            name="wsd_lr_scheduler",
            lengths=("t_initial", "decay_t", "warmup_t"),
            final_lengths=("decay_t",),
            cases=({"t_initial": 6, "decay_t": 3},),
        ),
        module="optplug_adapters.timm_schedulers",
        source="scheduler/__init__.py",
    )
