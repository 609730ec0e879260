"""Sparse gradients against torch's: SGD, Adagrad and SparseAdam; what the others say to them.

The figure is that of tests/test_parity.py: max|a - b| / max|moved| after 50 steps, with a learning rate that changes
midway, and for each state max|a - b| / max|b|.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optplug

ENGINES = ("loop", "foreach")
LIMITS = {torch.float64: 1e-11, torch.float32: 2e-5}
TORCH = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "sparse_adam": torch.optim.SparseAdam}
REFUSE = {
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
STATEFUL: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    "adagrad": {"lr": 0.1, "lr_decay": 0.05, "initial_accumulator_value": 0.3},
    "sparse_adam": {"lr": 0.1, "betas": (0.8, 0.9)},
}


def combinations(name: str) -> Iterator[dict[str, Any]]:
    """Every option that changes numbers, alone and with the others."""
    if name == "sgd":
        momentum = {"momentum": 0.9}
        for form in ({}, momentum, {**momentum, "dampening": 0.3}, {**momentum, "nesterov": True}):
            # At the default lr of 1e-3, 50 steps are so few units in the last place of a float32 parameter that torch's
            # figure against itself in float64 is 5e-5.
            yield from ({**form, "lr": 0.05}, {**form, "lr": 0.2, "maximize": True})
    else:
        yield {}
        yield from ({key: value} for key, value in OPTIONS[name].items())
        yield OPTIONS[name]
        yield {key: value for key, value in OPTIONS[name].items() if key != "maximize"}


def label(options: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in options.items()).replace(" ", "") or "default"


def how(name: str) -> dict[str, Any]:
    """torch's reference form, for those that have several."""
    return {} if name == "sparse_adam" else {"foreach": False}


@pytest.fixture(autouse=True)
def checked():
    """torch checks every sparse tensor that is made, ours too (undecided, it warns), in one thread: all are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.sparse.check_sparse_tensor_invariants():
        yield
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------- gradients


@functools.cache
def gradient(shape: tuple[int, ...], sparse_dims: int, seed: int) -> Tensor:
    """A hybrid tensor of a few rows, in turn with repeated ones, without, and empty."""
    generator = torch.Generator().manual_seed(seed)
    kind = seed % 5
    count = 0 if kind == 4 else 4
    indices = torch.stack([torch.randint(0, n, (count,), generator=generator) for n in shape[:sparse_dims]])
    values = torch.randn((count, *shape[sparse_dims:]), generator=generator, dtype=torch.float64)
    g = torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)
    return g.coalesce() if kind == 1 else g


PARAMS = (((6, 3), 1), ((9,), 1), ((4, 3, 2), 2), ((3, 4), 2))
"""Shapes, and in how many dimensions their gradients are sparse."""


class Trajectory:
    """Parameters and an optimizer that take the same 50 steps whoever made it."""

    def __init__(self, cls: Any, dtype: torch.dtype, **options: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = [
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
            for shape, _ in PARAMS
        ]
        self.initial = [p.detach().clone() for p in self.params]
        self.optimizer = cls([{"params": self.params[:2]}, {"params": self.params[2:]}], **options)

    def go(self, start: int = 0, stop: int = 50) -> Trajectory:
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
        self.optimizer.load_state_dict(saved(first.optimizer))
        return self

    def figure(self, other: Trajectory) -> float:
        far, size = {}, {}

        def compare(what: str, a: Tensor, b: Tensor, origin: Tensor | float) -> None:
            assert a.layout == b.layout, what
            a, b = a.detach().to_dense(), b.detach().to_dense()
            far[what] = max(far.get(what, 0.0), float((a - b).abs().max()))
            size[what] = max(size.get(what, 0.0), float((b - origin).abs().max()))

        for p, q, origin in zip(self.params, other.params, other.initial, strict=True):
            compare("p", p, q, origin)
            ours, theirs = self.optimizer.state.get(p, {}), other.optimizer.state.get(q, {})
            assert ours.keys() == theirs.keys()
            for name in theirs:
                compare(name, torch.as_tensor(ours[name]), torch.as_tensor(theirs[name]), 0.0)
        assert size["p"] > 0, "nothing moved"
        return max(far[what] / size[what] for what in far)


def saved(optimizer: Any) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@functools.cache
def theirs(name: str, dtype: torch.dtype, options: tuple[tuple[str, Any], ...]) -> Trajectory:
    """Where torch's gets: both engines are held against it."""
    return Trajectory(TORCH[name], dtype, **how(name), **dict(options)).go()


