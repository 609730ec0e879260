"""The contract of `torch.optim.Optimizer`, kept by every optimizer that comes with optplug; torch's class shows how."""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import gc
import io
import math
import multiprocessing
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import optplug
from optplug.engines import foreach, numba
from optplug.errors import OptplugError
from optplug.rules import trace
from optplug.testing.checks import close, equal, saved_and_loaded, states_of
from optplug.testing.subjects import Run, Subject, noise, take

# Settings under which every optimizer keeps all the state it can have, and moves far enough to be seen.
LIVELY: dict[str, dict[str, Any]] = {
    "adadelta": {"lr": 0.5, "weight_decay": 0.05},
    "adagrad": {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.05},
    "adam": {"lr": 0.1, "amsgrad": True, "weight_decay": 0.05},
    "adamax": {"lr": 0.1, "weight_decay": 0.05},
    "adamw": {"lr": 0.1, "amsgrad": True},
    "asgd": {"lr": 0.05, "t0": 2.0, "alpha": 0.5, "lambd": 0.05, "weight_decay": 0.05},
    "lbfgs": {"lr": 0.5, "max_iter": 3, "history_size": 3},
    "rmsprop": {"lr": 0.05, "momentum": 0.9, "centered": True, "weight_decay": 0.05},
    "rprop": {"lr": 0.1},
    "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05},
    "sparse_adam": {"lr": 0.1},
}
NAMES = optplug.list_optimizers()
SUBJECTS = {name: Subject.of(name) for name in NAMES}
TORCH = {name: vars(torch.optim)[s.cls.__name__] for name, s in SUBJECTS.items() if s.cls.__name__ in vars(torch.optim)}
DENSE = [name for name, s in SUBJECTS.items() if not s.capabilities & {"closure", "sparse_only"}]
STEPPING = [name for name, s in SUBJECTS.items() if "closure" not in s.capabilities]
ENGINES = [(name, engine) for name, s in SUBJECTS.items() for engine in s.engines or (None,)]

every = pytest.mark.parametrize("name", NAMES)
every_torch = pytest.mark.parametrize("name", TORCH)
stepping = pytest.mark.parametrize("name", STEPPING)
dense = pytest.mark.parametrize("name", DENSE)
on_every_engine = pytest.mark.parametrize(("name", "engine"), ENGINES)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from several threads, and lose much where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(name: str, params: list[Tensor] | None = None, groups: Any = None, *, of: str = "ours", **options: Any) -> Run:
    """A run of an optimizer, ours or torch's of the same name; `groups` is what its constructor gets."""
    subject = SUBJECTS[name]
    if of == "torch":
        plain = {"foreach": False} if "foreach" in vars_of(TORCH[name]) else {}
        subject, options = replace(subject, cls=TORCH[name]), {**options, **plain}
    options = {k: v for k, v in {**LIVELY.get(name, {}), **options}.items() if (k, v) != ("engine", None)}
    made = Run(subject, options, params=params)
    if groups is not None:
        made.optimizer = subject.cls(groups, **options)
    return made


def vars_of(cls: type) -> Any:
    return cls([torch.zeros(1, requires_grad=True)]).defaults


def free(engine: str | None) -> str | None:
    """Engine `numba` works in place or not at all (tests/test_numba.py): `auto` has it find another where it cannot."""
    return None if engine == "numba" else engine


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [noise(shape, i).to(dtype).requires_grad_() for i, shape in enumerate(shapes or ((4, 3), (5,), (2, 2)))]


def assert_same(a: Run, b: Run, what: str = "") -> None:
    equal(what, a.params, b.params)
    equal(f"state, {what}", states_of(a.optimizer), states_of(b.optimizer))


def assert_as_torch(ours: Run, theirs: Run, limit: float = 1e-11) -> None:
    close("ours and torch's", ours.params, theirs.params, theirs.moved, limit)
    assert theirs.moved > 0


def outcome(act: Callable[[], Any]) -> Any:
    """What came of it: the result, or the error with the first words of its text."""
    try:
        return act()
    except Exception as error:
        return type(error), str(error)


def assert_refused_as_torch(ours: Any, theirs: Any) -> None:
    assert issubclass(ours[0], theirs[0])
    assert ours[1].startswith(theirs[1])


# ------------------------------------------------------------------------------------ parameters and groups


@pytest.mark.parametrize(("name", "engine"), [pair for pair in ENGINES if pair[0] != "lbfgs"])
def test_groups_with_options_are_separate_optimizers(name, engine):
    cases = [{**LIVELY.get(name, {}), **case} for case in SUBJECTS[name].cases]
    params = [parameters((4, 3), (5,)) for _ in cases]
    flat = [p for ps in params for p in ps]
    groups = [{"params": ps, **case} for ps, case in zip(params, cases, strict=True)]
    together = run(name, flat, groups, engine=engine)
    together.gradient = lambda step, index: Run.gradient(together, step, index % 2)
    together.go()
    for of, limit in (("ours", 0.0), ("torch", 1e-11)):
        apart = [run(name, parameters((4, 3), (5,)), of=of, **case, engine=engine if of == "ours" else None)
                 for case in cases]  # fmt: skip
        for ps, alone in zip(params, apart, strict=True):
            alone.go()
            close(f"a group and an optimizer of its own ({of})", ps, alone.params, alone.moved, limit)


FORMS: dict[str, Callable[[nn.Module], Any]] = {
    "generator": lambda m: m.parameters(),
    "named generator": lambda m: m.named_parameters(),
    "list of pairs": lambda m: list(m.named_parameters()),
    "generator in a group": lambda m: [{"params": m.parameters()}],
    "named generator in a group": lambda m: [{"params": m.named_parameters()}],
    "dict values": lambda m: dict(m.named_parameters()).values(),
    "tuple in a group": lambda m: ({"params": tuple(m.parameters())},),
    "generator of groups": lambda m: ({"params": ps} for ps in [list(m.parameters())]),
}


