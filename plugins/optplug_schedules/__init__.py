"""The learning-rate schedulers of the `torch.optim` documentation, as specs: nothing here imports torch."""

from optplug import SchedulerSpec, hookimpl


@hookimpl
def optplug_schedulers() -> list[SchedulerSpec]:
    return [
        SchedulerSpec(
            "lambda_lr",
            "optplug_schedules.lambda_lr:LambdaLR",
            "the base rate times a function of the step",
        ),
        SchedulerSpec(
            "step_lr",
            "optplug_schedules.step_lr:StepLR",
            "times gamma every step_size steps",
        ),
        SchedulerSpec(
            "multi_step_lr",
            "optplug_schedules.multi_step_lr:MultiStepLR",
            "times gamma at each milestone",
        ),
        SchedulerSpec(
            "exponential_lr",
            "optplug_schedules.exponential_lr:ExponentialLR",
            "times gamma in each step",
        ),
        SchedulerSpec(
            "cosine_annealing_lr",
            "optplug_schedules.cosine_annealing_lr:CosineAnnealingLR",
            "half a cosine from the base rate down to eta_min",
        ),
        SchedulerSpec(
            "reduce_lr_on_plateau",
            "optplug_schedules.reduce_lr_on_plateau:ReduceLROnPlateau",
            "cuts the rate when a metric stops improving",
            frozenset({"metric"}),
        ),
    ]
