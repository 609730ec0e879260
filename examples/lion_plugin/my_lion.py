"""A plugin of optplug with one optimizer, `my_lion`."""

from optplug import RuleOptimizer, State, hookimpl, ops


class MyLion(RuleOptimizer):
    """Lion: each element moves by lr, in the direction of the sign of an interpolated momentum (Chen et al., 2023)."""

    states = (State("exp_avg"),)

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, **options):
        hypers = dict(lr=lr, betas=betas, weight_decay=weight_decay, decoupled_weight_decay=True)
        super().__init__(params, hypers, **options)

    @staticmethod
    def rule(p, g, exp_avg, *, lr, betas):
        return p - lr * ops.sign(betas[0] * exp_avg + (1 - betas[0]) * g), betas[1] * exp_avg + (1 - betas[1]) * g


@hookimpl
def optplug_optimizers():
    return [MyLion]