@pytest.mark.parametrize("form", FORMS)
@every_torch
def test_parameters_come_in_every_form_and_their_names_are_kept(name, form):
    def trained(of, make):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
        return run(name, list(model.parameters()), make(model), of=of).go(0, 2)

    ours, theirs = trained("ours", FORMS[form]), trained("torch", FORMS[form])
    assert_same(ours, trained("ours", lambda m: list(m.parameters())), form)
    assert_as_torch(ours, theirs)
    for a, b in ((ours.optimizer, theirs.optimizer), (ours.optimizer.state_dict(), theirs.optimizer.state_dict())):
        (group,), (other,) = (x["param_groups"] if isinstance(x, dict) else x.param_groups for x in (a, b))
        assert group.get("param_names") == other.get("param_names")
    saved = saved_and_loaded(ours.optimizer.state_dict())
    assert saved["param_groups"][0].get("param_names") == ours.optimizer.param_groups[0].get("param_names")


@every_torch
def test_names_stay_where_an_unnamed_state_dict_is_loaded_and_come_with_a_named_one(name):
    for named, into_named in ((True, False), (False, True), (True, True)):
        kept = []
        for of in ("ours", "torch"):
            a, b = nn.Linear(3, 2), nn.Linear(3, 2)
            source = run(name, list(a.parameters()), a.named_parameters() if named else a.parameters(), of=of)
            target = run(name, list(b.parameters()), b.named_parameters() if into_named else b.parameters(), of=of)
            target.optimizer.load_state_dict(source.optimizer.state_dict())
            kept.append(target.optimizer.param_groups[0].get("param_names"))
        assert kept[0] == kept[1] == ["weight", "bias"]


_x, _y, _z = (torch.zeros(2, requires_grad=True) for _ in range(3))
GROWTH: dict[str, Callable[[], tuple[Any, Any]]] = {  # made anew, for torch writes into the dict of a group
    "named": lambda: ([("x", _x)], {"params": [("y", _y), ("z", _z)]}),
    "one tensor": lambda: ([_x], {"params": _y}),
    "a name is missing": lambda: ([("x", _x)], {"params": [("y", _y), _z]}),
    "names after none": lambda: ([_x], {"params": [("y", _y)]}),
    "none after names": lambda: ([("x", _x)], {"params": [_y]}),
    "again": lambda: ([_x, _y], {"params": [_y]}),
    "a set": lambda: ([_x], {"params": {_y}}),
    "a number": lambda: ([_x], {"params": [3.0]}),
    "no leaf": lambda: ([_x], {"params": [_y * 2]}),
    "a list": lambda: ([_x], [_y]),
    "a tensor for all": lambda: (_x, {"params": [_y]}),
    "nothing": lambda: ([], {"params": [_y]}),
}


def grown(cls: type, first: Any, second: Any) -> list[Any]:
    """The names and numbers of parameters, with a group added."""
    optimizer = cls(first)
    optimizer.add_param_group(second)
    return [(group.get("param_names"), len(group["params"])) for group in optimizer.param_groups]


@pytest.mark.parametrize("growth", GROWTH)
@pytest.mark.parametrize("name", [name for name in TORCH if name != "lbfgs"])
def test_groups_are_added_and_refused_as_torch_does(name, growth):
    ours, theirs = (outcome(lambda cls=cls: grown(cls, *GROWTH[growth]())) for cls in (SUBJECTS[name].cls, TORCH[name]))
    if isinstance(theirs, tuple):
        assert_refused_as_torch(ours, theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lbfgs"])
def test_a_refused_group_leaves_the_optimizer_as_it_was(name):
    made = run(name).go(0, 2)
    before = copy.deepcopy(made.optimizer.state_dict())
    for group in ({"params": [made.params[0]]}, {"params": [torch.zeros(1)], "lr": -1.0}):
        assert outcome(lambda group=group: made.optimizer.add_param_group(group))[0] is not None
    assert repr(made.optimizer.state_dict()) == repr(before)


@every
def test_parameters_without_gradient_change_nothing(name):
    idle = run(name, parameters())
    idle.gradient = lambda step, index: None
    if name == "lbfgs":
        loss = torch.zeros(())
        assert idle.optimizer.step(lambda: loss) is loss
    else:
        idle.go(0, 2)
        assert not idle.optimizer.state
    equal("parameters without gradient", idle.params, idle.initial)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lbfgs"])
def test_a_group_without_any_gradient_waits(name):
    first, second = parameters((4, 3), (5,)), parameters((2, 2), (3,))
    both = run(name, first + second, [{"params": first}, {"params": second, "lr": 0.01}])
    both.gradient = lambda step, index: Run.gradient(both, step, index) if index < 2 else None
    both.go(0, 5)
    equal("a group without gradients", second, both.initial[2:])
    equal("the other group and an optimizer of its own", first, run(name, parameters((4, 3), (5,))).go(0, 5).params)


@on_every_engine
def test_five_hundred_parameters(name, engine):
    shapes = [(i % 4 + 1, 3) for i in range(500)]
    ours, theirs = (run(name, parameters(*shapes), of=of, engine=e) for of, e in (("ours", engine), ("torch", None)))
    assert_as_torch(ours.go(0, 2), theirs.go(0, 2))


# ------------------------------------------------------------------------------------ tensors as options


@pytest.mark.parametrize("where", ["constructor", "group", "add_param_group"])
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@every_torch
def test_a_tensor_as_lr_is_read_at_each_step(name, shape, where):
    def trained(of: str, kind: Callable[[float], Any]) -> Run:
        params, lr = parameters(), kind(0.25)
        if where == "constructor":
            made = run(name, params, of=of, lr=lr)
        elif where == "group":
            made = run(name, params, [{"params": params, "lr": lr}], of=of)
        elif name == "lbfgs":
            made = run(name, params, of=of, lr=lr)
        else:
            made = run(name, params, [params[0]], of=of, lr=0.5)
            made.optimizer.add_param_group({"params": params[1:], "lr": lr})
        made.go(0, 3)
        group = made.optimizer.param_groups[-1]
        if isinstance(lr, Tensor):
            assert group["lr"] is lr
            assert lr.item() == 0.25  # nobody but the user writes to it
            lr.mul_(0.5)
        else:
            group["lr"] = 0.125
        return made.go(3, 5)

    ours = trained("ours", lambda x: torch.full(shape, x, dtype=torch.float64))
    assert_same(ours, trained("ours", float), "lr as a tensor and as a number")
    assert_as_torch(ours, trained("torch", float))


@every_torch
def test_a_tensor_as_lr_is_saved_and_loaded_as_torch_does(name):
    loaded = []
    for of in ("ours", "torch"):
        source, target = run(name, of=of, lr=torch.tensor(0.25)).go(0, 2), run(name, of=of, lr=torch.tensor(0.5))
        own = target.optimizer.param_groups[0]["lr"]
        target.optimizer.load_state_dict(saved_and_loaded(source.optimizer.state_dict()))
        lr = target.optimizer.param_groups[0]["lr"]
        loaded.append((lr, type(lr), lr is own, lr is source.optimizer.param_groups[0]["lr"]))
    assert loaded[0] == loaded[1] == (torch.tensor(0.25), Tensor, False, False)


@pytest.mark.parametrize("engine", ["loop", "foreach", "numba"])
@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("adam", "betas", (0.75, 0.875)),
        ("adamw", "betas", (0.75, 0.875)),
        ("adam", "weight_decay", 0.25),
        ("adamw", "weight_decay", 0.25),
        ("sgd", "weight_decay", 0.25),
    ],
)
def test_options_may_be_tensors_where_torch_takes_them(name, option, value, engine):
    double = functools.partial(torch.tensor, dtype=torch.float64)
    as_tensor = tuple(map(double, value)) if isinstance(value, tuple) else double(value)
    ours = run(name, engine=engine, **{option: as_tensor}).go()
    assert_same(ours, run(name, engine=engine, **{option: value}).go(), f"{option} as a tensor")
    assert_as_torch(ours, run(name, of="torch", **{option: as_tensor}).go())


