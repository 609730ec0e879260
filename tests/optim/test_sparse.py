"""Sparse gradients: SGD, Adagrad and SparseAdam follow torch; the other optimizers raise errors.

The error of a trajectory is max|a - b| / max|moved| after 50 steps, with a learning rate that changes midway, and for
each state max|a - b| / max|b|. Run as a script, this file prints the largest errors.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import math
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optplug

sys.path.append(str(Path(__file__).parents[1]))  # when this file is run as a program
from support import TORCH

ENGINES = ("loop", "foreach", "auto")
LIMITS = {torch.float64: 1e-11, torch.float32: 2e-5}
CLASSES = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "sparse_adam": torch.optim.SparseAdam}
WITHOUT_SPARSE_SUPPORT = {
    "adadelta": torch.optim.Adadelta,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "asgd": torch.optim.ASGD,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "adagrad": {"lr": 0.1, "lr_decay": 0.05, "initial_accumulator_value": 0.3, "eps": 0.1, "maximize": True},
    "sparse_adam": {"lr": 0.1, "betas": (0.8, 0.9), "eps": 0.1, "maximize": True},
}
OPTIONS_WITH_STATE: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    "adagrad": {"lr": 0.1, "lr_decay": 0.05, "initial_accumulator_value": 0.3},
    "sparse_adam": {"lr": 0.1, "betas": (0.8, 0.9)},
}


def option_combinations(name: str) -> Iterator[dict[str, Any]]:
    """Yield every option that changes results, alone and with the others."""
    if name == "sgd":
        momentum = {"momentum": 0.9}
        for form in ({}, momentum, {**momentum, "dampening": 0.3}, {**momentum, "nesterov": True}):
            # With the default lr of 1e-3, 50 steps change a float32 parameter by so few units in the last place that
            # the error of torch's float32 trajectory against its float64 one is 5e-5.
            yield from ({**form, "lr": 0.05}, {**form, "lr": 0.2, "maximize": True})
    else:
        yield {}
        yield from ({key: value} for key, value in OPTIONS[name].items())
        yield OPTIONS[name]
        yield {key: value for key, value in OPTIONS[name].items() if key != "maximize"}


def label(options: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in options.items()).replace(" ", "") or "default"


def reference_options(name: str) -> dict[str, Any]:
    """Return the options that select the reference implementation in torch, for optimizers that have several."""
    return {} if name == "sparse_adam" else {"foreach": False}


@pytest.fixture(autouse=True)
def checked_sparse_tensors_and_one_thread():
    """Let torch check the invariants of every sparse tensor, and run in one thread because all tensors are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.sparse.check_sparse_tensor_invariants():
        yield
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------- gradients


@functools.cache
def gradient(shape: tuple[int, ...], sparse_dims: int, seed: int) -> Tensor:
    """Return a sparse gradient of a few rows; by seed with repeated rows, coalesced, or without rows."""
    generator = torch.Generator().manual_seed(seed)
    kind = seed % 5
    count = 0 if kind == 4 else 4
    indices = torch.stack([torch.randint(0, n, (count,), generator=generator) for n in shape[:sparse_dims]])
    values = torch.randn((count, *shape[sparse_dims:]), generator=generator, dtype=torch.float64)
    g = torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)
    return g.coalesce() if kind == 1 else g


PARAMS = (((6, 3), 1), ((9,), 1), ((4, 3, 2), 2), ((3, 4), 2))
"""The shape of each parameter, and the number of sparse dimensions of its gradients."""


