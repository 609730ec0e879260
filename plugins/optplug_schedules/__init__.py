"""Learning-rate schedulers, those of the `torch.optim` documentation and others: their specs.

This module does not import torch.

The package has one module per algorithm. Code that several algorithms share belongs in `optplug.schedulers`.
"""

from optplug import SchedulerSpec, hookimpl


@hookimpl
def optplug_schedulers() -> list[SchedulerSpec]:
    return [
        SchedulerSpec(
            "lambda_lr",
            "optplug_schedules.lambda_lr:LambdaLR",
            "multiplies the base learning rate by a function of the step",
        ),
        SchedulerSpec(
            "step_lr",
            "optplug_schedules.step_lr:StepLR",
            "multiplies by gamma every step_size steps",
            lengths=("step_size",),
        ),
        SchedulerSpec(
            "multi_step_lr",
            "optplug_schedules.multi_step_lr:MultiStepLR",
            "multiplies by gamma at each milestone",
            lengths=("milestones",),
        ),
        SchedulerSpec(
            "exponential_lr",
            "optplug_schedules.exponential_lr:ExponentialLR",
            "multiplies by gamma in each step",
        ),
        SchedulerSpec(
            "cosine_annealing_lr",
            "optplug_schedules.cosine_annealing_lr:CosineAnnealingLR",
            "half a cosine from the base learning rate to eta_min",
            length="T_max",
        ),
        SchedulerSpec(
            "constant_lr",
            "optplug_schedules.constant_lr:ConstantLR",
            "a reduced learning rate for total_iters steps, then the base learning rate",
            length="total_iters",
        ),
        SchedulerSpec(
            "linear_lr",
            "optplug_schedules.linear_lr:LinearLR",
            "a linear change from start_factor to end_factor",
            length="total_iters",
        ),
        SchedulerSpec(
            "polynomial_lr",
            "optplug_schedules.polynomial_lr:PolynomialLR",
            "a polynomial decay to 0",
            length="total_iters",
        ),
        SchedulerSpec(
            "one_cycle_lr",
            "optplug_schedules.one_cycle_lr:OneCycleLR",
            "up to max_lr and down to a very low learning rate, the momentum the other way",
            interval="step",
            length="total_steps",
        ),
        SchedulerSpec(
            "cyclic_lr",
            "optplug_schedules.cyclic_lr:CyclicLR",
            "cycles between base_lr and max_lr, the momentum the other way",
            interval="step",
            lengths=("step_size_up", "step_size_down"),
        ),
        SchedulerSpec(
            "cosine_annealing_warm_restarts",
            "optplug_schedules.cosine_annealing_warm_restarts:CosineAnnealingWarmRestarts",
            "half a cosine from the base learning rate to eta_min, again and again",
            lengths=("T_0",),
        ),
        SchedulerSpec(
            "multiplicative_lr",
            "optplug_schedules.multiplicative_lr:MultiplicativeLR",
            "multiplies by a function of the step in each step",
        ),
        SchedulerSpec(
            "sequential",
            "optplug_schedules.sequential:Sequential",
            "several schedules one after the other",
        ),
        SchedulerSpec(
            "inverse_sqrt",
            "optplug_schedules.inverse_sqrt:InverseSqrt",
            "warmup, then a decay with the inverse square root of the step",
            interval="step",
            lengths=("warmup_steps", "timescale"),
        ),
        SchedulerSpec(
            "wsd",
            "optplug_schedules.wsd:WSD",
            "warmup, a constant learning rate, and a decay at the end",
            interval="step",
            length="total_steps",
            lengths=("decay_steps", "warmup_steps"),
            final_lengths=("decay_steps",),
        ),
        SchedulerSpec(
            "reduce_lr_on_plateau",
            "optplug_schedules.reduce_lr_on_plateau:ReduceLROnPlateau",
            "reduces the learning rate when a metric stops improving",
            frozenset({"metric"}),
        ),
    ]
