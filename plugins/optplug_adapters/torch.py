"""The optimizers and learning-rate schedulers of torch."""

from optplug import OptimizerSpec, SchedulerSpec, hookimpl
from optplug_adapters.packages import entry, optimizers, schedulers


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    return optimizers(
        "torch",
        entry("Adadelta", "step size from the ratio of past updates to past gradients", "complex"),
        entry("Adafactor", "adaptive steps with factored second moments"),
        entry("Adagrad", "step size from the sum of all squared gradients", "complex", "sparse"),
        entry("Adam", "adaptive moment estimation", "complex"),
        entry("AdamW", "Adam with decoupled weight decay", "complex"),
        entry("Adamax", "Adam with the infinity norm", "complex"),
        entry("ASGD", "averaged stochastic gradient descent", "complex"),
        entry("LBFGS", "limited-memory quasi-Newton method", "closure", "complex"),
        entry("Muon", "orthogonalized momentum, for matrices of hidden layers", "matrix_only", shapes=((3, 4),)),
        entry("NAdam", "Adam with Nesterov momentum", "complex"),
        entry("RAdam", "Adam with a rectified adaptive learning rate", "complex"),
        entry("RMSprop", "step size from a running average of squared gradients", "complex"),
        entry("Rprop", "step size per element from the sign of the gradient", "complex"),
        entry("SGD", "stochastic gradient descent", "complex", "sparse"),
        entry(
            "SparseAdam",
            "Adam for sparse gradients, updates only the rows in the gradient",
            *("sparse", "sparse_only"),
            name="sparse_adam",
        ),
        module="torch.optim",
        source="optim/__init__.py",
    )


@hookimpl
def optplug_schedulers() -> list[SchedulerSpec]:
    return [
        *schedulers(
            "torch",
            entry(
                "ConstantLR",
                "a reduced learning rate for total_iters steps, then the base learning rate",
                name="constant_lr",
                length="total_iters",
            ),
            entry(
                "CosineAnnealingLR",
                "half a cosine from the base learning rate to eta_min",
                name="cosine_annealing_lr",
                length="T_max",
                cases=({"T_max": 5},),
            ),
            entry(
                "CosineAnnealingWarmRestarts",
                "half a cosine from the base learning rate to eta_min, again and again",
                name="cosine_annealing_warm_restarts",
                lengths=("T_0",),
                cases=({"T_0": 3}, {"T_0": 2, "T_mult": 2}),
            ),
            entry(
                "CyclicLR",
                "cycles between base_lr and max_lr, the momentum the other way",
                name="cyclic_lr",
                interval="step",
                lengths=("step_size_up", "step_size_down"),
                functions=("scale_fn",),
                cases=({"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3, "cycle_momentum": False},),
            ),
            entry(
                "ExponentialLR",
                "multiplies by gamma in each step",
                name="exponential_lr",
                cases=({"gamma": 0.9},),
            ),
            entry(
                "LambdaLR",
                "multiplies the base learning rate by a function of the step",
                name="lambda_lr",
                functions=("lr_lambda",),
                cases=({"lr_lambda": _halve_each_step},),
            ),
            entry(
                "LinearLR",
                "a linear change from start_factor to end_factor",
                name="linear_lr",
                length="total_iters",
            ),
            entry(
                "MultiplicativeLR",
                "multiplies by a function of the step in each step",
                name="multiplicative_lr",
                functions=("lr_lambda",),
                cases=({"lr_lambda": _halve_each_step},),
            ),
            entry(
                "MultiStepLR",
                "multiplies by gamma at each milestone",
                name="multi_step_lr",
                lengths=("milestones",),
                cases=({"milestones": [2, 4]},),
            ),
            entry(
                "OneCycleLR",
                "up to max_lr and down to a very low learning rate, the momentum the other way",
                name="one_cycle_lr",
                interval="step",
                length="total_steps",
                cases=({"max_lr": 0.1, "total_steps": 20, "cycle_momentum": False},),
            ),
            entry(
                "ChainedScheduler",
                "several schedules whose factors are multiplied",
                name="chained_scheduler",
                unsupported="it takes built schedulers: use 'lambda_lr' with the product as text",
            ),
            entry(
                "SequentialLR",
                "several schedules one after the other",
                name="sequential_lr",
                unsupported="it takes built schedulers: use 'sequential', which takes their names and arguments",
            ),
            entry("PolynomialLR", "a polynomial decay to 0", name="polynomial_lr", length="total_iters"),
            entry(
                "ReduceLROnPlateau",
                "reduces the learning rate when a metric stops improving",
                "metric",
                name="reduce_lr_on_plateau",
            ),
            entry(
                "StepLR",
                "multiplies by gamma every step_size steps",
                name="step_lr",
                lengths=("step_size",),
                cases=({"step_size": 2},),
            ),
            module="torch.optim.lr_scheduler",
            source="optim/lr_scheduler.py",
        ),
        *schedulers(
            "torch",
            entry(
                "SWALR",
                "anneals to swa_lr, for stochastic weight averaging",
                name="swa_lr",
                lengths=("anneal_epochs",),
                cases=({"swa_lr": 0.05},),
            ),
            module="torch.optim.swa_utils",
            source="optim/swa_utils.py",
        ),
    ]


def _halve_each_step(step: int) -> float:
    return 0.5**step