def worst(name: str, engine: str, dtype: torch.dtype) -> tuple[float, str]:
    """The worst figure over all combinations, and where."""
    figures = []
    for options in combinations(name):
        ours = Trajectory(optplug.get_optimizer(name), dtype, engine=engine, **options).go()
        figures.append((ours.figure(theirs(name, dtype, tuple(options.items()))), label(options)))
    return max(figures)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
def test_every_option_follows_torch(name, engine, dtype):
    figure, where = worst(name, engine, dtype)
    print(f"{name:12} {engine:8} {dtype}: {figure:.1e} at {where}")
    assert figure <= LIMITS[dtype], where


# ---------------------------------------------------------------------------------------------- single tensors


def run(cls: Any, grads: list[Tensor], p: Tensor, **options: Any) -> tuple[Tensor, Any]:
    """Step one parameter by each gradient in turn, which must stay as it was; the last is left in `grad`."""
    p = p.detach().clone().requires_grad_()
    optimizer = cls([p], **options)
    for g in grads:
        p.grad = g.clone() if g.layout is torch.strided else copy.deepcopy(g)
        optimizer.step()
        assert same(p.grad, g), "the gradient has been touched"
    return p.detach(), optimizer


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, to the order of the rows and whether they are coalesced."""
    if a.layout is torch.strided:
        return torch.equal(a, b)
    return (
        a.is_coalesced() == b.is_coalesced()
        and torch.equal(a._indices(), b._indices())
        and torch.equal(a._values(), b._values())
    )


def rows(shape: tuple[int, ...], index: list[Any], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A gradient with the given rows, which may repeat."""
    indices = torch.tensor(index if isinstance(index[0], list) else [index])
    values = torch.randn(
        (indices.shape[1], *shape[len(indices) :]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return torch.sparse_coo_tensor(indices, values.to(dtype), shape)


FORMS: list[Any] = [
    pytest.param(name, options, id=f"{name}-{label(options)}")
    for name, several in {
        "sgd": [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}, STATEFUL["sgd"]],
        "adagrad": [{}, STATEFUL["adagrad"]],
        "sparse_adam": [{}, STATEFUL["sparse_adam"]],
    }.items()
    for options in several
]


def assert_close(a: Tensor, b: Tensor, limit: float = 1e-11) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= limit


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "options"), FORMS)
def test_a_tensor_without_dimensions_an_empty_gradient_and_a_fully_sparse_one_follow_torch(name, options, engine):
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
        theirs, _ = run(TORCH[name], grads, start, **options)
        ours, _ = run(optplug.get_optimizer(name), grads, start, engine=engine, **options)
        assert_close(ours, theirs)
        assert what == "always empty" or not torch.equal(theirs, start), what


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "options"), FORMS)
def test_embeddings_learn_as_with_torch(name, options, engine):
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
        train(optplug.get_optimizer(name), engine=engine), train(TORCH[name], **how(name)), strict=True
    ):
        assert_close(ours, theirs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "options"), [form for form in FORMS if form.values[0] != "sparse_adam"])
def test_sparse_and_dense_parameters_go_in_one_group(name, options, engine):
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
        train(optplug.get_optimizer(name), engine=engine), train(TORCH[name], **how(name)), strict=True
    ):
        assert_close(ours, theirs)


