"""Constructors of optimizers: `locals()` and `**options`, subclasses, and Lightning's wrappers."""

from __future__ import annotations

import weakref
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

import optplug
from optplug import RuleOptimizer, State
from optplug.errors import HyperparameterError, HyperparameterTypeError, RuleError
from optplug.optim.constructor import optimizer_arguments

Adam, SGD = optplug.get_optimizer("adam"), optplug.get_optimizer("sgd")


def parameter() -> torch.Tensor:
    p = torch.tensor([1.0, -2.0], requires_grad=True)
    p.grad = torch.ones_like(p)
    return p


class WithLocals(RuleOptimizer):
    """Its constructor passes `locals()`."""

    def __init__(self, params, lr=0.1, factor=1.0, *, maximize=False, engine="auto"):
        super().__init__(params, locals())

    @staticmethod
    def rule(p, g, *, lr, factor):
        return p - lr * factor * g


class WithKwargs(RuleOptimizer):
    """Its constructor takes the keywords of `RuleOptimizer` as `**options`."""

    def __init__(self, params, lr=0.1, **options):
        super().__init__(params, locals())

    @staticmethod
    def rule(p, g, *, lr):
        return p - lr * g


def test_locals_provide_hyperparameters_and_framework_keywords():
    optimizer = WithLocals([parameter()], factor=2.0, maximize=True, engine="loop")
    assert optimizer.engine == "loop"
    assert {key: optimizer.defaults[key] for key in ("lr", "factor", "maximize")} == {
        "lr": 0.1,
        "factor": 2.0,
        "maximize": True,
    }
    assert not {"self", "params", "__class__", "engine"} & set(optimizer.defaults)


def test_kwargs_in_locals_are_used_and_checked():
    optimizer = WithKwargs([parameter()], maximize=True, engine="loop")
    assert (optimizer.engine, optimizer.defaults["maximize"]) == ("loop", True)
    assert "options" not in optimizer.defaults
    with pytest.raises(HyperparameterTypeError, match=r"maximize must be True or False"):
        WithKwargs([parameter()], maximize=1)


def test_local_variable_that_is_not_an_argument_raises():
    class WithLocalVariable(WithLocals):
        def __init__(self, params, lr=0.1, factor=1.0):
            weight_decay = 0.5
            RuleOptimizer.__init__(self, params, locals())

    with pytest.raises(RuleError, match=r"locals\(\) has weight_decay besides the constructor's arguments"):
        WithLocalVariable([parameter()])


def test_self_and_params_may_have_other_names(gc_disabled):
    class OtherNames(WithLocals):
        def __init__(this, parameters, lr=0.1, factor=1.0):
            RuleOptimizer.__init__(this, parameters, locals())

    optimizer = OtherNames([parameter()])
    assert set(optimizer.defaults) >= {"lr", "factor"}
    assert not {"this", "parameters"} & set(optimizer.defaults)
    dropped = weakref.ref(optimizer)
    del optimizer
    assert dropped() is None


def test_locals_passed_to_constructor_of_another_optimizer_raise():
    class PassingToAdam(Adam):
        def __init__(self, params, lr=0.1):
            super().__init__(params, locals())

    with pytest.raises(RuleError, match=r"write RuleOptimizer.__init__\(self, params, locals\(\)\)"):
        PassingToAdam([parameter()])


def test_explicit_keyword_overrides_locals():
    class Ascending(WithLocals):
        def __init__(self, params, lr=0.1, factor=1.0, *, maximize=False):
            RuleOptimizer.__init__(self, params, locals(), maximize=True)

    assert Ascending([parameter()]).defaults["maximize"] is True


class PassingKeywords(Adam):
    """A subclass that passes all keywords to its base."""

    def __init__(self, params, **keywords):
        super().__init__(params, **keywords)


INVALID_OPTIONS: list[dict[str, Any]] = [
    {"lr": "0.1"},
    {"betas": [2.0, 0.9]},
    {"betas": "abc"},
    {"amsgrad": "yes"},
    {"eps": None},
    {"maximize": 1},
    {"lr": Decimal("0.1")},
]


@pytest.mark.parametrize("options", INVALID_OPTIONS, ids=str)
def test_subclass_that_passes_keywords_is_checked_like_its_base(options):
    errors = []
    for cls in (Adam, PassingKeywords):
        with pytest.raises((HyperparameterError, HyperparameterTypeError)) as caught:
            cls([parameter()], **options)
        errors.append((caught.type, str(caught.value).replace("PassingKeywords", "Adam")))
    assert errors[0] == errors[1]
    assert PassingKeywords([parameter()], betas=[0.5, 0.9]).defaults["betas"] == (0.5, 0.9)


def test_subclass_inherits_the_ranges_of_its_base():
    class NoOwnRanges(optplug.get_optimizer("rmsprop")):
        ranges = ()

    with pytest.raises(HyperparameterError, match="Invalid alpha value: 7"):
        NoOwnRanges([parameter()], alpha=7)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        (
            {"states": (State("m", when="factr"),)},
            "when of state m names the unknown hyperparameter 'factr'; did you mean 'factor'",
        ),
        ({"states": (State("m", init="rl"),)}, "init of state m names the unknown hyperparameter 'rl'"),
        (
            {"ranges": (optplug.optim.ranges.at_least(0, "fctor"),)},
            "ranges: fctor names the unknown hyperparameter 'fctor'; did you mean 'factor'",
        ),
    ],
)
def test_declaration_with_unknown_hyperparameter_raises(attributes, words):
    def rule(p, g, m=None, *, lr, factor):
        return (p - lr * factor * g, m) if "states" in attributes else p - lr * factor * g

    if "ranges" in attributes:

        def rule(p, g, *, lr, factor):
            return p - lr * factor * g

    cls = type("Wrong", (WithLocals,), {**attributes, "rule": staticmethod(rule)})
    with pytest.raises(RuleError, match=words):
        cls([parameter()])