# ------------------------------------------------------------------------------------ step and closure


@every
def test_step_returns_none_or_the_very_loss_and_restores_the_grad_mode(name):
    made = run(name)
    made.place(3)
    if name in STEPPING:
        assert made.optimizer.step() is None
    loss = torch.tensor(1.5)
    for mode in (True, False):
        modes = []
        with torch.set_grad_enabled(mode):
            assert made.optimizer.step(lambda seen=modes: (seen.append(torch.is_grad_enabled()), loss)[1]) is loss
            assert torch.is_grad_enabled() is mode
        assert modes
        assert all(modes)


@every
def test_an_error_in_the_closure_passes_through_and_changes_nothing(name):
    made = run(name).go(0, 3)
    before, states = [p.detach().clone() for p in made.params], copy.deepcopy(states_of(made.optimizer))

    def closure():
        raise ZeroDivisionError("in the closure")

    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            with pytest.raises(ZeroDivisionError, match="in the closure"):
                made.optimizer.step(closure)
            assert torch.is_grad_enabled() is mode
    equal("parameters", made.params, before)
    equal("states", states_of(made.optimizer), states)


@every
def test_zero_grad_drops_gradients_or_fills_them_with_zeros(name):
    made = run(name, parameters())
    made.optimizer.zero_grad()  # there are none
    p = made.params[0]
    for gradient in (torch.ones_like(p), torch.ones_like(p).detach().to_sparse(1)):
        p.grad = gradient.clone()
        given = p.grad
        made.optimizer.zero_grad(set_to_none=False)
        assert p.grad is given
        assert not p.grad.to_dense().any()
        p.grad = gradient.clone()
        made.optimizer.zero_grad()
        assert p.grad is None
    (p.grad,) = torch.autograd.grad((p**3).sum(), p, create_graph=True)
    made.optimizer.zero_grad(set_to_none=False)
    assert not p.grad.requires_grad


@every_torch
def test_the_repr_names_every_option_of_every_group(name):
    def keys(text: str) -> list[str]:
        return [line.partition(":")[0] for line in text.splitlines()]

    made = run(name, parameters())
    ours = repr(made.optimizer)
    assert set(keys(repr(run(name, parameters(), of="torch").optimizer))) <= set(keys(ours))
    for key, value in {**made.optimizer.defaults, **LIVELY.get(name, {})}.items():
        assert f"    {key}: {value}\n" in ours


# ------------------------------------------------------------------------------------ hooks


@pytest.fixture
def global_hooks() -> Iterator[list[Any]]:
    """The log of one global hook before and one after the step."""
    log: list[Any] = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, args, kwargs: log.append(("global pre", type(o).__name__))),
        register_optimizer_step_post_hook(lambda o, args, kwargs: log.append(("global post", type(o).__name__))),
    ]
    yield log
    for handle in handles:
        handle.remove()


@every_torch
def test_step_hooks_run_once_and_in_torchs_order(name, global_hooks):
    logs = []
    for of in ("ours", "torch"):
        made = run(name, of=of)
        made.place(3)
        handles = [
            register(lambda o, args, kwargs, what=what: global_hooks.append((what, type(o).__name__, len(args))))
            for register in (made.optimizer.register_step_pre_hook, made.optimizer.register_step_post_hook)
            for what in (f"first {register.__name__}", f"second {register.__name__}")
        ]
        take_with = [lambda: global_hooks.append("closure") or torch.tensor(1.0)]
        made.optimizer.step(*take_with)
        handles[0].remove()
        made.optimizer.step(closure=take_with[0])
        logs.append(list(global_hooks))
        global_hooks.clear()
    assert logs[0] == logs[1]
    assert [logs[0].count(("global pre", SUBJECTS[name].cls.__name__)), logs[0][1][0]] == [
        2,
        "first register_step_pre_hook",
    ]


@every
def test_a_pre_hook_may_change_the_arguments(name):
    made = run(name)
    made.place(3)
    seen = []
    made.optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: torch.tensor(7.0)), {}))
    made.optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(args[1]()))
    assert made.optimizer.step(lambda: torch.tensor(1.0)) == 7.0
    assert seen == [torch.tensor(7.0)]
    made.optimizer.register_step_pre_hook(lambda o, args, kwargs: "nonsense")
    with pytest.raises(RuntimeError, match=r"must return None or a tuple of \(new_args, new_kwargs\)"):
        made.optimizer.step(lambda: torch.tensor(1.0))


