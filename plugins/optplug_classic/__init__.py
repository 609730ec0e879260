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
            {"complex"},
        ),
        OptimizerSpec(
            "adagrad",
            "optplug_classic.adagrad:Adagrad",
            "step size from the sum of all squared gradients",
            {"complex", "sparse"},
        ),
        OptimizerSpec("adam", "optplug_classic.adam:Adam", "adaptive moment estimation", {"complex"}),
        OptimizerSpec("adamax", "optplug_classic.adamax:Adamax", "Adam with the infinity norm", {"complex"}),
        OptimizerSpec("adamw", "optplug_classic.adamw:AdamW", "Adam with decoupled weight decay", {"complex"}),
        OptimizerSpec("asgd", "optplug_classic.asgd:ASGD", "averaged stochastic gradient descent", {"complex"}),
        OptimizerSpec(
            "lbfgs", "optplug_classic.lbfgs:LBFGS", "limited-memory quasi-Newton method", {"closure", "complex"}
        ),
        OptimizerSpec(
            "rmsprop",
            "optplug_classic.rmsprop:RMSprop",
            "step size from a running average of squared gradients",
            {"complex"},
        ),
        OptimizerSpec(
            "rprop", "optplug_classic.rprop:Rprop", "step size per element from the sign of the gradient", {"complex"}
        ),
        OptimizerSpec("sgd", "optplug_classic.sgd:SGD", "stochastic gradient descent", {"complex", "sparse"}),
        OptimizerSpec(
            "sparse_adam",
            "optplug_classic.sparse_adam:SparseAdam",
            "Adam for sparse gradients, updates only the rows in the gradient",
            {"sparse", "sparse_only"},
        ),
    ]
