"""`cautious`, `clip_value`, `clip_norm` and `agc` as options of an optimizer.

The conformance kit compares each of them with its definition; here are their combinations, special values and inputs.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
from typing import Any

import pytest
import torch

import optplug
from optplug.engines import engine_names
from optplug.errors import HyperparameterError, HyperparameterTypeError, SparseGradientError
from optplug.optim.options import OPTION_DEFAULTS
from optplug.rules.modifiers import CLIPS, MODIFIER_KEYS
from optplug.rules.trace import trace
from optplug.testing.checks import assert_close, max_difference, save_and_load
from optplug.testing.modifiers import MODIFIERS, modified_run, run_by_definition
from optplug.testing.trajectory import STEPS, OptimizerUnderTest, take_step
from support import first_party

pytestmark = pytest.mark.usefixtures("single_thread")

ENGINES = engine_names()[1:]
SUBSETS = [names for n in range(1, 5) for names in itertools.combinations(MODIFIERS, n)]


def supported(name: str) -> list[str]:
    return [key for key in MODIFIERS if not (name == "sparse_adam" and key == "agc")]


# ------------------------------------------------------------------------------------------------ definition


@pytest.mark.optimizers("without_closure", engines=True)
def test_combinations_match_their_definition(name, engine, full_state_options, tested_optimizers):
    subject = tested_optimizers[name]
    options = {**full_state_options.get(name, {}), "engine": engine}
    if name == "sparse_adam" and engine == "numba":
        options["engine"] = "auto"  # numba does not reduce sparse gradients
    plain = run_by_definition(subject, options, {}).params
    for keys in filter(set(supported(name)).issuperset, SUBSETS):
        modifiers = {key: MODIFIERS[key] for key in keys}
        run, expected = modified_run(subject, options, modifiers), run_by_definition(subject, options, modifiers)
        assert_close(f"{modifiers}", run.params, expected.params, expected.distance_moved)
        # The step sizes of these rules do not depend on the size of the gradient, and momentum may always descend.
        assert max_difference(run.params, plain) > 0 or name in ("lion", "rprop") or keys == ("cautious",)


UNITS_PER_STEP = 0.7
"""Allowed error per step, in units in the last place of the largest parameter: half a unit for storing the parameter,
and the rest for the states. The largest one measured is 0.5.
"""

LARGE_ENOUGH = {"prodigy": {"d0": 1.0}, "adadelta": {"eps": 0.01}, "soap": {"eps": 0.01}}
"""Options with which the squares are in the range of float16, and the steps are larger than its rounding errors."""


@pytest.mark.optimizers("without_closure", engines=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_all_modifiers_agree_with_loop_in_float64(name, engine, dtype, make_run, tested_optimizers):
    shapes = [tested_optimizers[name].fit_shape(shape) for shape in ((4, 3), (6,), ())]
    modifiers = {key: MODIFIERS[key] for key in supported(name)}
    if name == "sparse_adam" and engine == "numba":
        engine = "auto"

    def stepped(dtype_of_run: torch.dtype, **options: Any) -> Any:
        """Take steps with gradients of which every third is large."""
        params = [torch.randn(shape, generator=torch.Generator().manual_seed(5)) for shape in shapes]
        start = [p.to(dtype).to(dtype_of_run, copy=True).requires_grad_() for p in params]
        run = make_run(name, start, **LARGE_ENOUGH.get(name, {}), **options)
        run.dtype, run.rounded = dtype_of_run, dtype
        for step in range(STEPS):
            run.set_gradients(step)
            for p in run.params:
                if p.grad is not None:
                    p.grad = p.grad * (16 if step % 3 == 0 else 1)
            take_step(run.subject, run.optimizer, run.params)
        return run

    run, exact = stepped(dtype, engine=engine, **modifiers), stepped(torch.float64, engine="loop", **modifiers)
    limit = UNITS_PER_STEP * STEPS * torch.finfo(dtype).eps * max(float(p.detach().abs().max()) for p in exact.params)
    assert max_difference(run.params, exact.params) <= limit
    without_clips = stepped(torch.float64, engine="loop", cautious=True)
    # The test can fail: clipping changes the result by more. Rprop uses only the signs of gradients.
    assert max_difference(without_clips.params, exact.params) > limit or name == "rprop"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.optimizers("dense")
def test_complex_parameters_equal_their_real_view(name, engine, make_run, tested_optimizers):
    if "complex" not in tested_optimizers[name].capabilities:
        pytest.skip("it takes real parameters only")
    real = [torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(2)]
    runs = []
    for params in ([torch.view_as_complex(p.clone()) for p in real], [p.clone() for p in real]):
        run = make_run(name, [p.requires_grad_() for p in params], engine=engine, **MODIFIERS)
        runs.append(run.run_steps())
    views = [torch.view_as_real(p.detach()) for p in runs[0].params]
    assert_close("complex and real", views, runs[1].params, runs[1].distance_moved)


def test_cautious_momentum_keeps_its_states():
    p, q = (torch.tensor([1.0, 1.0], requires_grad=True) for _ in range(2))
    cautious = optplug.create_optimizer("sgd", [p], lr=0.1, momentum=0.9, cautious=True)
    plain = optplug.create_optimizer("sgd", [q], lr=0.1, momentum=0.9)
    for g in ([1.0, 1.0], [-0.5, 0.5]):
        p.grad = torch.tensor(g)
        q.grad = torch.tensor(g)
        cautious.step()
        plain.step()
    assert torch.equal(cautious.state[p]["momentum_buffer"], plain.state[q]["momentum_buffer"])
    assert p[0].item() == pytest.approx(0.9)  # momentum 0.4 would descend against the gradient -0.5
    assert p[1].item() == q[1].item()


# ------------------------------------------------------------------------------------------------ special values


def stepped(engine: str, values: list[float], grads: list[float], dtype=torch.float64, name="sgd", **options: Any):
    p = torch.tensor(values, dtype=dtype, requires_grad=True)
    p.grad = torch.tensor(grads, dtype=dtype)
    optplug.create_optimizer(name, [p], lr=options.pop("lr", 1.0), engine=engine, **options).step()
    return p.detach()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{key: MODIFIERS[key]} for key in MODIFIERS] + [dict(MODIFIERS)], ids=str)
@pytest.mark.parametrize("name", ["sgd", "adam", "adamax", "adagrad", "adadelta", "rmsprop", "asgd"])
def test_nan_in_the_gradient_is_not_hidden(engine, options, name):
    changed = stepped(engine, [1.0, 2.0, 3.0], [float("nan"), 1.0, -1.0], name=name, **options)
    plain = stepped(engine, [1.0, 2.0, 3.0], [float("nan"), 1.0, -1.0], name=name)
    assert changed[plain.isnan()].isnan().all()
    assert changed[0].isnan()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop"])
def test_zeros_give_no_nan(engine, name):
    for values, grads in (([0.0, 0.0], [0.0, 0.0]), ([0.0, 0.0], [1.0, 0.0]), ([1.0, 2.0], [0.0, 0.0])):
        assert not stepped(engine, values, grads, name=name, **MODIFIERS).isnan().any()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_cautious_does_not_depend_on_the_size_of_gradient_and_update(engine, dtype):
    """The product of gradient and update would be 0 in the dtype of the parameter."""
    tiny = torch.finfo(dtype).smallest_normal
    result = stepped(engine, [tiny * 8, tiny * 8], [tiny * 4, -tiny * 4], dtype, cautious=True)
    assert result.tolist() == [tiny * 4, tiny * 12]


@pytest.mark.parametrize("engine", ENGINES)
def test_gradient_whose_norm_is_the_limit_is_not_changed(engine):
    assert stepped(engine, [0.0, 0.0], [3.0, 4.0], clip_norm=5.0).tolist() == [-3.0, -4.0]
    assert stepped(engine, [0.0, 0.0], [3.0, 4.0], clip_norm=0.5).tolist() == pytest.approx([-0.3, -0.4], rel=1e-14)
    assert stepped(engine, [0.0], [2.0], clip_value=2.0).tolist() == [-2.0]


EACH_MODIFIER = [{key: value} for key, value in MODIFIERS.items()] + [dict(MODIFIERS)]


@pytest.mark.parametrize("options", EACH_MODIFIER, ids=str)
@pytest.mark.parametrize("name", ["sgd", "adam", "lamb", "adafactor", "prodigy", "schedule_free_adamw"])
def test_differentiable_steps_have_the_derivative_of_the_definition(name, options, make_run):
    """Of two steps, with respect to the parameter and both gradients."""

    def two_steps(p: torch.Tensor, *gradients: torch.Tensor) -> torch.Tensor:
        x = p.clone()
        optimizer = make_run(name, [x], differentiable=True, **options).optimizer
        for g in gradients:
            x.grad = g
            optimizer.step()
        return x

    values = ([[2.0, -3.0], [0.5, 1.5]], [[3.0, -0.5], [0.25, 0.75]], [[-0.75, 2.0], [0.5, -1.25]])
    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in values]
    assert torch.autograd.gradcheck(two_steps, inputs)


@pytest.mark.parametrize("options", EACH_MODIFIER, ids=str)
def test_derivative_at_a_gradient_of_zeros_is_not_nan(options):
    p = torch.tensor([2.0, -3.0], dtype=torch.float64).requires_grad_()
    x, g = p.clone(), torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = optplug.create_optimizer("sgd", [p], lr=0.1, differentiable=True, **options)
    optimizer.param_groups[0]["params"] = [x]
    x.grad = g
    optimizer.step()
    x.sum().backward()
    # A cautious step omits the update, whose derivative is then 0.
    assert g.grad.tolist() == pytest.approx([0.0 if "cautious" in options else -0.1] * 2)


@pytest.mark.parametrize("key", CLIPS)
def test_differentiable_with_a_tensor_as_number(key):
    number = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    p = torch.tensor([2.0, -3.0], dtype=torch.float64).requires_grad_()
    x = p.clone()
    x.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    optimizer = optplug.create_optimizer("sgd", [p], lr=0.1, differentiable=True)
    optimizer.param_groups[0].update({"params": [x], key: number})
    optimizer.step()
    x.sum().backward()
    assert number.grad is not None
    assert number.grad != 0


# ------------------------------------------------------------------------------------------------ sparse gradients


def sparse_gradient() -> torch.Tensor:
    """Rows 1 and 4 of a matrix; row 1 occurs twice."""
    values = torch.tensor([[3.0, 0.0], [1.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
    return torch.sparse_coo_tensor(torch.tensor([[1, 4, 1]]), values, (6, 2), check_invariants=True)


@pytest.mark.parametrize("engine", ["auto", "loop", "foreach"])
@pytest.mark.parametrize("name", ["sgd", "adagrad"])
@pytest.mark.parametrize("options", [{"clip_value": 2.0}, {"clip_norm": 2.0}, {"cautious": True}], ids=str)
def test_sparse_gradient_gives_the_step_of_the_dense_gradient(engine, name, options):
    results = []
    for g in (sparse_gradient(), sparse_gradient().to_dense()):
        p = torch.ones(6, 2, dtype=torch.float64, requires_grad=True)
        optimizer = optplug.create_optimizer(name, [p], lr=0.1, engine=engine, **options)
        for sign in (1, 1, -1):
            p.grad = sign * g
            optimizer.step()
        results.append(p)
    assert_close("sparse and dense", results[:1], results[1:], 1.0)


@pytest.mark.parametrize("engine", ["auto", "loop", "foreach"])
@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_agc_rejects_sparse_gradients_and_changes_nothing(engine, name):
    p = torch.ones(6, 2, dtype=torch.float64, requires_grad=True)
    optimizer = optplug.create_optimizer(name, [p], lr=0.1, engine=engine, agc=0.1)
    p.grad = sparse_gradient()
    with pytest.raises(SparseGradientError, match="agc is not compatible with sparse gradients: it needs the norm"):
        optimizer.step()
    assert torch.equal(p, torch.ones(6, 2, dtype=torch.float64))


def test_agc_is_rejected_by_an_optimizer_that_takes_sparse_gradients_only():
    cls, p = optplug.get_optimizer("sparse_adam"), torch.ones(2)
    for act in (
        lambda: cls([p], agc=0.1),
        lambda: cls([{"params": [p], "agc": 0.1}]),
        lambda: optplug.configure_optimizers(torch.nn.Linear(2, 2), {"name": "sparse_adam", "agc": 0.1}),
    ):
        with pytest.raises(HyperparameterError, match="SparseAdam takes sparse gradients only, which agc does not"):
            act()


# ------------------------------------------------------------------------------------------------ changes and groups


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("key", CLIPS)
def test_changed_number_has_effect_without_a_new_trace(engine, key):
    p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = optplug.create_optimizer("sgd", [p], lr=1.0, engine=engine, **{key: 1.0})
    group = optimizer.param_groups[0]
    p.grad = torch.tensor([1e6, 0.0], dtype=torch.float64)
    steps, traced = [], []
    for number in (1.0, 2.0, torch.tensor(4.0)):
        p.detach().zero_()
        group[key] = number
        optimizer.step()
        steps.append(-p[0].item() * (1000 if key == "agc" else 1))
        traced.append(trace.cache_info().misses)
    assert steps == pytest.approx([1.0, 2.0, 4.0])
    assert len({*traced}) == 1
    group[key] = None
    p.detach().zero_()
    optimizer.step()
    assert p[0].item() == -1e6


@pytest.mark.parametrize("engine", ENGINES)
def test_groups_have_their_own_modifiers(engine):
    params = [torch.zeros(2, requires_grad=True) for _ in range(4)]
    groups: list[dict[str, Any]] = [
        {"params": params[:1]},
        {"params": params[1:2], "clip_norm": None, "clip_value": 1.0},
        {"params": params[2:3], "clip_norm": 10.0},
    ]
    optimizer = optplug.create_optimizer("sgd", groups, lr=1.0, clip_norm=5.0, engine=engine)
    optimizer.add_param_group({"params": params[3:], "agc": 100.0})
    for p in params:
        p.grad = torch.tensor([6.0, 8.0])
    optimizer.step()
    expected = ([-3.0, -4.0], [-1.0, -1.0], [-6.0, -8.0], [-0.06, -0.08])
    for p, values in zip(params, expected, strict=True):
        assert p.tolist() == pytest.approx(values)


def test_configuration_sets_modifiers_of_groups():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    built = optplug.configure_optimizers(
        module,
        {"name": "sgd", "lr": 0.1, "clip_norm": "1e-1", "cautious": True},
        param_groups=[{"match": "*.bias", "clip_norm": None, "clip_value": 0.5}, {"match": "1.*", "agc": "2e-2"}],
    )
    groups = built["optimizer"].param_groups
    found = [tuple(group[key] for key in ("clip_value", "clip_norm", "agc", "cautious")) for group in groups]
    expected = [(None, 0.1, None, True), (0.5, None, None, True), (None, 0.1, 0.02, True), (0.5, None, 0.02, True)]
    assert sorted(found, key=str) == sorted(expected, key=str)


# ------------------------------------------------------------------------------------------------ invalid input

INVALID = [
    (0, HyperparameterError, "must be above 0"),
    (-1.0, HyperparameterError, "must be above 0"),
    (float("nan"), HyperparameterError, "must be above 0"),
    (float("inf"), HyperparameterError, "must be finite"),
    (10**400, HyperparameterError, "must be finite"),
    (True, HyperparameterTypeError, "must be a number, got True"),
    (False, HyperparameterTypeError, "must be a number, got False"),
    ("1", HyperparameterTypeError, "must be a number, got '1'"),
    ([1.0], HyperparameterTypeError, "must be a number, got"),
    ((1.0, 2.0), HyperparameterTypeError, "must be a number, got"),
    (torch.ones(2), HyperparameterError, "must be 1-element"),
    (torch.tensor(-1.0), HyperparameterError, "must be above 0"),
    (1j, HyperparameterTypeError, "must be a number, got"),
]


@pytest.mark.parametrize(("value", "error", "message"), INVALID, ids=repr)
@pytest.mark.parametrize("key", CLIPS)
@pytest.mark.parametrize("name", ["sgd", "sparse_adam"])
def test_invalid_number_is_rejected(name, key, value, error, message):
    cls: Any = optplug.get_optimizer(name)
    p, q = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = cls([q])
    for act in (
        lambda: cls([p], **{key: value}),
        lambda: cls([{"params": [p], key: value}]),
        lambda: cls([{"params": [p], key: value}], **({key: 1.0} if (name, key) != ("sparse_adam", "agc") else {})),
        lambda: optimizer.add_param_group({"params": [p], key: value}),
    ):
        with pytest.raises(error, match=message) as caught:
            act()
        assert caught.value.argument == key
        assert key in str(caught.value)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("value", [None, 1, 0, "yes", 1.0, torch.tensor(True)], ids=repr)
def test_cautious_must_be_a_flag(value):
    cls = optplug.get_optimizer("sgd")
    params = [torch.ones(2)]
    for groups, options in ((params, {"cautious": value}), ([{"params": params, "cautious": value}], {})):
        with pytest.raises(HyperparameterTypeError, match="cautious must be True or False, got"):
            cls(groups, **options)


def test_messages_name_the_option_and_the_nearest_one():
    cls = optplug.get_optimizer("adam")
    with pytest.raises(HyperparameterError) as caught:
        cls([torch.ones(2)], clip_norm=-1)
    assert str(caught.value) == "Invalid clip_norm value: -1 (Adam: clip_norm must be above 0)"
    with pytest.raises(HyperparameterTypeError, match="did you mean 'clip_norm'"):
        cls([torch.ones(2)], clip_nrom=1.0)
    with pytest.raises(HyperparameterError, match="did you mean 'cautious'"):
        cls([{"params": [torch.ones(2)], "cautios": True}])
    with pytest.raises(HyperparameterError, match=r"optimizer.agc: .*agc must be above 0"):
        optplug.configure_optimizers(torch.nn.Linear(2, 2), {"name": "adam", "agc": 0})


# ------------------------------------------------------------------------------------------------ state dicts


def values_of(optimizer: Any) -> list[tuple[Any, ...]]:
    return [tuple(group[key] for key in MODIFIER_KEYS) for group in optimizer.param_groups]


@pytest.mark.optimizers("without_closure", engines=True)
def test_resumed_run_with_modifiers_equals_the_uninterrupted_one(name, engine, make_run):
    options = {key: MODIFIERS[key] for key in supported(name)}
    if name == "sparse_adam" and engine == "numba":
        engine = "auto"
    uninterrupted = make_run(name, engine=engine, **options).run_steps()
    first = make_run(name, engine=engine, **options).run_steps(0, 4)
    saved = save_and_load(first.optimizer.state_dict())
    params = [p.detach().clone().requires_grad_() for p in first.params]
    resumed = make_run(name, params, engine=engine)  # without modifiers: they are loaded
    resumed.optimizer.load_state_dict(saved)
    assert values_of(resumed.optimizer) == values_of(uninterrupted.optimizer)
    resumed.run_steps(4).assert_equals(uninterrupted)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
@pytest.mark.optimizers("without_closure")
def test_copies_keep_modifiers(name, duplicate, make_run):
    optimizer = make_run(name, **{key: MODIFIERS[key] for key in supported(name)}).run_steps(0, 3).optimizer
    assert values_of(duplicate(optimizer)) == values_of(optimizer) != [(None, None, None, False)]


@pytest.mark.parametrize("of", ["torch", "optplug"])
@pytest.mark.optimizers("torch without_closure")
def test_state_dict_without_modifiers_keeps_those_of_the_groups(name, of, make_run):
    """State dicts of torch and of versions without modifiers."""
    first = make_run(name, of=of).run_steps(0, 4)
    saved = first.optimizer.state_dict()
    for group in saved["param_groups"]:
        for key in MODIFIER_KEYS:
            group.pop(key, None)
    before = copy.deepcopy(saved)
    options = {key: MODIFIERS[key] for key in supported(name)}
    run = make_run(name, [p.detach().clone().requires_grad_() for p in first.params], **options)
    run.optimizer.param_groups[0]["clip_value"] = 0.25
    expected = values_of(run.optimizer)
    run.optimizer.load_state_dict(saved)
    assert values_of(run.optimizer) == expected
    assert expected[0][0] == 0.25
    assert saved["param_groups"] == before["param_groups"]
    run.run_steps(4)


def test_state_dict_that_has_modifiers_replaces_those_of_the_groups(make_run):
    saved = make_run("sgd", clip_norm=2.0, cautious=True).optimizer.state_dict()
    run = make_run("sgd", agc=0.1)
    run.optimizer.load_state_dict(saved)
    assert values_of(run.optimizer) == [(None, 2.0, None, True)]


@pytest.mark.optimizers("torch without_closure")
def test_torch_continues_a_state_dict_with_modifiers(name, make_run):
    first = make_run(name, **{key: MODIFIERS[key] for key in supported(name)}).run_steps(0, 4)
    plain = make_run(name).run_steps(0, 4).optimizer.state_dict()
    theirs = make_run(name, of="torch")
    theirs.optimizer.load_state_dict(first.optimizer.state_dict())
    theirs.run_steps(4)
    assert theirs.distance_moved > 0
    assert plain["param_groups"][0].keys() == first.optimizer.state_dict()["param_groups"][0].keys()


def test_optimizer_of_an_older_version_can_be_unpickled_and_stepped():
    p = torch.ones(2, requires_grad=True)
    optimizer = optplug.create_optimizer("sgd", [p], lr=0.1)
    for options in (optimizer.defaults, optimizer.param_groups[0]):
        for key in MODIFIER_KEYS:
            del options[key]
    old = pickle.loads(pickle.dumps(optimizer))
    old.param_groups[0]["params"][0].grad = torch.ones(2)
    old.step()
    old.add_param_group({"params": [torch.ones(3, requires_grad=True)]})
    old.load_state_dict(old.state_dict())
    old.step()
    assert old.param_groups[0]["params"][0][0].item() == pytest.approx(0.8)


@pytest.mark.parametrize("value", ["1", True, [1.0]], ids=repr)
def test_state_dict_with_invalid_modifier_is_rejected(value, make_run):
    saved = make_run("sgd").optimizer.state_dict()
    saved["param_groups"][0]["clip_norm"] = value
    with pytest.raises(HyperparameterTypeError, match="SGD, group 0 of the state dict: clip_norm must be a number"):
        make_run("sgd").optimizer.load_state_dict(saved)


# ------------------------------------------------------------------------------------------------ authors


def test_rule_with_a_keyword_of_a_modifier_implements_it_itself():
    class Own(optplug.RuleOptimizer):
        def __init__(self, params, lr=0.1, clip_value=0.0, **options):
            super().__init__(params, {"lr": lr, "clip_value": clip_value}, **options)

        ranges = (optplug.ranges.at_least(0, "clip_value"),)

        @staticmethod
        def rule(p, g, *, lr, clip_value, cautious=False):
            return p - lr * g + clip_value + (100.0 if cautious else 0.0)

    for engine in ENGINES:
        p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        p.grad = torch.full((1,), 10.0, dtype=torch.float64)
        optimizer = Own([p], engine=engine)
        optimizer.step()
        assert p.item() == pytest.approx(-1.0)
        optimizer.param_groups[0].update(clip_value=7.0, cautious=True)
        optimizer.step()
        assert p.item() == pytest.approx(105.0)


def test_constructor_may_set_a_default_that_the_user_can_switch_off():
    class Clipped(optplug.RuleOptimizer):
        def __init__(self, params, lr=1.0, **options):
            super().__init__(params, {"lr": lr, "clip_norm": 1.0}, **options)

        rule = staticmethod(lambda p, g, *, lr: p - lr * g)

    for options, expected in (({}, -1.0), ({"clip_norm": None}, -10.0), ({"clip_norm": 2.0}, -2.0)):
        p = torch.zeros(1, requires_grad=True)
        p.grad = torch.full((1,), 10.0)
        Clipped([p], **options).step()
        assert p.item() == expected


def test_every_rule_optimizer_has_the_options():
    for name in first_party("optimizer"):
        cls = optplug.get_optimizer(name)
        if issubclass(cls, optplug.RuleOptimizer):
            parameters = inspect.signature(cls).parameters
            assert {key: parameters[key].default for key in MODIFIER_KEYS} == {
                key: OPTION_DEFAULTS[key]
                for key in MODIFIER_KEYS  # type: ignore[literal-required]
            }


def test_report_names_no_other_engine():
    """Rules without modifiers are not affected: they do not reduce."""
    p = torch.ones(8, requires_grad=True)
    p.grad = torch.ones(8)
    for options in ({}, {"clip_value": 1.0}, {"cautious": True}):
        optimizer = optplug.create_optimizer("adam", [p], **options)
        optimizer.step()
        (report,) = optimizer.engine_report()
        assert report.engine == OptimizerUnderTest.of("adam").engines[-1]
        assert report.bytes_per_element == 28
