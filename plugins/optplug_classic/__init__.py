"""The optimizers of the `torch.optim` documentation: their specs. This module does not import torch.

The package has one module per algorithm, and helper modules that only one algorithm uses. Code that several algorithms
share belongs in `optplug.optim`.
"""

from optplug import OptimizerSpec, hookimpl


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    return [
        OptimizerSpec(
            "adadelta",
            "optplug_classic.adadelta:Adadelta",
            "step size from the ratio of past updates to past gradients",
            {"complex", "fused"},
        ),
        OptimizerSpec(
            "adagrad",
            "optplug_classic.adagrad:Adagrad",
            "step size from the sum of all squared gradients",
            {"complex", "fused", "sparse"},
        ),
        OptimizerSpec("adam", "optplug_classic.adam:Adam", "adaptive moment estimation", {"complex", "fused"}),
        OptimizerSpec("adamax", "optplug_classic.adamax:Adamax", "Adam with the infinity norm", {"complex", "fused"}),
        OptimizerSpec("adamw", "optplug_classic.adamw:AdamW", "Adam with decoupled weight decay", {"complex", "fused"}),
        OptimizerSpec(
            "asgd", "optplug_classic.asgd:ASGD", "averaged stochastic gradient descent", {"complex", "fused"}
        ),
        OptimizerSpec(
            "lbfgs", "optplug_classic.lbfgs:LBFGS", "limited-memory quasi-Newton method", {"closure", "complex"}
        ),
        OptimizerSpec(
            "rmsprop",
            "optplug_classic.rmsprop:RMSprop",
            "step size from a running average of squared gradients",
            {"complex", "fused"},
        ),
        OptimizerSpec(
            "rprop",
            "optplug_classic.rprop:Rprop",
            "step size per element from the sign of the gradient",
            {"complex", "fused"},
        ),
        OptimizerSpec("sgd", "optplug_classic.sgd:SGD", "stochastic gradient descent", {"complex", "fused", "sparse"}),
        OptimizerSpec(
            "sparse_adam",
            "optplug_classic.sparse_adam:SparseAdam",
            "Adam for sparse gradients, updates only the rows in the gradient",
            {"fused", "sparse", "sparse_only"},
        ),
    ]