@pytest.mark.parametrize("order", ["sd", "ds", "sdsd", "dsds", "ssds"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "options"), [form for form in FORMS if form.values[0] != "sparse_adam"])
def test_dense_and_sparse_gradients_alternate_as_if_all_were_dense(name, options, engine, order):
    mixed = [rows((5, 2), [step % 5, 3, 3], step) for step in range(len(order))]
    dense = [g.to_dense() for g in mixed]
    mixed = [d if kind == "d" else g for kind, d, g in zip(order, dense, mixed, strict=True)]
    start = torch.ones(5, 2, dtype=torch.float64)
    ours, optimizer = run(optplug.get_optimizer(name), mixed, start, engine=engine, **options)
    theirs, _ = run(TORCH[name], dense, start, **how(name), **options)
    assert_close(ours, theirs)
    for state in optimizer.state.values():
        assert all(value.layout is torch.strided for value in state.values())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "options"), [form for form in FORMS if form.values[0] != "sparse_adam"])
def test_complex_sparse_gradients_are_taken_as_torch_takes_dense_ones(name, options, engine):
    # torch squares sparse ones as complex numbers in Adagrad, dense ones part by part; ours does the latter for both.
    grads = [rows((5, 2), [step % 5, 3, 3], step) for step in range(8)]
    grads = [torch.sparse_coo_tensor(g._indices(), torch.complex(g._values(), 1 - g._values()), g.shape) for g in grads]
    start = torch.ones(5, 2, dtype=torch.complex128)
    ours, _ = run(optplug.get_optimizer(name), grads, start, engine=engine, **options)
    theirs, _ = run(TORCH[name], [g.to_dense() for g in grads], start, **how(name), **options)
    assert_close(ours, theirs)
    if name == "sgd":
        assert_close(ours, run(TORCH[name], grads, start, **how(name), **options)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "options"), FORMS)
def test_half_precision_steps_the_named_rows_as_a_dense_step_would(name, options, engine, dtype):
    # A dtype of 8 bits sees no steps of 1e-3 from 1, and 1e-8 is 0 in float16.
    options = {**options, "lr": 0.1, **({"eps": 1e-3} if name == "sparse_adam" else {})}
    cls, named = optplug.get_optimizer(name), [1, 3, 4]
    grads = [rows((5, 2), named, step, dtype) for step in range(8)]
    start = torch.ones(5, 2, dtype=dtype)
    sparse, _ = run(cls, grads, start, engine=engine, **options)
    dense = [g.to_dense()[named] for g in grads]
    if name == "sparse_adam":
        dense = [g.to_sparse(1) for g in dense]
    whole, _ = run(cls, dense, start[named], engine=engine, **options)
    assert torch.equal(sparse[named], whole)
    assert torch.equal(sparse[[0, 2]], start[[0, 2]])
    assert int((whole != 1).sum()) >= 5


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "options"), FORMS)
def test_parameters_that_are_not_contiguous_follow_torch(name, options, engine):
    def train(cls: Any, **more: Any) -> Tensor:
        whole = torch.ones(3, 10, dtype=torch.float64)
        p = whole.T[::2].requires_grad_()  # 5 x 3
        assert not p.is_contiguous()
        optimizer = cls([p], **options, **more)
        for step in range(6):
            p.grad = rows((5, 3), [step % 5, 3, 3], step)
            optimizer.step()
        return whole

    ours, theirs = train(optplug.get_optimizer(name), engine=engine), train(TORCH[name], **how(name))
    assert_close(ours, theirs)
    assert torch.equal(ours.T[1::2], torch.ones(5, 3, dtype=torch.float64))
    assert not torch.equal(ours, torch.ones_like(ours))


