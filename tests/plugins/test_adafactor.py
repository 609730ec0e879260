"""Adafactor: its errors, the default of `eps`, and dtypes. Its results are compared in test_optimizer_parity.py."""

from __future__ import annotations

import pytest
import torch

import optplug
from optplug.errors import HyperparameterError, HyperparameterTypeError, ParameterError, SparseGradientError

Adafactor = optplug.get_optimizer("adafactor")
ENGINES = ("loop", "foreach", "numba")
SHAPES = ((4, 3), (5,), (2, 3, 4), ())


def params_of(dtypes, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [p.to(dtypes[i % len(dtypes)]).requires_grad_() for i, p in enumerate(made)]


def stepped(cls, dtypes, size=1.0, steps=10, **options):
    """The parameters after some steps with gradients of a size, and their distance from the start."""
    params = params_of(dtypes)
    start = [p.detach().double().clone() for p in params]
    optimizer = cls(params, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in params:
            p.grad = (size * torch.randn(p.shape, generator=generator, dtype=torch.float64)).to(p.dtype)
        optimizer.step()
    return torch.cat([(p.detach().double() - q).flatten() for p, q in zip(params, start, strict=True)])


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -0.1},
        {"lr": torch.tensor([0.1, 0.2])},
        {"beta2_decay": 0.5},
        {"eps": (-1.0, 1e-3)},
        {"eps": (None, -1.0)},
        {"eps": (1e-8, -1.0)},
        {"d": 0.5},
        {"weight_decay": -0.1},
        {"lr": -0.1, "d": 0.5},
    ],
    ids=str,
)
def test_values_out_of_range_raise_with_the_message_of_torch(wrong):
    with pytest.raises(ValueError, match=r"should be|must be") as theirs:
        torch.optim.Adafactor([torch.zeros(1)], **wrong)
    with pytest.raises(HyperparameterError) as ours:
        Adafactor([torch.zeros(1)], **wrong)
    assert str(ours.value).startswith(str(theirs.value))
    with pytest.raises(HyperparameterError) as in_group:
        Adafactor([{"params": [torch.zeros(1)], **wrong}])
    assert str(in_group.value) == str(ours.value)


@pytest.mark.parametrize("eps", [(1e-8, None), (None, None), None, 1e-3, (None,), (None, 1e-3, 1.0), ("a", 1e-3)])
def test_eps_of_a_wrong_type_or_length_raises(eps):
    with pytest.raises((HyperparameterError, HyperparameterTypeError), match=r"eps"):
        Adafactor([torch.zeros(1)], eps=eps)


def test_both_values_of_eps_out_of_range_are_reported():
    with pytest.raises(HyperparameterError) as caught:
        Adafactor([torch.zeros(1)], eps=(-1.0, -2.0))
    messages = [str(error).partition(" (")[0] for error in caught.value.errors]
    assert messages == ["epsilon1 should be >= 0 but is: -1.0", "epsilon2 should be >= 0 but is: -2.0"]


def test_complex_parameters_and_sparse_gradients_raise_with_the_message_of_torch():
    for p, g, error in (
        (torch.zeros(3, 2, dtype=torch.complex64), torch.zeros(3, 2, dtype=torch.complex64), ParameterError),
        (torch.zeros(3, 2), torch.zeros(3, 2).to_sparse(), SparseGradientError),
    ):
        p.grad = g
        with pytest.raises(RuntimeError) as theirs:
            torch.optim.Adafactor([p]).step()
        with pytest.raises(error) as ours:
            Adafactor([p]).step()
        assert str(theirs.value) in str(ours.value)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_default_eps_is_the_machine_epsilon_of_the_dtype(dtype, size, engine):
    """It matters for gradients whose root mean square, or whose square, is below it."""
    ours, theirs = (
        stepped(cls, [dtype], size, **options)
        for cls, options in ((Adafactor, {"engine": engine}), (torch.optim.Adafactor, {}))
    )
    limit = 1e-11 if dtype is torch.float64 else 2e-5
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= limit
    fixed = stepped(Adafactor, [dtype], size, engine=engine, eps=(torch.finfo(dtype).eps, 1e-3))
    assert torch.equal(ours, fixed)


@pytest.mark.parametrize("engine", ENGINES)
def test_default_eps_depends_on_the_dtype_of_each_parameter(engine):
    """torch takes the machine epsilon of one parameter for the whole group, so each has its own group here."""
    dtypes = [torch.float64, torch.float32, torch.float32, torch.float64]
    ours = stepped(Adafactor, dtypes, 1e-7, engine=engine)
    theirs = stepped(lambda params: torch.optim.Adafactor([{"params": [p]} for p in params]), dtypes, 1e-7)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 2e-5
    in_one_group = stepped(torch.optim.Adafactor, dtypes, 1e-7)
    assert float((in_one_group - theirs).abs().max() / theirs.abs().max()) > 0.01


def test_default_eps_stays_none_in_groups_and_state_dicts():
    p = torch.ones(2, 2, requires_grad=True)
    p.grad = torch.ones(2, 2)
    optimizer = Adafactor([p])
    optimizer.step()
    assert optimizer.param_groups[0]["eps"] == (None, 1e-3)
    for cls in (Adafactor, torch.optim.Adafactor):
        other = cls([p], eps=(1e-8, 1.0))
        other.load_state_dict(optimizer.state_dict())
        other.step()
        assert other.param_groups[0]["eps"] == (None, 1e-3)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("state_dtype", [None, torch.float32], ids=str)
def test_bfloat16_is_as_accurate_as_torch(state_dtype, engine):
    """Compared with float64 on the same rounded parameters and gradients."""
    exact = stepped(Rounded, [torch.bfloat16], lr=0.1)
    ours = stepped(Adafactor, [torch.bfloat16], lr=0.1, engine=engine, state_dtype=state_dtype)
    theirs = stepped(torch.optim.Adafactor, [torch.bfloat16], lr=0.1)
    errors = [float((moved - exact).abs().mean() / exact.abs().mean()) for moved in (ours, theirs)]
    assert errors[0] <= 1.1 * errors[1]


class Rounded(torch.optim.Adafactor):
    """Steps bfloat16 parameters in float64, and writes the rounded result."""

    def __init__(self, params, **options):
        self.given = params
        super().__init__([p.detach().double().requires_grad_() for p in params], eps=(2**-7, 1e-3), **options)

    def step(self):
        for p, q in zip(self.given, self.param_groups[0]["params"], strict=True):
            q.grad = p.grad.double()
        super().step()
        for p, q in zip(self.given, self.param_groups[0]["params"], strict=True):
            p.data.copy_(q)


@pytest.mark.parametrize("engine", ENGINES)
def test_empty_parameters_are_stepped(engine):
    """torch divides by their number of elements."""
    params = [torch.zeros(shape, requires_grad=True) for shape in ((0, 3), (3, 0), (0,), (2, 2))]
    for p in params:
        p.grad = torch.ones_like(p)
    Adafactor(params, engine=engine).step()
    assert params[-1].isfinite().all()
    assert bool((params[-1] < 0).all())


def test_factored_states_are_small():
    p = torch.zeros(100, 200, requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = Adafactor([p])
    optimizer.step()
    shapes = {key: tuple(value.shape) for key, value in optimizer.state[p].items()}
    assert shapes == {"step": (), "row_var": (100, 1), "col_var": (1, 200)}