class Trajectory:
    """Parameters and an optimizer, ours or torch's, that take the same 50 steps."""

    def __init__(self, cls: Any, dtype: torch.dtype, **options: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = [
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
            for shape, _ in PARAMS
        ]
        self.initial = [p.detach().clone() for p in self.params]
        self.optimizer = cls([{"params": self.params[:2]}, {"params": self.params[2:]}], **options)

    def run_steps(self, start: int = 0, stop: int = 50) -> Trajectory:
        for step in range(start, stop):
            for i, (p, (shape, sparse_dims)) in enumerate(zip(self.params, PARAMS, strict=True)):
                absent = (i == 1 and step < 7) or (i == 3 and step % 10 == 3)
                p.grad = None if absent else gradient(shape, sparse_dims, 97 * step + i).to(p.dtype, copy=True)
            if step == 25:
                group = self.optimizer.param_groups[0]
                group["lr"] = group["lr"] * 0.3
            self.optimizer.step()
        return self

    def resume(self, first: Trajectory) -> Trajectory:
        for p, q in zip(self.params, first.params, strict=True):
            p.data.copy_(q.data)
        self.optimizer.load_state_dict(save_and_load(first.optimizer))
        return self

    def error(self, other: Trajectory) -> float:
        """Return the largest error of parameters and states."""
        distance, size = {}, {}

        def compare(what: str, a: Tensor, b: Tensor, origin: Tensor | float) -> None:
            assert a.layout == b.layout, what
            a, b = a.detach().to_dense(), b.detach().to_dense()
            distance[what] = max(distance.get(what, 0.0), float((a - b).abs().max()))
            size[what] = max(size.get(what, 0.0), float((b - origin).abs().max()))

        for p, q, origin in zip(self.params, other.params, other.initial, strict=True):
            compare("p", p, q, origin)
            ours, theirs = self.optimizer.state.get(p, {}), other.optimizer.state.get(q, {})
            assert ours.keys() == theirs.keys()
            for name in theirs:
                compare(name, torch.as_tensor(ours[name]), torch.as_tensor(theirs[name]), 0.0)
        assert size["p"] > 0, "nothing moved"
        return max(distance[what] / size[what] for what in distance)


def save_and_load(optimizer: Any) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@functools.cache
def trajectory_of_torch(name: str, dtype: torch.dtype, options: tuple[tuple[str, Any], ...]) -> Trajectory:
    """Return the trajectory of torch's optimizer. It is cached because both engines are compared with it."""
    return Trajectory(CLASSES[name], dtype, **reference_options(name), **dict(options)).run_steps()


def largest_error(name: str, engine: str, dtype: torch.dtype) -> tuple[float, str]:
    """Return the largest error over all combinations of options, and the combination."""
    errors = []
    for options in option_combinations(name):
        ours = Trajectory(optplug.get_optimizer(name), dtype, engine=engine, **options).run_steps()
        errors.append((ours.error(trajectory_of_torch(name, dtype, tuple(options.items()))), label(options)))
    return max(errors)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CLASSES)
def test_every_combination_of_options_matches_torch(name, engine, dtype, record_difference):
    error, options = largest_error(name, engine, dtype)
    record_difference(f"{name}, sparse gradients", dtype, error)
    assert error <= LIMITS[dtype], options


# ---------------------------------------------------------------------------------------------- single tensors


def run(cls: Any, grads: list[Tensor], p: Tensor, **options: Any) -> tuple[Tensor, Any]:
    """Step one parameter with each gradient in turn, and check that the gradients are not modified."""
    p = p.detach().clone().requires_grad_()
    optimizer = cls([p], **options)
    for g in grads:
        p.grad = g.clone() if g.layout is torch.strided else copy.deepcopy(g)
        optimizer.step()
        assert is_identical(p.grad, g), "the gradient was modified"
    return p.detach(), optimizer


def is_identical(a: Tensor, b: Tensor) -> bool:
    """Whether tensors are equal bit for bit; for sparse ones including the order of rows and `is_coalesced`."""
    if a.layout is torch.strided:
        return torch.equal(a, b)
    return (
        a.is_coalesced() == b.is_coalesced()
        and torch.equal(a._indices(), b._indices())
        and torch.equal(a._values(), b._values())
    )