# --------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("direction", ["ours continues torch's", "torch's continues ours"])
def test_state_dicts_are_exchanged(name, engine, direction, dtype):
    ours, theirs = (optplug.get_optimizer(name), {"engine": engine}), (TORCH[name], how(name))
    (first_cls, first_how), (then_cls, then_how) = (theirs, ours) if direction.startswith("ours") else (ours, theirs)
    first = Trajectory(first_cls, dtype, **STATEFUL[name], **first_how).go(0, 20)
    then = Trajectory(then_cls, dtype, **then_how).resume(first).go(20)  # the state dict brings the hyperparameters
    through = Trajectory(TORCH[name], dtype, **STATEFUL[name], **how(name)).go()
    assert then.figure(through) <= LIMITS[dtype]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
def test_interrupted_copied_and_pickled_equals_uninterrupted_bit_for_bit(name, engine):
    cls = optplug.get_optimizer(name)
    through = Trajectory(cls, torch.float64, **STATEFUL[name], engine=engine).go()
    first = Trajectory(cls, torch.float64, **STATEFUL[name], engine=engine).go(0, 20)
    results = [Trajectory(cls, torch.float64, engine=engine).resume(first)]
    results += [copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    for then in results:
        assert then.optimizer.engine == engine
        then.go(20)
        assert then.figure(through) == 0.0
    assert first.figure(through) > 0, "copies share memory"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
def test_names_dtypes_and_layouts_of_the_state_are_torchs(name, engine, dtype):
    def states(cls: Any, **more: Any) -> Any:
        grads = [rows((5, 2), [step, 3, 3], step, dtype) for step in range(2)]
        _, optimizer = run(cls, grads, torch.ones(5, 2, dtype=dtype), **STATEFUL[name], **more)
        state = optimizer.state_dict()["state"][0]
        return {
            key: (value.dtype, value.layout, value.shape) if isinstance(value, Tensor) else (type(value), value)
            for key, value in state.items()
        }

    ours = states(optplug.get_optimizer(name), engine=engine)
    assert ours == states(TORCH[name], **how(name))
    assert ours.get("step", (int, 2)) == (int, 2) or name == "adagrad"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_momentum_buffer_holds_each_row_once_where_torchs_grows(engine):
    ours = Trajectory(optplug.get_optimizer("sgd"), torch.float64, engine=engine, **STATEFUL["sgd"]).go()
    torchs = Trajectory(torch.optim.SGD, torch.float64, foreach=False, **STATEFUL["sgd"]).go()
    for p, q, (shape, sparse_dims) in zip(ours.params, torchs.params, PARAMS, strict=True):
        kept = ours.optimizer.state[p]["momentum_buffer"]
        assert kept.is_coalesced()
        assert kept._nnz() <= math.prod(shape[:sparse_dims]) < torchs.optimizer.state[q]["momentum_buffer"]._nnz()


@pytest.mark.parametrize("name", TORCH)
def test_the_report_tells_that_rows_are_stepped(name):
    cls = optplug.get_optimizer(name)
    _, optimizer = run(cls, [rows((5, 2), [1], 0)], torch.ones(5, 2, dtype=torch.float64))
    (report,) = optimizer.engine_report()
    assert report.engine == "numba"
    assert "rows of sparse gradients" in report.reason


@pytest.mark.parametrize("name", TORCH)
def test_what_torch_tests_its_sparse_optimizers_with_does_the_same_here(name):
    # SparseAdam's list; the others' are in tests/test_parity.py. A float32 tensor would round torch's scalars.
    for options in ({}, {"lr": 0.01}, {"lr": torch.tensor(0.001, dtype=torch.float64)}, {"maximize": True}):
        grads = [rows((5, 2), [step % 5, 3, 3], step) for step in range(10)]
        start = torch.ones(5, 2, dtype=torch.float64)
        theirs, _ = run(TORCH[name], grads, start, **options)
        for engine in ENGINES:
            assert_close(run(optplug.get_optimizer(name), grads, start, engine=engine, **options)[0], theirs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
def test_a_float32_tensor_as_lr_serves_float64_parameters(name, engine):
    options = {**STATEFUL[name], "lr": torch.tensor(0.01)}
    ours = Trajectory(optplug.get_optimizer(name), torch.float64, engine=engine, **copy.deepcopy(options)).go()
    assert ours.figure(Trajectory(TORCH[name], torch.float64, **how(name), **options).go()) <= 1e-7


# ------------------------------------------------------------------------------------------------ refusals


def texts(cls: Any, theirs: Any, step: Callable[[Any], None], error: type[Exception], **options: Any) -> list[str]:
    """What both say; ours with an error that is torch's type, too."""
    said = []
    for each, more in ((theirs, {}), *((cls, {"engine": engine}) for engine in (*ENGINES, "auto"))):
        with pytest.raises(error) as caught:
            step(lambda p, each=each, more=more: each([p], **options, **more))
        said.append(str(caught.value))
    return said


def a_step(gradient_of: Callable[[], Tensor]) -> Callable[[Any], None]:
    def step(make: Any) -> None:
        p = torch.ones(5, 2, requires_grad=True)
        optimizer = make(p)
        p.grad = gradient_of()
        try:
            optimizer.step()
        finally:
            assert torch.equal(p, torch.ones(5, 2)), "it moved before it refused"

    return step


def sparse_gradient() -> Tensor:
    return rows((5, 2), [1, 3], 0, torch.float32)


@pytest.mark.parametrize("name", REFUSE)
def test_the_others_refuse_sparse_gradients_in_torchs_words(name):
    theirs, *ours = texts(optplug.get_optimizer(name), REFUSE[name], a_step(sparse_gradient), RuntimeError)
    # torch's AdamW is an Adam and calls itself that.
    assert set(ours) == {theirs.replace("Adam does", "AdamW does") if name == "adamw" else theirs}
    assert "does not support sparse gradients" in theirs


def test_sparse_adam_refuses_dense_gradients_in_torchs_words():
    theirs, *ours = texts(
        optplug.get_optimizer("sparse_adam"), torch.optim.SparseAdam, a_step(lambda: torch.ones(5, 2)), RuntimeError
    )
    assert set(ours) == {theirs}


def test_adagrad_refuses_weight_decay_with_sparse_gradients_in_torchs_words():
    for decay in ({"weight_decay": 0.1}, {"weight_decay": 0.1, "maximize": True}):
        theirs, *ours = texts(
            optplug.get_optimizer("adagrad"), torch.optim.Adagrad, a_step(sparse_gradient), RuntimeError, **decay
        )
        assert all(text.startswith(theirs) for text in ours)
        assert theirs == "weight_decay option is not compatible with sparse gradients"


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_no_weight_decay_goes_with_sparse_gradients(name, decoupled, engine):
    cls, options = optplug.get_optimizer(name), {"weight_decay": 0.1, "decoupled_weight_decay": decoupled}
    with pytest.raises(RuntimeError, match=r"^weight_decay option is not compatible with sparse gradients"):
        a_step(sparse_gradient)(lambda p: cls([p], engine=engine, **options))


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("name", ["sgd", "adagrad", "sparse_adam", "adam"])
def test_gradients_of_other_sparse_layouts_are_refused(name):
    p = torch.ones(5, 2).to_sparse_csr().requires_grad_()
    with pytest.raises(ValueError, match="requires dense parameter tensors"):
        optplug.get_optimizer(name)([p])
    # autograd takes no CSR gradient for a dense parameter; something that hands one over is refused all the same
    with pytest.raises(RuntimeError, match="data of a different type"):
        torch.ones(5, 2, requires_grad=True).grad = torch.ones(5, 2).to_sparse_csr()


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_sparse_adam_refuses_sparse_and_complex_parameters_in_torchs_words(layout):
    bad = [torch.zeros(3, 2, layout=layout), torch.zeros(3, dtype=torch.complex64)]
    for p in bad[layout is torch.sparse_csr :] if layout is torch.sparse_csr else bad:
        said = []
        for cls in (torch.optim.SparseAdam, optplug.get_optimizer("sparse_adam")):
            with pytest.raises(ValueError, match="params at indices") as caught:
                cls([torch.zeros(2), p])
            said.append(str(caught.value))
        assert said[0] == said[1]


def test_one_refused_gradient_leaves_the_whole_group_as_it_was():
    for name, good, bad in (
        ("sparse_adam", sparse_gradient, lambda: torch.ones(5, 2)),
        ("adam", lambda: torch.ones(5, 2), sparse_gradient),
    ):
        params = [torch.ones(5, 2, requires_grad=True) for _ in range(2)]
        optimizer = optplug.get_optimizer(name)(params)
        params[0].grad, params[1].grad = good(), bad()
        with pytest.raises(RuntimeError, match="does not support"):
            optimizer.step()
        assert all(torch.equal(p, torch.ones(5, 2)) for p in params)
        assert not any(optimizer.state.values())


def rows_of(*numbers: int, size: int = 6) -> Tensor:
    values = torch.ones(len(numbers), 2)
    return torch.sparse_coo_tensor(torch.tensor([numbers]), values, (size, 2), check_invariants=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_refused_is_refused_before_any_parameter_moves(engine):
    plain, expanded = torch.ones(6, 2).requires_grad_(), torch.ones(1, 2).expand(6, 2).requires_grad_()
    optimizer = optplug.get_optimizer("sgd")([{"params": [plain]}, {"params": [expanded]}], lr=0.1)
    plain.grad, expanded.grad = rows_of(1), rows_of(2)
    # Engine foreach cannot take it for another reason: its elements share memory.
    with pytest.raises(RuntimeError, match=r"a single memory location|shares memory"):
        optimizer.step()
    assert torch.equal(plain.detach(), torch.ones(6, 2))

    optimizer = optplug.get_optimizer("sgd")([plain, other := torch.ones(6, 2).requires_grad_()], lr=0.1, momentum=0.9)
    plain.grad, other.grad = rows_of(1), rows_of(1)
    optimizer.step()
    before = plain.detach().clone()
    other.grad = torch.ones(6, 2).to_sparse(2)
    with pytest.raises(RuntimeError, match="2 sparse dimensions does not fit a state with 1"):
        optimizer.step()
    assert torch.equal(plain.detach(), before)


@pytest.mark.parametrize("start", ["sparse", "dense"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_scaler_that_leaves_it_to_the_step_finds_its_gradients_unscaled(engine, start):
    p = torch.ones(6, 2).requires_grad_()
    optimizer = optplug.get_optimizer("sgd")([p], lr=0.1, momentum=0.9, engine=engine, fused=True)
    if start == "dense":
        p.grad = torch.ones(6, 2)
        optimizer.step()
    before = p.detach().clone()
    optimizer.grad_scale = torch.tensor(2.0)
    p.grad = rows_of(1, 3) * 2
    optimizer.step()
    assert torch.equal(p.grad.to_dense(), rows_of(1, 3).to_dense())
    moved = 0.1 * (rows_of(1, 3).to_dense() + (0.9 if start == "dense" else 0.0))
    torch.testing.assert_close(before - p.detach(), moved)


if __name__ == "__main__":
    torch.sparse.check_sparse_tensor_invariants.enable()
    print(f"{'':12} {'engine':8} {'dtype':14} {'worst':>8}  allowed  at")
    for name, engine, dtype in itertools.product(TORCH, ENGINES, LIMITS):
        figure, where = worst(name, engine, dtype)
        print(f"{name:12} {engine:8} {dtype!s:14} {figure:8.1e}  {LIMITS[dtype]:7.0e}  {where}")