@every_torch
def test_hooks_of_state_dicts_run_in_torchs_order_and_may_replace_them(name):
    def told(of: str) -> tuple[list[str], Any, float]:
        made, log = run(name, of=of).go(0, 2), []
        o = made.optimizer

        def say(what: str, result: Callable[..., Any] = lambda *_: None) -> Callable[..., Any]:
            return lambda *args: (log.append(what), result(*args))[1]

        def renamed(optimizer: Any, saved: dict[str, Any]) -> dict[str, Any]:
            return {**saved, "extra": 1}

        def slower(optimizer: Any, saved: dict[str, Any]) -> dict[str, Any]:
            saved = copy.deepcopy(saved)
            saved["param_groups"][0]["lr"] = 0.0625
            return saved

        def seen(optimizer: Any) -> None:
            log.append(
                f"lr {optimizer.param_groups[0]['lr']}, states {sorted(map(len, optimizer.state.values()))[-1] > 0}"
            )

        o.register_state_dict_pre_hook(say("save pre"))
        o.register_state_dict_pre_hook(say("save pre, first"), prepend=True)
        o.register_state_dict_post_hook(say("save post", renamed))
        o.register_state_dict_post_hook(say("save post, first"), prepend=True)
        o.register_load_state_dict_pre_hook(say("load pre", slower))
        o.register_load_state_dict_pre_hook(say("load pre, first"), prepend=True)
        o.register_load_state_dict_post_hook(say("load post"))
        o.register_load_state_dict_post_hook(seen, prepend=True)
        handle = o.register_load_state_dict_post_hook(say("never"))
        handle.remove()
        saved = o.state_dict()
        o.load_state_dict(saved)
        o.load_state_dict(saved)
        return log, saved["extra"], o.param_groups[0]["lr"]

    ours, theirs = told("ours"), told("torch")
    assert ours == theirs
    assert ours[1:] == (1, 0.0625)


@every
def test_hooks_are_not_copied(name):
    made = run(name).go(0, 2)
    called = []
    o = made.optimizer
    o.register_step_pre_hook(lambda *_: called.append("pre"))  # a lambda cannot be pickled, so it was left out
    o.register_step_post_hook(lambda *_: called.append("post"))
    o.register_state_dict_post_hook(lambda *_: called.append("save"))
    o.register_load_state_dict_pre_hook(lambda *_: called.append("load"))
    o.zero_grad()
    for duplicate in (copy.deepcopy(o), pickle.loads(pickle.dumps(o))):
        duplicate.load_state_dict(duplicate.state_dict())
        duplicate.step(lambda: torch.tensor(1.0))
    assert called == []


# ------------------------------------------------------------------------------------ state and state dicts


def notes(optimizer: Any, p: Tensor) -> str:
    """What somebody else put into the state, and its dtypes."""
    found = {k: v for k, v in optimizer.state.items() if isinstance(k, str)} | {"own": optimizer.state[p]["note"]}
    return repr((found, found["tensor"].dtype, found["own"]["tensor"].dtype))


@pytest.mark.parametrize("how", ["state dict", "deepcopy", "pickle"])
@every_torch
def test_what_others_put_into_the_state_survives(name, how):
    kept = []
    broken = name == "lbfgs" and how != "state dict"  # torch's own cannot step after it was copied
    for of in ("ours",) if broken else ("ours", "torch"):
        made = run(name, of=of).go(0, 3)
        state = made.optimizer.state
        state["tensor"] = torch.tensor([1.0, 2.0])
        state["dict"] = {"a": 1, "b": [2, 3]}
        state["number"] = 4
        state[made.params[0]]["note"] = {"number": 3, "tensor": torch.tensor(5.0)}
        made.go(3, 5)
        if how == "state dict":
            other = run(name, [p.detach().clone().requires_grad_() for p in made.params], of=of)
            other.optimizer.load_state_dict(saved_and_loaded(made.optimizer.state_dict()))
        else:
            made.optimizer.zero_grad()
            other = copy.copy(made)
            other.optimizer = copy.deepcopy(made.optimizer) if how == "deepcopy" else through_pickle(made.optimizer)
            other.params = other.optimizer.param_groups[0]["params"]
        other.go(5, 7)
        kept.append(notes(other.optimizer, other.params[0]))
        if how != "state dict":  # which casts what belongs to a parameter
            assert kept[-1] == notes(made.optimizer, made.params[0])
        equal("the copy and the original", other.params, made.go(5, 7).params)
    assert kept[0] == kept[-1]


def through_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


@every_torch
def test_the_keys_of_groups_and_states_are_torchs(name):
    ours, theirs = (run(name, of=of).go().optimizer.state_dict() for of in ("ours", "torch"))
    assert ours.keys() == theirs.keys()
    assert ours["param_groups"][0]["params"] == theirs["param_groups"][0]["params"]
    shared = theirs["param_groups"][0].keys() - {"foreach"}
    assert {k: ours["param_groups"][0].get(k, "missing") for k in shared} == {
        k: theirs["param_groups"][0][k] for k in shared
    }
    scratch = {"al"} if name == "lbfgs" else set()  # which torch makes anew in each iteration
    assert {i: set(s) for i, s in ours["state"].items()} == {i: set(s) - scratch for i, s in theirs["state"].items()}


@pytest.mark.parametrize("of", ["ours", "torch"])
@on_every_engine
def test_an_old_state_dict_without_keys_and_with_plain_numbers_is_continued(name, engine, of):
    first = run(name, of=of).go(0, 4)
    old = copy.deepcopy(first.optimizer.state_dict())
    for group in old["param_groups"]:
        for key in group.keys() - {"params", *LIVELY.get(name, {})}:
            del group[key]
    for state in old["state"].values():
        for key, value in state.items():
            if key in ("step", "eta", "mu"):
                state[key] = float(value)
    then = run(name, [p.detach().clone().requires_grad_() for p in first.params], engine=engine)
    then.optimizer.load_state_dict(old)
    assert then.optimizer.param_groups[0].keys() == run(name).optimizer.param_groups[0].keys()
    assert_as_torch(then.go(4), first.go(4), 1e-6 if name == "asgd" else 1e-11)  # eta and mu are float32