def rows(shape: tuple[int, ...], index: list[Any], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a random gradient with the given row indices, which may repeat."""
    indices = torch.tensor(index if isinstance(index[0], list) else [index])
    values = torch.randn(
        (indices.shape[1], *shape[len(indices) :]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return torch.sparse_coo_tensor(indices, values.to(dtype), shape)


NAMES_AND_OPTIONS: list[Any] = [
    pytest.param(name, options, id=f"{name}-{label(options)}")
    for name, several in {
        "sgd": [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}, OPTIONS_WITH_STATE["sgd"]],
        "adagrad": [{}, OPTIONS_WITH_STATE["adagrad"]],
        "sparse_adam": [{}, OPTIONS_WITH_STATE["sparse_adam"]],
    }.items()
    for options in several
]


WITH_DENSE_SUPPORT = [case for case in NAMES_AND_OPTIONS if case.values[0] != "sparse_adam"]


def assert_close(a: Tensor, b: Tensor, limit: float = 1e-11) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= limit


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "options"), NAMES_AND_OPTIONS)
def test_gradients_of_unusual_shapes_match_torch(name, options, engine):
    def scalar(value: float) -> Tensor:
        return torch.sparse_coo_tensor(torch.empty((0, 1), dtype=torch.long), torch.tensor([value]).double(), ())

    def empty(*shape: int) -> Tensor:
        return torch.sparse_coo_tensor(
            torch.empty((1, 0), dtype=torch.long), torch.empty(0, *shape[1:]).double(), shape
        )

    dense = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dense[1] = 0
    cases = {
        "no dimensions": [scalar(1.0), scalar(-2.0), scalar(0.5)],
        "empty first": [empty(4, 3), rows((4, 3), [0, 2], 1), empty(4, 3), rows((4, 3), [1], 2)],
        "always empty": [empty(4, 3)] * 3,
        "fully sparse": [dense.to_sparse(), (dense * 2).roll(1, 0).to_sparse(), dense.to_sparse()],
        "two sparse dimensions": [rows((4, 3, 2), [[0, 3, 0], [1, 2, 1]], s) for s in (1, 2, 3)],
    }
    for what, grads in cases.items():
        start = torch.ones(grads[0].shape, dtype=torch.float64)
        theirs, _ = run(CLASSES[name], grads, start, **options)
        ours, _ = run(optplug.get_optimizer(name), grads, start, engine=engine, **options)
        assert_close(ours, theirs)
        assert what == "always empty" or not torch.equal(theirs, start), what


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "options"), NAMES_AND_OPTIONS)
def test_embeddings_train_like_with_torch(name, options, engine):
    def train(cls: Any, **more: Any) -> list[Tensor]:
        torch.manual_seed(0)
        words, bags = nn.Embedding(12, 4, sparse=True).double(), nn.EmbeddingBag(9, 4, mode="sum", sparse=True).double()
        start = [words.weight.detach().clone(), bags.weight.detach().clone()]
        optimizer = cls([*words.parameters(), *bags.parameters()], **options, **more)
        for step in range(10):
            optimizer.zero_grad()
            tokens = torch.randint(0, 12, (3, 5), generator=torch.Generator().manual_seed(step))
            loss = (words(tokens).sum(1) * bags(tokens % 9)).tanh().mean()
            loss.backward()
            assert words.weight.grad.is_sparse and bags.weight.grad.is_sparse  # noqa: PT018
            optimizer.step()
        assert all(not torch.equal(p, q) for p, q in zip((words.weight, bags.weight), start, strict=True))
        return [words.weight.detach(), bags.weight.detach()]

    for ours, theirs in zip(
        train(optplug.get_optimizer(name), engine=engine),
        train(CLASSES[name], **reference_options(name)),
        strict=True,
    ):
        assert_close(ours, theirs)


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_of_parameters_with_different_step_counts_use_their_own_scalars(engine):
    def train(cls: Any, **more: Any) -> list[Tensor]:
        params = [torch.ones(6, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        optimizer = cls(params, lr=0.1, **more)
        for step in range(5):
            params[0].grad = rows((6, 2), [step, 5, 2], step)
            params[1].grad = rows((6, 2), [1, 3, step], 50 + step) if step >= 2 else None  # stepped fewer times
            optimizer.step()
        return [p.detach() for p in params]

    for ours, theirs in zip(
        train(optplug.get_optimizer("sparse_adam"), engine=engine), train(torch.optim.SparseAdam), strict=True
    ):
        assert_close(ours, theirs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "options"), WITH_DENSE_SUPPORT)
def test_group_may_mix_sparse_and_dense_gradients(name, options, engine):
    def train(cls: Any, **more: Any) -> list[Tensor]:
        params = [torch.ones(5, 2, dtype=torch.float64, requires_grad=True) for _ in range(4)]
        optimizer = cls(params, **options, **more)
        for step in range(6):
            for i, p in enumerate(params):
                g = rows((5, 2), [step % 5, 3, 3], 10 * step + i)
                p.grad = g.to_dense() if i % 2 else g
            optimizer.step()
        return [p.detach() for p in params]

    for ours, theirs in zip(
        train(optplug.get_optimizer(name), engine=engine),
        train(CLASSES[name], **reference_options(name)),
        strict=True,
    ):
        assert_close(ours, theirs)


@pytest.mark.parametrize("order", ["sd", "ds", "sdsd", "dsds", "ssds"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "options"), WITH_DENSE_SUPPORT)
def test_alternating_dense_and_sparse_gradients_step_like_dense_ones(name, options, engine, order):
    mixed = [rows((5, 2), [step % 5, 3, 3], step) for step in range(len(order))]
    dense = [g.to_dense() for g in mixed]
    mixed = [d if kind == "d" else g for kind, d, g in zip(order, dense, mixed, strict=True)]
    start = torch.ones(5, 2, dtype=torch.float64)
    ours, optimizer = run(optplug.get_optimizer(name), mixed, start, engine=engine, **options)
    theirs, _ = run(CLASSES[name], dense, start, **reference_options(name), **options)
    assert_close(ours, theirs)
    for state in optimizer.state.values():
        assert all(value.layout is torch.strided for value in state.values())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "options"), WITH_DENSE_SUPPORT)
def test_complex_sparse_gradients_step_like_dense_ones_in_torch(name, options, engine):
    # torch's Adagrad squares sparse gradients as complex numbers, but dense ones by real and imaginary part. Ours
    # squares both by real and imaginary part.
    grads = [rows((5, 2), [step % 5, 3, 3], step) for step in range(8)]
    grads = [torch.sparse_coo_tensor(g._indices(), torch.complex(g._values(), 1 - g._values()), g.shape) for g in grads]
    start = torch.ones(5, 2, dtype=torch.complex128)
    ours, _ = run(optplug.get_optimizer(name), grads, start, engine=engine, **options)
    theirs, _ = run(CLASSES[name], [g.to_dense() for g in grads], start, **reference_options(name), **options)
    assert_close(ours, theirs)
    if name == "sgd":
        assert_close(ours, run(CLASSES[name], grads, start, **reference_options(name), **options)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("engine", ["loop", "foreach"])  # `auto` uses different engines for dense and sparse gradients
@pytest.mark.parametrize(("name", "options"), NAMES_AND_OPTIONS)
def test_half_precision_rows_step_like_dense_parameters(name, options, engine, dtype):
    # With a mantissa of 8 bits, 1 - 1e-3 rounds to 1; in float16, 1e-8 rounds to 0.
    options = {**options, "lr": 0.1, **({"eps": 1e-3} if name == "sparse_adam" else {})}
    cls, indices = optplug.get_optimizer(name), [1, 3, 4]
    grads = [rows((5, 2), indices, step, dtype) for step in range(8)]
    start = torch.ones(5, 2, dtype=dtype)
    sparse, _ = run(cls, grads, start, engine=engine, **options)
    dense = [g.to_dense()[indices] for g in grads]
    if name == "sparse_adam":
        dense = [g.to_sparse(1) for g in dense]
    whole, _ = run(cls, dense, start[indices], engine=engine, **options)
    assert torch.equal(sparse[indices], whole)
    assert torch.equal(sparse[[0, 2]], start[[0, 2]])
    assert int((whole != 1).sum()) >= 5


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "options"), NAMES_AND_OPTIONS)
def test_non_contiguous_parameters_match_torch(name, options, engine):
    def train(cls: Any, **more: Any) -> Tensor:
        whole = torch.ones(3, 10, dtype=torch.float64)
        p = whole.T[::2].requires_grad_()  # 5 x 3
        assert not p.is_contiguous()
        optimizer = cls([p], **options, **more)
        for step in range(6):
            p.grad = rows((5, 3), [step % 5, 3, 3], step)
            optimizer.step()
        return whole

    ours, theirs = (
        train(optplug.get_optimizer(name), engine=engine),
        train(CLASSES[name], **reference_options(name)),
    )
    assert_close(ours, theirs)
    assert torch.equal(ours.T[1::2], torch.ones(5, 3, dtype=torch.float64))
    assert not torch.equal(ours, torch.ones_like(ours))


# --------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("direction", ["torch to optplug", "optplug to torch"])
def test_state_dicts_can_be_exchanged_with_torch(name, engine, direction, dtype):
    ours, theirs = (optplug.get_optimizer(name), {"engine": engine}), (CLASSES[name], reference_options(name))
    (first_cls, first_options), (then_cls, then_options) = (
        (theirs, ours) if direction.startswith("torch") else (ours, theirs)
    )
    first = Trajectory(first_cls, dtype, **OPTIONS_WITH_STATE[name], **first_options).run_steps(0, 20)
    then = Trajectory(then_cls, dtype, **then_options).resume(first).run_steps(20)  # with the loaded hyperparameters
    uninterrupted = Trajectory(CLASSES[name], dtype, **OPTIONS_WITH_STATE[name], **reference_options(name)).run_steps()
    assert then.error(uninterrupted) <= LIMITS[dtype]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CLASSES)
def test_resumed_copied_and_pickled_optimizers_equal_the_uninterrupted_one(name, engine):
    cls = optplug.get_optimizer(name)
    uninterrupted = Trajectory(cls, torch.float64, **OPTIONS_WITH_STATE[name], engine=engine).run_steps()
    first = Trajectory(cls, torch.float64, **OPTIONS_WITH_STATE[name], engine=engine).run_steps(0, 20)
    results = [Trajectory(cls, torch.float64, engine=engine).resume(first)]
    results += [copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    for then in results:
        assert then.optimizer.engine == engine
        then.run_steps(20)
        assert then.error(uninterrupted) == 0.0
    assert first.error(uninterrupted) > 0, "copies share memory"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CLASSES)
def test_names_dtypes_and_layouts_of_states_equal_those_of_torch(name, engine, dtype):
    def states(cls: Any, **more: Any) -> Any:
        grads = [rows((5, 2), [step, 3, 3], step, dtype) for step in range(2)]
        _, optimizer = run(cls, grads, torch.ones(5, 2, dtype=dtype), **OPTIONS_WITH_STATE[name], **more)
        state = optimizer.state_dict()["state"][0]
        return {
            key: (value.dtype, value.layout, value.shape) if isinstance(value, Tensor) else (type(value), value)
            for key, value in state.items()
        }

    ours = states(optplug.get_optimizer(name), engine=engine)
    assert ours == states(CLASSES[name], **reference_options(name))
    assert ours.get("step", (int, 2)) == (int, 2) or name == "adagrad"


@pytest.mark.parametrize("engine", ENGINES)
def test_momentum_buffer_is_coalesced_while_that_of_torch_grows(engine):
    ours = Trajectory(
        optplug.get_optimizer("sgd"), torch.float64, engine=engine, **OPTIONS_WITH_STATE["sgd"]
    ).run_steps()
    torchs = Trajectory(torch.optim.SGD, torch.float64, foreach=False, **OPTIONS_WITH_STATE["sgd"]).run_steps()
    for p, q, (shape, sparse_dims) in zip(ours.params, torchs.params, PARAMS, strict=True):
        buffer = ours.optimizer.state[p]["momentum_buffer"]
        assert buffer.is_coalesced()
        assert buffer._nnz() <= math.prod(shape[:sparse_dims]) < torchs.optimizer.state[q]["momentum_buffer"]._nnz()


@pytest.mark.parametrize("name", CLASSES)
def test_engine_report_mentions_rows_of_sparse_gradients(name):
    cls = optplug.get_optimizer(name)
    _, optimizer = run(cls, [rows((5, 2), [1], 0)], torch.ones(5, 2, dtype=torch.float64))
    (report,) = optimizer.engine_report()
    assert report.engine == "numba"
    assert "rows of sparse gradients" in report.reason


@pytest.mark.parametrize("name", CLASSES)
def test_options_from_the_tests_of_torch_match_torch(name):
    # From torch's tests of SparseAdam. lr is a float64 tensor because a float32 tensor would round torch's scalars.
    for options in ({}, {"lr": 0.01}, {"lr": torch.tensor(0.001, dtype=torch.float64)}, {"maximize": True}):
        grads = [rows((5, 2), [step % 5, 3, 3], step) for step in range(10)]
        start = torch.ones(5, 2, dtype=torch.float64)
        theirs, _ = run(CLASSES[name], grads, start, **options)
        for engine in ENGINES:
            assert_close(run(optplug.get_optimizer(name), grads, start, engine=engine, **options)[0], theirs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CLASSES)
def test_float32_tensor_as_lr_steps_float64_parameters(name, engine):
    options = {**OPTIONS_WITH_STATE[name], "lr": torch.tensor(0.01)}
    ours = Trajectory(optplug.get_optimizer(name), torch.float64, engine=engine, **copy.deepcopy(options)).run_steps()
    assert (
        ours.error(Trajectory(CLASSES[name], torch.float64, **reference_options(name), **options).run_steps()) <= 1e-7
    )


# ------------------------------------------------------------------------------------------------ errors


def error_messages(
    cls: Any, torch_cls: Any, step: Callable[[Any], None], error: type[Exception], **options: Any
) -> list[str]:
    """Return the message of torch's optimizer, then that of ours with each engine; all must be of type `error`."""
    messages = []
    for each, more in ((torch_cls, {}), *((cls, {"engine": engine}) for engine in (*ENGINES, "auto"))):
        with pytest.raises(error) as caught:
            step(lambda p, each=each, more=more: each([p], **options, **more))
        messages.append(str(caught.value))
    return messages


def step_with(make_gradient: Callable[[], Tensor]) -> Callable[[Any], None]:
    """Return a function that steps one parameter and checks that it does not change."""

    def step(make: Any) -> None:
        p = torch.ones(5, 2, requires_grad=True)
        optimizer = make(p)
        p.grad = make_gradient()
        try:
            optimizer.step()
        finally:
            assert torch.equal(p, torch.ones(5, 2)), "the parameter changed before the error"

    return step


def make_sparse_gradient() -> Tensor:
    return rows((5, 2), [1, 3], 0, torch.float32)


@pytest.mark.parametrize("name", WITHOUT_SPARSE_SUPPORT)
def test_unsupported_sparse_gradients_raise_with_the_message_of_torch(name):
    theirs, *ours = error_messages(
        optplug.get_optimizer(name), WITHOUT_SPARSE_SUPPORT[name], step_with(make_sparse_gradient), RuntimeError
    )
    if name == "adamw" and TORCH >= (2, 8):  # torch's AdamW derives from Adam, and its message says Adam
        theirs = theirs.replace("Adam does", "AdamW does")
    elif name == "adamw":
        theirs += ", please consider SparseAdam instead"  # torch 2.6: the message of AdamW lacks the advice
    assert set(ours) == {theirs}
    assert "does not support sparse gradients" in theirs


def test_sparse_adam_with_dense_gradients_raises_with_the_message_of_torch():
    theirs, *ours = error_messages(
        optplug.get_optimizer("sparse_adam"), torch.optim.SparseAdam, step_with(lambda: torch.ones(5, 2)), RuntimeError
    )
    assert set(ours) == {theirs}


def test_adagrad_with_weight_decay_and_sparse_gradients_raises_with_the_message_of_torch():
    for decay in ({"weight_decay": 0.1}, {"weight_decay": 0.1, "maximize": True}):
        theirs, *ours = error_messages(
            optplug.get_optimizer("adagrad"),
            torch.optim.Adagrad,
            step_with(make_sparse_gradient),
            RuntimeError,
            **decay,
        )
        assert all(text.startswith(theirs) for text in ours)
        assert theirs == "weight_decay option is not compatible with sparse gradients"


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_weight_decay_with_sparse_gradients_raises(name, decoupled, engine):
    cls, options = optplug.get_optimizer(name), {"weight_decay": 0.1, "decoupled_weight_decay": decoupled}
    with pytest.raises(RuntimeError, match=r"^weight_decay option is not compatible with sparse gradients"):
        step_with(make_sparse_gradient)(lambda p: cls([p], engine=engine, **options))


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("name", ["sgd", "adagrad", "sparse_adam", "adam"])
def test_parameters_of_sparse_layouts_raise(name):
    p = torch.ones(5, 2).to_sparse_csr().requires_grad_()
    with pytest.raises(ValueError, match="requires dense parameter tensors"):
        optplug.get_optimizer(name)([p])
    # torch does not accept a CSR gradient for a dense parameter.
    with pytest.raises(RuntimeError, match="data of a different type"):
        torch.ones(5, 2, requires_grad=True).grad = torch.ones(5, 2).to_sparse_csr()


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_sparse_adam_with_sparse_or_complex_parameters_raises_with_the_message_of_torch(layout):
    bad = [torch.zeros(3, 2, layout=layout), torch.zeros(3, dtype=torch.complex64)]
    for p in bad[layout is torch.sparse_csr :] if layout is torch.sparse_csr else bad:
        messages = []
        for cls in (torch.optim.SparseAdam, optplug.get_optimizer("sparse_adam")):
            with pytest.raises(ValueError, match="params at indices") as caught:
                cls([torch.zeros(2), p])
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_one_unsupported_gradient_leaves_the_whole_group_unchanged():
    for name, good, bad in (
        ("sparse_adam", make_sparse_gradient, lambda: torch.ones(5, 2)),
        ("adam", lambda: torch.ones(5, 2), make_sparse_gradient),
    ):
        params = [torch.ones(5, 2, requires_grad=True) for _ in range(2)]
        optimizer = optplug.get_optimizer(name)(params)
        params[0].grad, params[1].grad = good(), bad()
        with pytest.raises(RuntimeError, match="does not support"):
            optimizer.step()
        assert all(torch.equal(p, torch.ones(5, 2)) for p in params)
        assert not any(optimizer.state.values())


def ones_in_rows(*indices: int, size: int = 6) -> Tensor:
    values = torch.ones(len(indices), 2)
    return torch.sparse_coo_tensor(torch.tensor([indices]), values, (size, 2), check_invariants=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_errors_are_raised_before_any_parameter_changes(engine):
    plain, expanded = torch.ones(6, 2).requires_grad_(), torch.ones(1, 2).expand(6, 2).requires_grad_()
    optimizer = optplug.get_optimizer("sgd")([{"params": [plain]}, {"params": [expanded]}], lr=0.1)
    plain.grad, expanded.grad = ones_in_rows(1), ones_in_rows(2)
    # Engine foreach raises another error: the elements of the parameter share memory.
    with pytest.raises(RuntimeError, match=r"a single memory location|shares memory"):
        optimizer.step()
    assert torch.equal(plain.detach(), torch.ones(6, 2))

    optimizer = optplug.get_optimizer("sgd")([plain, other := torch.ones(6, 2).requires_grad_()], lr=0.1, momentum=0.9)
    plain.grad, other.grad = ones_in_rows(1), ones_in_rows(1)
    optimizer.step()
    before = plain.detach().clone()
    other.grad = torch.ones(6, 2).to_sparse(2)
    with pytest.raises(RuntimeError, match="2 sparse dimensions does not fit a state with 1"):
        optimizer.step()
    assert torch.equal(plain.detach(), before)


@pytest.mark.parametrize("start", ["sparse", "dense"])
@pytest.mark.parametrize("engine", ENGINES)
def test_fused_step_unscales_sparse_gradients(engine, start):
    p = torch.ones(6, 2).requires_grad_()
    optimizer = optplug.get_optimizer("sgd")([p], lr=0.1, momentum=0.9, engine=engine, fused=True)
    if start == "dense":
        p.grad = torch.ones(6, 2)
        optimizer.step()
    before = p.detach().clone()
    optimizer.grad_scale = torch.tensor(2.0)
    p.grad = ones_in_rows(1, 3) * 2
    optimizer.step()
    assert torch.equal(p.grad.to_dense(), ones_in_rows(1, 3).to_dense())
    moved = 0.1 * (ones_in_rows(1, 3).to_dense() + (0.9 if start == "dense" else 0.0))
    torch.testing.assert_close(before - p.detach(), moved)


if __name__ == "__main__":
    torch.sparse.check_sparse_tensor_invariants.enable()
    print(f"{'':12} {'engine':8} {'dtype':14} {'error':>8}  allowed  at")
    for name, engine, dtype in itertools.product(CLASSES, ENGINES, LIMITS):
        error, options = largest_error(name, engine, dtype)
        print(f"{name:12} {engine:8} {dtype!s:14} {error:8.1e}  {LIMITS[dtype]:7.0e}  {options}")
