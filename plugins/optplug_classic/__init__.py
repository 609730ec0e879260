"""The optimizers of the `torch.optim` documentation, as specs: nothing here imports torch."""

from optplug import OptimizerSpec, hookimpl


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    return [
        OptimizerSpec("adam", "optplug_classic.adam:Adam", "adaptive moment estimation", frozenset({"complex"})),
        OptimizerSpec(
            "adamw", "optplug_classic.adamw:AdamW", "Adam with decoupled weight decay", frozenset({"complex"})
        ),
        OptimizerSpec(
            "sgd", "optplug_classic.sgd:SGD", "stochastic gradient descent with momentum", frozenset({"complex"})
        ),
    ]