@every
def test_loading_and_stepping_leave_the_state_dict_alone(name):
    saved = copy.deepcopy(run(name).go(0, 4).optimizer.state_dict())
    before = repr(saved)
    made = run(name)
    made.optimizer.load_state_dict(saved)
    made.go(4)
    assert repr(saved) == before


@every_torch
@pytest.mark.parametrize("change", ["fewer groups", "fewer parameters"])
def test_a_state_dict_of_another_shape_is_refused_as_torch_does(name, change):
    ours, theirs = run(name), run(name, of="torch")
    told = []
    for made in (ours, theirs):
        saved = made.go(0, 2).optimizer.state_dict()
        if change == "fewer groups":
            saved["param_groups"].pop()
        else:
            saved["param_groups"][0]["params"].pop()
        told.append(outcome(lambda made=made, saved=saved: made.optimizer.load_state_dict(saved)))
    assert_refused_as_torch(*told)


@every
def test_a_whole_optimizer_is_saved_and_continues(name):
    through, first = run(name).go(), run(name).go(0, 5)
    file = io.BytesIO()
    torch.save(first.optimizer, file)
    file.seek(0)
    second = run(name)
    second.optimizer = torch.load(file, weights_only=False)
    second.params = second.optimizer.param_groups[0]["params"]
    assert repr(second.optimizer) == repr(first.optimizer)
    assert_same(second.go(5), through, "saved as a whole and uninterrupted")


@every
def test_a_model_and_its_optimizer_are_copied_together(name):
    model = nn.Linear(3, 2).double()
    first = run(name, list(model.parameters())).go(0, 5)
    twin, optimizer = copy.deepcopy((model, first.optimizer))
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in twin.parameters()]
    second = run(name, list(twin.parameters()))
    second.optimizer = optimizer
    assert_same(second.go(5), first.go(5), "the copy and the original")


# ------------------------------------------------------------------------------------ memory


def _hooked(made: Run) -> None:
    made.optimizer.register_step_pre_hook(lambda *_: None)
    made.optimizer.register_load_state_dict_post_hook(lambda *_: None, prepend=True)
    made.go(2, 3)


def _raised(made: Run) -> None:
    def closure():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        made.optimizer.step(closure)


def _refused(made: Run) -> None:
    """A gradient of the other layout than the optimizer takes; to lbfgs, a closure without loss."""
    made.place(3)
    p = made.params[0]
    ones = torch.ones_like(p).detach()
    p.grad = ones if "sparse_only" in made.subject.capabilities else ones.to_sparse()  # weight decay excludes it too
    with pytest.raises(OptplugError):
        made.optimizer.step(lambda: None)


def _compiled(made: Run) -> None:
    made.place(2)
    torch.compile(lambda: made.optimizer.step(lambda: torch.tensor(1.0)), backend="eager")()


USES: dict[str, Callable[[Run], Any]] = {
    "closure": lambda made: made.optimizer.step(lambda: torch.tensor(1.0)),
    "hooks": _hooked,
    "an error in the closure": _raised,
    "a refused gradient": _refused,
    "state dicts": lambda made: made.optimizer.load_state_dict(saved_and_loaded(made.optimizer.state_dict())),
    "repr": lambda made: repr(made.optimizer),
    "copies": lambda made: (copy.deepcopy(made.optimizer), through_pickle(made.optimizer)),
    "torch.compile": _compiled,
}


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Reference counts alone free what is dropped; cycles stay."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("use", USES)
@every
def test_nothing_keeps_a_dropped_optimizer(name, use, no_collector):
    made = run(name).go(0, 2)
    USES[use](made)
    optimizer, p = weakref.ref(made.optimizer), weakref.ref(made.params[0])
    del made
    torch.compiler.reset()
    assert (optimizer(), p()) == (None, None)


# ------------------------------------------------------------------------------------ dtypes

MIXED = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)


def of_dtypes(name: str) -> list[Tensor]:
    """A parameter of each dtype that the optimizer takes."""
    takes_complex = "complex" in SUBJECTS[name].capabilities
    kinds = [dtype for dtype in MIXED if takes_complex or not dtype.is_complex]
    parts = [noise((4, 3, 2), i) for i in range(len(kinds))]
    return [
        (torch.view_as_complex(t) if dtype.is_complex else t[..., 0].contiguous()).to(dtype).requires_grad_()
        for t, dtype in zip(parts, kinds, strict=True)
    ]


@pytest.mark.parametrize(("name", "engine"), [pair for pair in ENGINES if pair[0] != "lbfgs"])
def test_a_group_of_mixed_dtypes_steps_each_as_if_alone_and_as_torch_does(name, engine):
    kinds = range(len(of_dtypes(name)))
    together, theirs = run(name, of_dtypes(name), engine=engine), run(name, of_dtypes(name), of="torch")
    for made in (together, theirs):
        made.gradient = functools.partial(seeded_gradient, made)
        made.go(0, 5)
    for i in kinds:
        p = of_dtypes(name)[i]
        alone = run(name, [p], engine=engine)
        alone.gradient = lambda step, _, alone=alone, i=i: seeded_gradient(alone, step, 0, seed=i)
        alone.go(0, 5)
        equal(f"{p.dtype} in company and alone", [together.params[i]], [p])
        eps = torch.finfo(p.dtype).eps
        close(f"{p.dtype}, ours and torch's", [p], [theirs.params[i]], 1.0, 20 * eps)


def seeded_gradient(made: Run, step: int, index: int, seed: int | None = None) -> Tensor:
    p = made.params[index]
    g = noise((*p.shape, 2), 100 * step + (index if seed is None else seed))
    return (torch.view_as_complex(g) if p.is_complex() else g[..., 0].contiguous()).to(p.dtype)


