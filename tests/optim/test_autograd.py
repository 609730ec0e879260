"""`differentiable=True`: autograd goes through steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("single_thread")

TENSOR_OPTIONS = {"sgd": ("weight_decay",), "adam": ("weight_decay",), "adamw": ("weight_decay",)}
"""The options besides lr that may be tensors."""

UNREACHED_INPUTS = {
    "asgd": {"ax", "lr"},  # lr affects `eta` only, which the next step uses
    "lion": {"g", "exp_avg"},  # a step uses only the sign of their mean
    "prodigy": {"p0", "s"},  # they affect d only, which grows in other steps than this one
    "signum": {"g", "momentum_buffer"},
    "rprop": {"g", "prev", "lr"},  # a step uses only the signs of gradients; lr is the initial step size
}
"""The inputs that the new parameter does not depend on, or not smoothly."""


def positive_input(seed: int, is_complex: bool = False, low: float = 0.5) -> Tensor:
    """Return positive numbers of at least `low`, away from 0, where rules may have no derivative."""
    generator = torch.Generator().manual_seed(seed)
    t = low + torch.rand(4, 2, generator=generator, dtype=torch.float64)
    return (torch.view_as_complex(t) if is_complex else t[:, 0].contiguous()).requires_grad_()


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.optimizers("dense")
def test_gradients_of_a_step_with_respect_to_all_inputs_are_correct(
    name, is_complex, full_state_options, make_run, tested_optimizers
):
    if is_complex and "complex" not in tested_optimizers[name].capabilities:
        pytest.skip("it takes no complex parameters")
    shape = tested_optimizers[name].fit_shape((4,))

    def make_input(seed: int, low: float = 0.5) -> Tensor:
        return positive_input(seed, is_complex, low).detach().view(shape).requires_grad_()

    run = make_run(name, [make_input(0)]).run_steps(0, 6)  # RAdam rectifies the seventh step
    filled = run.optimizer.state[run.params[0]]
    scalars = {key: value.double() for key, value in filled.items() if value.dim() == 0}
    state_names = [key for key in filled if key not in scalars]
    option_names = ("lr", *TENSOR_OPTIONS.get(name, ()))

    def step(p: Tensor, g: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        states, values = rest[: len(state_names)], rest[len(state_names) :]
        q = p.clone()
        run = make_run(name, [q], differentiable=True, **dict(zip(option_names, values, strict=True)))
        q.grad = g
        state = run.optimizer.state[q]
        state.update({key: value.clone() for key, value in scalars.items()})
        state.update({key: value.clone() for key, value in zip(state_names, states, strict=True)})
        run.optimizer.step()
        return (q, *(run.optimizer.state[q][key] for key in state_names))

    lows = [0.1 if key == "grad_avg" else 2.0 for key in state_names]  # the variance must stay positive
    states = [make_input(5 + i, low) for i, low in enumerate(lows)]
    options = [
        torch.tensor(full_state_options[name].get(key, 0.01), dtype=torch.float64, requires_grad=True)
        for key in option_names
    ]
    inputs = [make_input(1), make_input(2), *states, *options]
    assert torch.autograd.gradcheck(step, inputs)
    stepped = step(*inputs)[0]
    for i, (what, t) in enumerate(zip(("p", "g", *state_names, *option_names), inputs, strict=True)):
        (slope,) = torch.autograd.grad(stepped.abs().sum(), t, allow_unused=True, retain_graph=True)
        expected = what not in UNREACHED_INPUTS.get(name, set())
        assert (slope is not None and bool(slope.abs().sum() > 0)) == expected, f"input {i}, {what}"


@pytest.mark.optimizers("dense")
def test_gradient_of_lr_through_three_steps_is_correct(name, make_run, tested_optimizers):
    """The loss after three steps, from empty states on, as a function of lr."""

    def loss_after_steps(lr: Tensor) -> Tensor:
        start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).view(tested_optimizers[name].fit_shape((3,)))
        p = start.requires_grad_().clone()
        optimizer = make_run(name, [p], differentiable=True, lr=lr).optimizer
        for _ in range(3):
            q = p.clone()  # the loss saves its input, and the step modifies p in place
            (p.grad,) = torch.autograd.grad((q**4).sum(), q, create_graph=True)
            optimizer.step()
        return (p**2).sum()

    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss_after_steps, (lr,))
    assert torch.autograd.grad(loss_after_steps(lr), lr)[0].abs() > 1e-6
