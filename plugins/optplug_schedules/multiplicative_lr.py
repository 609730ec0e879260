"""A product of factors, one for each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from optplug.schedulers.step_functions import FunctionLR


class MultiplicativeLR(FunctionLR):
    r"""The product of the values of a function: :math:`lr(t) = base \cdot \lambda(1) \lambda(2) \dots \lambda(t)`.

    Args:
        optimizer: the optimizer whose learning rates are set.
        lr_lambda: a function that takes the number of steps and returns the factor of this step, a finite number, or a
            list with one function for each parameter group. The last function also applies to groups that are added
            later. In a configuration: an expression in `epoch`, such as `"0.95 if epoch < 100 else 1"`, or the name of
            a function that a plugin registers.
        last_epoch: index of the last step; -1 to start.
        min_lr_ratio: the learning rate is not below this fraction of the base learning rate, in [0, 1].

    Raises:
        HyperparameterError: the number of functions is not the number of groups; `last_epoch` or `min_lr_ratio` is out
            of range; in a step, a function returns infinity or NaN.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown; in a step, a function does not
            return a number.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.

    As in torch, `step(epoch)` multiplies the current learning rate by the factor of that step only. torch's
    `SequentialLR` calls `step(0)` at a milestone, so that the schedule continues from the current learning rate there.
    """

    cases = ({"lr_lambda": "0.95"}, {"lr_lambda": "0.5 if epoch % 10 == 0 else 1.02", "min_lr_ratio": 0.2})

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
        *,
        min_lr_ratio: float = 0.0,
    ) -> None:
        super().__init__(optimizer, lr_lambda, last_epoch, min_lr_ratio=min_lr_ratio)

    def products(self, t: int) -> list[float]:
        """Return the product of the values of each group's function up to step `t`."""
        reached: int
        products: list[float]
        reached, products = vars(self).get("_products", (0, []))
        if t < reached or len(products) != len(self.lr_lambdas):
            reached, products = 0, [1.0] * len(self.lr_lambdas)
        for step in range(reached + 1, t + 1):
            products = [a * b for a, b in zip(products, self.values(step), strict=True)]
        self._products = max(t, 0), products
        return products

    def multipliers(self, t: int) -> list[float]:
        return [self.above_floor(product) for product in self.products(t)]

    def ratios(self, t: int) -> list[float | None]:
        if self.min_lr_ratio:
            return super().ratios(t)
        return [1.0] * len(self.lr_lambdas) if self._is_initial and t == 0 else list(self.values(t))

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        # As in torch, `step(epoch)` multiplies the current learning rate, also at a milestone of `SequentialLR`.
        return self.next_lrs() if self._get_lr_called_within_step else super()._get_closed_form_lr()

    def state_dict(self) -> dict[str, Any]:
        """The state, without the optimizer. `lr_lambdas` has the attributes of objects, and None for functions."""
        return {key: value for key, value in super().state_dict().items() if key != "_products"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of torch's.

        Raises:
            ConfigError: the state is from another class, or its functions do not fit.
        """
        super().load_state_dict(state_dict)
        vars(self).pop("_products", None)