@pytest.mark.parametrize(("name", "engine"), [pair for pair in ENGINES if pair[0] in DENSE])
def test_lazily_conjugated_and_negated_tensors_step_as_their_values(name, engine):
    z, g = (torch.view_as_complex(noise((4, 2), seed)) for seed in (1, 2))
    lazy = {
        "conjugated parameter": (lambda: z.clone().conj(), lambda: g),
        "conjugated gradient": (lambda: z.clone(), lambda: g.conj()),
        "negated parameter": (lambda: z.clone().conj().imag, lambda: g.real.clone()),
        "negated gradient": (lambda: z.real.clone(), lambda: g.conj().imag),
    }
    for what, (parameter, gradient) in lazy.items():
        ends = []
        for resolve in (False, True):
            p, grad = parameter(), gradient()
            assert p.is_conj() or p.is_neg() or grad.is_conj() or grad.is_neg()
            if resolve:
                p, grad = p.resolve_conj().resolve_neg(), grad.resolve_conj().resolve_neg()
            made = run(name, [p.requires_grad_()], engine=engine if resolve else free(engine))
            for _ in range(3):
                p.grad = grad
                target = p.detach().clone() - grad
                take(made.subject, made.optimizer, [p], lambda p=p, target=target: norm(p - target))
            assert made.moved > 0
            ends.append(p.detach().resolve_conj().resolve_neg())
        close(what, ends[:1], ends[1:], 1.0, 1e-14)


def norm(t: Tensor) -> Tensor:
    return (t * t.conj()).real.sum() / 2


@pytest.mark.parametrize("dtype", [torch.float32, None], ids=str)
@stepping
def test_a_gradient_may_have_another_dtype_where_torch_lets_it(name, dtype):
    """`grad_dtype` of the tensor allows it; the step is then one in the parameter's dtype."""
    ends = []
    for cast in (False, True):
        p = noise((4, 3), 0).to(torch.bfloat16).requires_grad_()
        p.grad_dtype = dtype
        made = run(name, [p])
        for step in range(3):
            g = noise((4, 3), step + 1).to(torch.bfloat16)
            p.grad = made.subject.given(g if cast and dtype is None else g.float())
            made.optimizer.step()
        ends.append(made)
    assert_same(*ends, "a gradient in float32 and in bfloat16")
    assert ends[0].moved > 0


# ------------------------------------------------------------------------------------ memory of parameters


VIEWS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "parts of one storage": lambda base: [base[:6], base[6:18].view(4, 3), base[18:]],
    "interleaved": lambda base: [base[0::2], base[1::2]],
    "overlapping": lambda base: [base[:10], base[8:].view(4, 4), base[20:]],
    "the same memory twice": lambda base: [base, base.view(4, 6)],
    "transposed over itself": lambda base: [base.view(4, 6), base.view(4, 6).t()],
}


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("name", [name for name in TORCH if name in STEPPING])
def test_parameters_that_share_a_storage_step_as_torch_s_do(name, views):
    bases = []
    for of in ("ours", "torch"):
        base = noise((24,), 0)
        made = run(name, [p.requires_grad_() for p in VIEWS[views](base.detach())], of=of)
        made.go(0, 5)
        bases.append(base)
    close("the storage, ours and torch's", bases[:1], bases[1:], float((bases[1] - noise((24,), 0)).abs().max()))


@every_torch
def test_a_parameter_whose_elements_share_memory_is_refused_as_torch_does(name):
    told = []
    for of in ("ours", "torch"):
        p = torch.ones(1, 3).expand(4, 3).requires_grad_()
        made = run(name, [p], of=of)
        made.gradient = lambda step, index: torch.ones(4, 3)
        told.append(outcome(lambda made=made: made.go(0, 1).params[0].detach()))
    if isinstance(told[1], tuple):
        assert_refused_as_torch(*told)
    else:
        # torch adds up what sparse gradients do to the one element; that is no step of anything.
        assert name == "sparse_adam"
        assert isinstance(told[0], tuple), told[0]


@on_every_engine
def test_expanded_gradients_step_as_their_values(name, engine):
    ends = []
    for whole in (False, True):
        made = run(name, parameters((4, 3), (2, 2)), engine=engine if whole else free(engine))
        made.gradient = lambda step, index, whole=whole, made=made: expanded(made.params[index], step, whole)
        ends.append(made.go())
    if engine == "numba":  # the others stepped elsewhere
        close("expanded gradients and whole ones", ends[0].params, ends[1].params, ends[1].moved, 1e-12)
    else:
        assert_same(*ends, "expanded gradients and whole ones")


def expanded(p: Tensor, step: int, whole: bool) -> Tensor:
    g = noise((1, p.shape[1]), step).expand(p.shape)
    return g.contiguous() if whole else g


def _replaced(made: Run) -> None:
    for p in made.params:
        p.data = p.data.clone()


def _shared(made: Run) -> None:
    for p in made.params:
        p.data.share_memory_()


def _redirected(made: Run) -> None:
    flat = torch.cat([p.data.reshape(-1) for p in made.params])
    for p, part in zip(made.params, flat.split([p.numel() for p in made.params]), strict=True):
        p.data = part.view(p.shape)


def _strided(made: Run) -> None:
    for p in made.params:
        p.data = torch.stack([p.data, p.data], -1)[..., 0]


MOVES = {"replaced": _replaced, "shared": _shared, "one flat storage": _redirected, "strided": _strided}


@pytest.mark.parametrize("move", MOVES)
@on_every_engine
def test_parameters_may_move_in_memory_between_steps(name, engine, move):
    made = run(name, parameters(), engine=free(engine) if move == "strided" else engine).go(0, 4)
    MOVES[move](made)
    made.go(4)
    undisturbed = run(name, parameters(), engine=engine).go()
    limit = 1e-12 if free(engine) != engine and move == "strided" else 1e-14
    close(move, made.params, undisturbed.params, undisturbed.moved, limit)


@every_torch
def test_a_module_changes_its_dtype_and_the_state_follows_at_the_next_load_as_torch_s_does(name):
    ends = []
    for of in ("ours", "torch"):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        made = run(name, list(model.parameters()), of=of)
        for dtype in (torch.float32, torch.float16, torch.float64):
            model.to(dtype)
            made.optimizer.load_state_dict(saved_and_loaded(made.optimizer.state_dict()))
            made.go(3, 6)
        ends.append((made, [str(t.dtype) for t in states_of(made.optimizer) if t.dim()]))
    (ours, dtypes), (theirs, others) = ends
    assert dtypes == others
    close("ours and torch's", ours.params, theirs.params, 1.0, 8 * torch.finfo(torch.float16).eps)


