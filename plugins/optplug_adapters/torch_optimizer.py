"""The optimizers of torch_optimizer (the distribution torch-optimizer)."""

from optplug import OptimizerSpec, hookimpl
from optplug_adapters.packages import NO_EMPTY_TENSOR, entry, optimizers


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    return optimizers(
        "torch_optimizer",
        entry("A2GradExp", "accelerated SGD with an exponential average", "sparse", name="a2grad_exp"),
        entry("A2GradInc", "accelerated SGD with an incremental average", "sparse", name="a2grad_inc"),
        entry("A2GradUni", "accelerated SGD with a uniform average", "sparse", name="a2grad_uni"),
        entry("AccSGD", "SGD with long and short steps", "complex", "sparse"),
        entry("AdaBelief", "Adam with the deviation of the gradient from its average"),
        entry("AdaBound", "Adam with bounds that become a learning rate of SGD"),
        entry("AdaMod", "Adam with bounds from averages of the step size"),
        entry("Adafactor", "adaptive steps with factored second moments", shapes=((3, 4), (5,), (), (0,))),
        entry("Adahessian", "Adam with estimates of the Hessian's diagonal", "create_graph"),
        entry("AdamP", "Adam without the radial part of the update"),
        entry("AggMo", "SGD with several momentum buffers", "complex", "sparse"),
        entry("Apollo", "quasi-Newton method with a diagonal Hessian"),
        entry("DiffGrad", "Adam with a friction from the change of the gradient"),
        entry("LARS", "SGD with a trust ratio for each parameter", "complex", "sparse"),
        entry("Lamb", "Adam with a trust ratio for each parameter"),
        entry("Lookahead", "slow weights that follow another optimizer's", "complex", "sparse", base="optimizer"),
        entry("MADGRAD", "dual averaging with a cube root"),
        entry("NovoGrad", "Adam with one second moment for each parameter"),
        entry("PID", "SGD with integral and derivative terms", "complex", "sparse"),
        entry("QHAdam", "Adam with quasi-hyperbolic momentum"),
        entry("QHM", "SGD with quasi-hyperbolic momentum", "complex", "sparse"),
        entry("RAdam", "Adam with a rectified adaptive learning rate"),
        entry("Ranger", "RAdam with Lookahead", "no_closure"),
        entry("RangerQH", "QHAdam with Lookahead", name="ranger_qh"),
        entry("RangerVA", "RAdam with Lookahead and a calibrated step size", "no_closure", name="ranger_va"),
        entry("SGDP", "SGD without the radial part of the update"),
        entry("SGDW", "SGD with decoupled weight decay", "complex"),
        entry("SWATS", "Adam that becomes SGD"),
        entry("Shampoo", "preconditioners for each dimension of a parameter", shapes=NO_EMPTY_TENSOR),
        entry("Yogi", "Adam with additive changes of the second moment"),
    )