@pytest.mark.parametrize("name", ["lightning", "fabric"])
def test_add_param_group_works_through_the_wrappers_of_lightning(name):
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
        # The constructor of the wrapper is ignored.
        assert optimizer_arguments(type(wrapped), RuleOptimizer) == optimizer_arguments(cls, RuleOptimizer)
        for key, value in group.items():
            assert wrapped.param_groups[1][key] == (tuple(value) if isinstance(value, list) else value)
        with pytest.raises(HyperparameterError, match=r"has no option 'weigth_decay'.*'weight_decay'"):
            wrapped.add_param_group({"params": [parameter()], "weigth_decay": 0.1})


def test_numpy_numbers_are_accepted():
    assert Adam([parameter()], lr=np.float32(0.5)).defaults["lr"] == 0.5
    assert optplug.get_optimizer("lbfgs")([parameter()], history_size=np.int64(5)).defaults["history_size"] == 5


def test_group_option_that_the_constructor_lacks_raises():
    with pytest.raises(HyperparameterError, match="SGD has no option 'capturable'"):
        SGD([{"params": [parameter()], "capturable": True}])
    optimizer = SGD([parameter()])
    # A copy of a group has all options, with the default values.
    optimizer.add_param_group({**optimizer.param_groups[0], "params": [parameter()]})


def test_subclass_may_have_fewer_arguments_than_the_base_that_passes_locals():
    class OnlyLr(Adam):
        def __init__(self, params, lr=1e-3):
            super().__init__(params, lr=lr, betas=(0.9, 0.95))

    class NoArguments(Adam):
        def __init__(self, params):
            super().__init__(params)

    class Subclass(WithKwargs):
        def __init__(self, params, **options):
            super().__init__(params, **options)

    assert OnlyLr([parameter()], lr=0.5).defaults["betas"] == (0.9, 0.95)
    assert NoArguments([parameter()]).defaults["lr"] == 1e-3
    assert Subclass([parameter()], lr=0.2, maximize=True).defaults["lr"] == 0.2


def test_misspelled_keyword_in_kwargs_raises():
    with pytest.raises(HyperparameterTypeError, match=r"unexpected keyword argument 'maximise'.*'maximize'"):
        WithKwargs([parameter()], maximise=True)


def test_constructor_may_use_variables_of_an_enclosing_function():
    def make(scale):
        class Scaled(WithLocals):
            def __init__(self, params, lr=0.1, factor=1.0):
                assert scale > 0
                RuleOptimizer.__init__(self, params, locals())

        return Scaled

    assert "scale" not in make(2)([parameter()]).defaults


def test_decorated_constructor_with_hidden_signature_raises_with_advice():
    def hide_signature(function):
        return lambda self, *args, **kwargs: function(self, *args, **kwargs)

    class Hidden(RuleOptimizer):
        @hide_signature
        def __init__(self, params, lr=0.1):
            super().__init__(params, locals())

        rule = staticmethod(lambda p, g, *, lr: p - lr * g)

    with pytest.raises(RuleError, match="pass a dict of hyperparameters"):
        Hidden([parameter()])


def test_positional_only_arguments_are_hyperparameters():
    class PositionalOnly(RuleOptimizer):
        def __init__(self, params, lr=0.1, /):
            super().__init__(params, locals())

        rule = staticmethod(lambda p, g, *, lr: p - lr * g)

    assert PositionalOnly([parameter()], 0.2).defaults["lr"] == 0.2


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"betas": (5.0, 7.0)}, {"lr": float("nan")}], ids=str)
def test_options_with_default_none_are_checked(options):
    class NoneDefaults(Adam):
        def __init__(self, params, lr=None, betas=None, **rest):
            super().__init__(params, lr=1e-3 if lr is None else lr, betas=betas or (0.9, 0.99), **rest)

    with pytest.raises(HyperparameterError):
        NoneDefaults([parameter()], **options)
    with pytest.raises(HyperparameterError):
        NoneDefaults([{"params": [parameter()], **options}])


def test_subclass_with_own_rule_need_not_have_the_hyperparameters_of_its_base():
    class OwnRule(optplug.get_optimizer("adagrad")):
        states = (State("sum"),)

        def __init__(self, params, lr=0.1):
            RuleOptimizer.__init__(self, params, locals())

        rule = staticmethod(lambda p, g, sum, *, lr: (p - lr * g, sum))  # noqa: A006

    OwnRule([parameter()]).step()


def test_share_memory_before_a_special_first_step_raises():
    optimizer = SGD([parameter()], momentum=0.9, dampening=0.5)
    with pytest.raises(RuleError, match=r"call share_memory\(\) after it"):
        optimizer.share_memory()
    optimizer.step()
    optimizer.share_memory()
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["momentum_buffer"].is_shared()
