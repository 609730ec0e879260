"""What constructors hand over: `locals()`, `**options`; subclasses, and the wrappers that Lightning makes."""

from __future__ import annotations

import gc
import weakref
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

import optplug
from optplug import RuleOptimizer, State
from optplug.errors import HyperparameterError, HyperparameterTypeError, RuleError
from optplug.optim.constructor import constructor_arguments

Adam, SGD = optplug.get_optimizer("adam"), optplug.get_optimizer("sgd")


def parameter() -> torch.Tensor:
    p = torch.tensor([1.0, -2.0], requires_grad=True)
    p.grad = torch.ones_like(p)
    return p


class Plain(RuleOptimizer):
    """A rule whose constructor hands over its locals."""

    def __init__(self, params, lr=0.1, factor=1.0, *, maximize=False, engine="auto"):
        super().__init__(params, locals())

    @staticmethod
    def rule(p, g, *, lr, factor):
        return p - lr * factor * g


class Open(RuleOptimizer):
    """One that takes the framework's keywords as they come."""

    def __init__(self, params, lr=0.1, **options):
        super().__init__(params, locals())

    @staticmethod
    def rule(p, g, *, lr):
        return p - lr * g


def test_locals_are_the_hyperparameters_and_the_framework_s_keywords():
    optimizer = Plain([parameter()], factor=2.0, maximize=True, engine="loop")
    assert optimizer.engine == "loop"
    assert {key: optimizer.defaults[key] for key in ("lr", "factor", "maximize")} == {
        "lr": 0.1,
        "factor": 2.0,
        "maximize": True,
    }
    assert not {"self", "params", "__class__", "engine"} & set(optimizer.defaults)


def test_open_options_among_the_locals_are_taken_and_checked():
    optimizer = Open([parameter()], maximize=True, engine="loop")
    assert (optimizer.engine, optimizer.defaults["maximize"]) == ("loop", True)
    assert "options" not in optimizer.defaults
    with pytest.raises(HyperparameterTypeError, match=r"maximize must be True or False"):
        Open([parameter()], maximize=1)


def test_a_local_variable_that_is_no_argument_is_refused():
    class Helped(Plain):
        def __init__(self, params, lr=0.1, factor=1.0):
            weight_decay = 0.5
            RuleOptimizer.__init__(self, params, locals())

    with pytest.raises(RuleError, match=r"locals\(\) has weight_decay besides the constructor's arguments"):
        Helped([parameter()])


def test_the_first_arguments_may_have_other_names():
    class Named(Plain):
        def __init__(this, parameters, lr=0.1, factor=1.0):
            RuleOptimizer.__init__(this, parameters, locals())

    collecting = gc.isenabled()
    gc.disable()
    try:
        optimizer = Named([parameter()])
        assert set(optimizer.defaults) >= {"lr", "factor"}
        assert not {"this", "parameters"} & set(optimizer.defaults)
        dropped = weakref.ref(optimizer)
        del optimizer
        assert dropped() is None
    finally:
        if collecting:
            gc.enable()


def test_locals_handed_to_another_optimizer_s_constructor_are_refused():
    class Wrong(Adam):
        def __init__(self, params, lr=0.1):
            super().__init__(params, locals())

    with pytest.raises(RuleError, match=r"write RuleOptimizer.__init__\(self, params, locals\(\)\)"):
        Wrong([parameter()])


def test_an_explicit_keyword_goes_before_the_locals():
    class Ascending(Plain):
        def __init__(self, params, lr=0.1, factor=1.0, *, maximize=False):
            RuleOptimizer.__init__(self, params, locals(), maximize=True)

    assert Ascending([parameter()]).defaults["maximize"] is True


class Keywords(Adam):
    """A subclass that hands everything on."""

    def __init__(self, params, **keywords):
        super().__init__(params, **keywords)


BAD: list[dict[str, Any]] = [
    {"lr": "0.1"},
    {"betas": [2.0, 0.9]},
    {"betas": "abc"},
    {"amsgrad": "yes"},
    {"eps": None},
    {"maximize": 1},
    {"lr": Decimal("0.1")},
]


@pytest.mark.parametrize("options", BAD, ids=str)
def test_a_subclass_that_hands_keywords_on_is_checked_like_its_base(options):
    told = []
    for cls in (Adam, Keywords):
        with pytest.raises((HyperparameterError, HyperparameterTypeError)) as caught:
            cls([parameter()], **options)
        told.append((caught.type, str(caught.value).replace("Keywords", "Adam")))
    assert told[0] == told[1]
    assert Keywords([parameter()], betas=[0.5, 0.9]).defaults["betas"] == (0.5, 0.9)


def test_a_subclass_keeps_the_ranges_of_its_base():
    class Sub(optplug.get_optimizer("rmsprop")):
        ranges = ()

    with pytest.raises(HyperparameterError, match="Invalid alpha value: 7"):
        Sub([parameter()], alpha=7)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"states": (State("m", when="factr"),)}, "when of state m names no hyperparameter 'factr'"),
        ({"states": (State("m", init="rl"),)}, "init of state m names no hyperparameter 'rl'"),
        ({"ranges": (optplug.optim.ranges.at_least(0, "fctor"),)}, "ranges: fctor names no hyperparameter 'fctor'"),
    ],
)
def test_a_declaration_that_names_no_hyperparameter_is_refused(attributes, words):
    def rule(p, g, m=None, *, lr, factor):
        return (p - lr * factor * g, m) if "states" in attributes else p - lr * factor * g

    if "ranges" in attributes:

        def rule(p, g, *, lr, factor):
            return p - lr * factor * g

    cls = type("Wrong", (Plain,), {**attributes, "rule": staticmethod(rule)})
    with pytest.raises(RuleError, match=words):
        cls([parameter()])