@every_torch
def test_a_parameter_that_is_frozen_between_steps_moves_while_it_has_a_gradient(name):
    ends = []
    for of in ("ours", "torch"):
        made = run(name, parameters(), of=of).go(3, 5)
        made.place(5)
        made.params[0].requires_grad_(False)
        if name in STEPPING:
            made.optimizer.step()
        else:
            made.optimizer.step(lambda: torch.zeros(()))
        frozen = made.params[0].clone()
        made.params[0].grad = None
        made.params = made.params[1:]
        made.initial = made.initial[1:]
        made.go(7, 9)
        ends.append((made, frozen, made.optimizer.param_groups[0]["params"][0]))
    (ours, a, left), (theirs, b, _) = ends
    if name in STEPPING:
        assert torch.equal(a, left)
    close("the frozen parameter", [a], [b], 1.0)
    assert_as_torch(ours, theirs)


# ------------------------------------------------------------------------------------ differentiable

COMPLEX = {"real": False, "complex": True}


def random(seed: int, is_complex: bool = False, low: float = 0.5) -> Tensor:
    """Positive, away from the edges where rules have no derivative."""
    generator = torch.Generator().manual_seed(seed)
    t = low + torch.rand(4, 2, generator=generator, dtype=torch.float64)
    return (torch.view_as_complex(t) if is_complex else t[:, 0].contiguous()).requires_grad_()


TENSOR_OPTIONS = {"sgd": ("weight_decay",), "adam": ("weight_decay",), "adamw": ("weight_decay",)}


@pytest.mark.parametrize("kind", COMPLEX)
@dense
def test_autograd_goes_through_a_step_to_parameter_gradient_states_and_options(name, kind):
    scratch = run(name, [random(0, COMPLEX[kind])]).go(0, 3)
    filled = scratch.optimizer.state[scratch.params[0]]
    scalars = {key: value.double() for key, value in filled.items() if value.dim() == 0}
    names = [key for key in filled if key not in scalars]
    tensors = ("lr", *TENSOR_OPTIONS.get(name, ()))

    def step(p: Tensor, g: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        states, options = rest[: len(names)], dict(zip(tensors, rest[len(names) :], strict=True))
        q = p.clone()
        made = run(name, [q], differentiable=True, **options)
        q.grad = g
        made.optimizer.state[q].update({key: value.clone() for key, value in scalars.items()})
        made.optimizer.state[q].update({key: value.clone() for key, value in zip(names, states, strict=True)})
        made.optimizer.step()
        return (q, *(made.optimizer.state[q][key] for key in names))

    lows = [0.1 if key == "grad_avg" else 2.0 for key in names]  # no variance below 0
    states = [random(5 + i, COMPLEX[kind], low) for i, low in enumerate(lows)]
    options = [torch.tensor(LIVELY[name].get(key, 0.01), dtype=torch.float64, requires_grad=True) for key in tensors]
    given = [random(1, COMPLEX[kind]), random(2, COMPLEX[kind]), *states, *options]
    assert torch.autograd.gradcheck(step, given)
    moved = step(*given)[0]
    for i, (what, t) in enumerate(zip(("p", "g", *names, *tensors), given, strict=True)):
        (slope,) = torch.autograd.grad(moved.abs().sum(), t, allow_unused=True, retain_graph=True)
        expected = reaches_parameter(name, what)
        assert (slope is not None and bool(slope.abs().sum() > 0)) == expected, f"input {i}, {what}"


def reaches_parameter(name: str, what: str) -> bool:
    """Whether the new parameter depends smoothly on this input."""
    nowhere = {
        "asgd": {"ax", "lr"},  # the rate is taken up by `eta`, for the next step
        "rprop": {"g", "prev", "lr"},  # signs alone; lr is where step sizes began
    }
    return what not in nowhere.get(name, set())


@dense
def test_a_learning_rate_is_learned_through_several_steps(name):
    """From empty states on, the loss after three steps as a function of lr."""

    def loss_after(lr: Tensor) -> Tensor:
        p = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True).clone()
        optimizer = run(name, [p], differentiable=True, lr=lr).optimizer
        for _ in range(3):
            q = p.clone()  # the step writes to p, and the loss saves what it reads
            (p.grad,) = torch.autograd.grad((q**4).sum(), q, create_graph=True)
            optimizer.step()
        return (p**2).sum()

    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss_after, (lr,))
    assert torch.autograd.grad(loss_after(lr), lr)[0].abs() > 1e-6


# ------------------------------------------------------------------------------------ torch.compile


