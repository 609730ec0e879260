"""The base learning rate times an arbitrary function of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.optim import Optimizer

from optplug.schedulers.step_functions import FunctionLR


class LambdaLR(FunctionLR):
    r"""The base learning rate times a function of the step: :math:`lr(t) = base \cdot \lambda(t)`.

    The result does not depend on the current learning rate, so changes by other schedulers are overwritten.

    Args:
        optimizer: the optimizer whose learning rates are set.
        lr_lambda: a function that takes the number of steps and returns a finite number, or a list with one function
            for each parameter group. The last function also applies to groups that are added later. In a configuration:
            an expression in `epoch`, such as `"0.95 ** epoch"`, or the name of a function that a plugin registers.
        last_epoch: index of the last step; -1 to start. The constructor performs the next step.
        min_lr_ratio: the learning rate is not below this fraction of the base learning rate, in [0, 1].

    Raises:
        HyperparameterError: the number of functions is not the number of groups; `last_epoch` or `min_lr_ratio` is out
            of range; in the constructor or in a step, a function returns infinity or NaN.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown; in the constructor or in a
            step, a function does not return a number.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.

    A `state_dict` contains the attributes of functions that are objects with `__call__`. It does not contain plain
    functions.
    """

    cases = ({"lr_lambda": "0.95 ** epoch"}, {"lr_lambda": "0 if epoch % 5 == 3 else 1 / (1 + epoch)"})
    is_absolute = True

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
        *,
        min_lr_ratio: float = 0.0,
    ) -> None:
        super().__init__(optimizer, lr_lambda, last_epoch, min_lr_ratio=min_lr_ratio)

    def multipliers(self, t: int) -> list[float]:
        return [self.above_floor(value) for value in self.values(t)]
