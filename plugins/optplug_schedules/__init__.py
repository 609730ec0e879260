"""The learning-rate schedulers of the `torch.optim` documentation, as specs: nothing here imports torch."""

from optplug import SchedulerSpec, hookimpl


@hookimpl
def optplug_schedulers() -> list[SchedulerSpec]:
    return [
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