class Task:
    """Small classification: a model with as sparse gradients as the optimizer wants, data, and a loss."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.y = torch.randint(0, 4, (16,), generator=generator)
        self.model: nn.Module
        if "sparse_only" in SUBJECTS[name].capabilities:
            self.model = nn.Embedding(12, 4, sparse=True, dtype=dtype)
            self.x = torch.randint(0, 12, (16,), generator=generator)
        else:
            self.model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).to(dtype)
            self.x = torch.randn(16, 6, generator=generator).to(dtype)
        self.params = list(self.model.parameters())
        self.initial = [p.detach().clone() for p in self.params]

    def loss(self, model: nn.Module | None = None) -> Tensor:
        logits = (model or self.model)(self.x)
        return nn.functional.cross_entropy(logits.float() if logits.dtype is torch.bfloat16 else logits, self.y)

    def optimizer(self, name: str, of: str = "ours", **options: Any) -> Any:
        return run(name, self.params, of=of, **options).optimizer


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("inside", ["step", "forward, backward and step", "step with a tensor as lr"])
@every
def test_a_compiled_training_step_gives_the_same_numbers_and_is_compiled_once(name, inside, fresh_compiler):
    def trained(compiled: bool) -> tuple[list[Tensor], list[int]]:
        task = Task(name)
        lr = torch.tensor(0.1) if inside.endswith("lr") else 0.1
        optimizer = task.optimizer(name, lr=lr)
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)

        def whole() -> Any:
            optimizer.zero_grad()
            loss = task.loss()
            loss.backward()
            return loss

        def train_step() -> None:
            if name not in STEPPING:
                optimizer.step(whole)
            elif inside.startswith("forward"):
                whole()
                optimizer.step()
            else:
                optimizer.step()

        step, frames = torch.compile(train_step, backend="eager") if compiled else train_step, []
        for _ in range(20):
            if not inside.startswith("forward") and name in STEPPING:
                whole()
            step()
            scheduler.step()
            frames.append(counters["frames"]["total"])
        return task.params, frames

    plain, _ = trained(False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        compiled, frames = trained(True)
    ours = [str(w.message) for w in told if "torch.jit" not in str(w.message)]  # which torch says to itself
    assert ours == []
    equal("compiled and plain", compiled, plain)
    assert frames[0] > 0
    assert frames[2] == frames[-1], f"frames compiled after each step: {frames}"


# ------------------------------------------------------------------------------------ beside other tools

SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=12, cycle_momentum=False),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, 5),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.02, anneal_epochs=4),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@every_torch
def test_schedulers_and_averages_beside_it_do_as_beside_torch_s(name, schedule):
    ends = []
    for of in ("ours", "torch"):
        task = Task(name, torch.float64)
        optimizer = task.optimizer(name, of)
        scheduler = SCHEDULES[schedule](optimizer)
        average, rates = swa_utils.AveragedModel(task.model), []
        for _ in range(10):
            fit(optimizer, task)
            scheduler.step()
            average.update_parameters(task.model)
            rates.append(optimizer.param_groups[0]["lr"])
        ends.append((list(average.module.parameters()), task, rates))
    (ours, _, rates), (theirs, task, others) = ends
    assert rates == others
    moved = max(float((p - q).detach().abs().max()) for p, q in zip(theirs, task.initial, strict=True))
    close("the average, ours and torch's", ours, theirs, moved, 1e-9)


def fit(optimizer: Any, task: Task) -> None:
    """One step, in the way that suits every optimizer."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task.loss()
        loss.backward()
        return loss

    optimizer.step(closure)


@dense
def test_a_grad_scaler_skips_steps_with_inf_and_leaves_the_state_alone(name):
    ends = []
    for of in ("ours", "torch"):
        task = Task(name)
        optimizer, scaler = task.optimizer(name, of), torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        scales = []
        for factor in (1.0, 2.0, math.inf, 1.0, math.nan, 3.0):
            optimizer.zero_grad()
            scaler.scale(task.loss() * factor).backward()
            before = copy.deepcopy(([p.detach() for p in task.params], states_of(optimizer)))
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            if not math.isfinite(factor):
                equal("parameters after a skipped step", task.params, before[0])
                equal("states after a skipped step", states_of(optimizer), before[1])
        ends.append((task, scales))
    (ours, scales), (theirs, others) = ends
    assert scales == others
    close("ours and torch's", ours.params, theirs.params, 1.0, 1e-5)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@every
def test_lightning_fabric_trains_as_a_plain_loop_does(name, precision, tmp_path):
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    clips = name in DENSE

    plain = Task(name, dtype)
    by_hand = plain.optimizer(name)

    def plain_closure() -> Tensor:
        by_hand.zero_grad()
        loss = plain.loss()
        loss.backward()
        if clips:
            nn.utils.clip_grad_norm_(plain.params, 0.1)
        return loss

    for _ in range(8):
        by_hand.step(plain_closure)

    def set_up() -> Any:
        task = Task(name)
        task.x = task.x.to(dtype) if task.x.is_floating_point() else task.x
        for p, q in zip(task.params, plain.initial, strict=True):
            p.data.copy_(q)
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        model, optimizer = fabric.setup(task.model, task.optimizer(name))

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = task.loss(model)
            fabric.backward(loss)
            if clips:
                fabric.clip_gradients(model, optimizer, max_norm=0.1)
            return loss

        return fabric, {"model": model, "optimizer": optimizer}, closure

    fabric, objects, closure = set_up()
    for _ in range(4):
        objects["optimizer"].step(closure)
    fabric.save(tmp_path / "half.ckpt", objects)
    fabric, objects, closure = set_up()
    fabric.load(tmp_path / "half.ckpt", objects)
    for _ in range(4):
        objects["optimizer"].step(closure)
    equal("Fabric and the plain loop", list(objects["model"].parameters()), plain.params)


@every
def test_fabric_does_not_keep_a_dropped_optimizer(name, no_collector):
    task = Task(name)
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(task.model, task.optimizer(name))
    fit(optimizer, task)
    dropped = weakref.ref(optimizer.optimizer)
    del model, optimizer, fabric
    assert dropped() is None


# ------------------------------------------------------------------------------------ processes and threads


def continue_all(pickled: bytes) -> bytes:
    """In another process: what arrived takes five more steps."""
    arrived = pickle.loads(pickled)
    for name, optimizer in arrived.items():
        made = run(name)
        made.optimizer, made.params = optimizer, optimizer.param_groups[0]["params"]
        made.go(5)
    return pickle.dumps(
        {name: [p.detach().numpy() for p in o.param_groups[0]["params"]] for name, o in arrived.items()}
    )


def test_optimizers_continue_in_a_spawned_process():
    pickled = pickle.dumps({name: run(name).go(0, 5).optimizer for name in NAMES})
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        arrived = pickle.loads(pool.submit(continue_all, pickled).result())
    for name in NAMES:
        equal(
            f"{name} elsewhere",
            [torch.from_numpy(a) for a in arrived[name]],
            [p.detach() for p in run(name).go().params],
        )


def test_different_optimizers_step_in_threads_at_once():
    expected = {key: run(key[0], engine=key[1]).go().params for key in ENGINES}
    for made_once in (trace.signature_of, trace.trace, foreach.source, foreach._compiled, numba.compiled):
        made_once.cache_clear()  # so that the threads meet there too
    jobs = ENGINES * 3
    gate = threading.Barrier(8)

    def work(share: int) -> list[tuple[Any, list[Tensor]]]:
        gate.wait()
        return [(key, run(key[0], engine=key[1]).go().params) for key in jobs[share::8]]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        done = [pair for part in pool.map(work, range(8)) for pair in part]
    assert len(done) == len(jobs)
    for key, params in done:
        equal(f"{key} in a thread", params, expected[key])