@pytest.mark.parametrize("name", ["lightning", "fabric"])
def test_groups_are_added_through_the_wrappers_of_lightning(name):
    if name == "lightning":
        from lightning.pytorch.core.optimizer import LightningOptimizer as Wrapper

        wrap = Wrapper
    else:
        from lightning.fabric import Fabric

        fabric = Fabric(accelerator="cpu", devices=1)

        def wrap(optimizer):
            return fabric.setup(torch.nn.Linear(2, 1), optimizer)[1]

    for cls, group in ((Adam, {"lr": 0.5, "betas": [0.1, 0.2]}), (SGD, {"weight_decay": 0.5})):
        optimizer = cls(torch.nn.Linear(2, 1).parameters())
        wrapped = wrap(optimizer)
        wrapped.add_param_group({"params": [parameter()], **group})
        assert constructor_arguments(type(wrapped), RuleOptimizer) == constructor_arguments(
            cls, RuleOptimizer
        )  # the wrapper has no say
        for key, value in group.items():
            assert wrapped.param_groups[1][key] == (tuple(value) if isinstance(value, list) else value)
        with pytest.raises(HyperparameterError, match=r"has no option 'weigth_decay'.*'weight_decay'"):
            wrapped.add_param_group({"params": [parameter()], "weigth_decay": 0.1})


def test_numbers_of_numpy_are_numbers():
    assert Adam([parameter()], lr=np.float32(0.5)).defaults["lr"] == 0.5
    assert optplug.get_optimizer("lbfgs")([parameter()], history_size=np.int64(5)).defaults["history_size"] == 5


def test_a_group_may_not_have_a_framework_s_option_that_the_constructor_lacks():
    with pytest.raises(HyperparameterError, match="SGD has no option 'capturable'"):
        SGD([{"params": [parameter()], "capturable": True}])
    optimizer = SGD([parameter()])
    optimizer.add_param_group({**optimizer.param_groups[0], "params": [parameter()]})  # a copied group has them all


def test_subclasses_may_have_fewer_arguments_than_the_base_whose_locals_are_handed_over():
    class Narrow(Adam):
        def __init__(self, params, lr=1e-3):
            super().__init__(params, lr=lr, betas=(0.9, 0.95))

    class Bare(Adam):
        def __init__(self, params):
            super().__init__(params)

    class Further(Open):
        def __init__(self, params, **options):
            super().__init__(params, **options)

    assert Narrow([parameter()], lr=0.5).defaults["betas"] == (0.9, 0.95)
    assert Bare([parameter()]).defaults["lr"] == 1e-3
    assert Further([parameter()], lr=0.2, maximize=True).defaults["lr"] == 0.2


def test_a_misspelt_keyword_among_open_options_is_refused():
    with pytest.raises(HyperparameterTypeError, match=r"unexpected keyword argument 'maximise'.*'maximize'"):
        Open([parameter()], maximise=True)


def test_a_constructor_may_use_what_surrounds_it():
    def make(scale):
        class Scaled(Plain):
            def __init__(self, params, lr=0.1, factor=1.0):
                assert scale > 0
                RuleOptimizer.__init__(self, params, locals())

        return Scaled

    assert "scale" not in make(2)([parameter()]).defaults


def test_a_decorated_constructor_whose_signature_is_hidden_is_told_what_to_do():
    def hiding(function):
        return lambda self, *args, **kwargs: function(self, *args, **kwargs)

    class Hidden(RuleOptimizer):
        @hiding
        def __init__(self, params, lr=0.1):
            super().__init__(params, locals())

        rule = staticmethod(lambda p, g, *, lr: p - lr * g)

    with pytest.raises(RuleError, match="hand over a dict of hyperparameters"):
        Hidden([parameter()])


def test_positional_only_arguments_are_hyperparameters():
    class Positional(RuleOptimizer):
        def __init__(self, params, lr=0.1, /):
            super().__init__(params, locals())

        rule = staticmethod(lambda p, g, *, lr: p - lr * g)

    assert Positional([parameter()], 0.2).defaults["lr"] == 0.2


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"betas": (5.0, 7.0)}, {"lr": float("nan")}], ids=str)
def test_a_default_of_none_does_not_switch_checks_off(options):
    class Late(Adam):
        def __init__(self, params, lr=None, betas=None, **rest):
            super().__init__(params, lr=1e-3 if lr is None else lr, betas=betas or (0.9, 0.99), **rest)

    with pytest.raises(HyperparameterError):
        Late([parameter()], **options)
    with pytest.raises(HyperparameterError):
        Late([{"params": [parameter()], **options}])


def test_a_subclass_with_a_rule_of_its_own_need_not_have_the_hyperparameters_of_its_base():
    class Other(optplug.get_optimizer("adagrad")):
        states = (State("sum"),)

        def __init__(self, params, lr=0.1):
            RuleOptimizer.__init__(self, params, locals())

        rule = staticmethod(lambda p, g, sum, *, lr: (p - lr * g, sum))  # noqa: A006

    Other([parameter()]).step()


def test_states_that_a_first_step_makes_are_not_shared_before_it():
    optimizer = SGD([parameter()], momentum=0.9, dampening=0.5)
    with pytest.raises(RuleError, match=r"share_memory\(\) comes after it"):
        optimizer.share_memory()
    optimizer.step()
    optimizer.share_memory()
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["momentum_buffer"].is_shared()
