"""The optimizers of the `torch.optim` documentation, as specs: nothing here imports torch."""

from optplug import OptimizerSpec, hookimpl


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    return [
        OptimizerSpec("adadelta", "optplug_classic.adadelta:Adadelta", "steps in units of the parameter", {"complex"}),
        OptimizerSpec(
            "adagrad", "optplug_classic.adagrad:Adagrad", "sum of all squared gradients", {"complex", "sparse"}
        ),
        OptimizerSpec("adam", "optplug_classic.adam:Adam", "adaptive moment estimation", {"complex"}),
        OptimizerSpec("adamax", "optplug_classic.adamax:Adamax", "Adam with the infinity norm", {"complex"}),
        OptimizerSpec("adamw", "optplug_classic.adamw:AdamW", "Adam with decoupled weight decay", {"complex"}),
        OptimizerSpec("asgd", "optplug_classic.asgd:ASGD", "averaged stochastic gradient descent", {"complex"}),
        OptimizerSpec("lbfgs", "optplug_classic.lbfgs:LBFGS", "limited-memory quasi-Newton", {"closure", "complex"}),
        OptimizerSpec(
            "rmsprop", "optplug_classic.rmsprop:RMSprop", "running average of squared gradients", {"complex"}
        ),
        OptimizerSpec("rprop", "optplug_classic.rprop:Rprop", "step sizes by the sign of the gradient", {"complex"}),
        OptimizerSpec("sgd", "optplug_classic.sgd:SGD", "stochastic gradient descent", {"complex", "sparse"}),
        OptimizerSpec(
            "sparse_adam",
            "optplug_classic.sparse_adam:SparseAdam",
            "Adam on the rows of sparse gradients",
            {"sparse", "sparse_only"},
        ),
    ]
