"""Constructors of optimizers: hyperparameters, `**options`, signatures, subclasses, and Lightning's wrappers."""

from __future__ import annotations

import inspect
import pydoc
import weakref
from decimal import Decimal
from typing import Any, TypedDict

import numpy as np
import pytest
import torch
from typing_extensions import Unpack

import optplug
from optplug import RuleOptimizer, State
from optplug.errors import HyperparameterError, HyperparameterTypeError, RuleError
from optplug.optim.hyperparameters import declared_defaults
from support import lines_with_type_errors

Adam, SGD = optplug.get_optimizer("adam"), optplug.get_optimizer("sgd")


def parameter() -> torch.Tensor:
    p = torch.tensor([1.0, -2.0], requires_grad=True)
    p.grad = torch.ones_like(p)
    return p


class WithOptions(RuleOptimizer):
    """Its constructor takes the keywords of `RuleOptimizer` as untyped `**options`."""

    def __init__(self, params, lr=0.1, factor=1.0, **options):
        super().__init__(params, {"lr": lr, "factor": factor}, **options)

    @staticmethod
    def rule(p, g, *, lr, factor):
        return p - lr * factor * g


class WithoutOptions(RuleOptimizer):
    """The simplest form: a dict of hyperparameters."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @staticmethod
    def rule(p, g, *, lr):
        return p - lr * g


def test_hyperparameters_and_framework_keywords_become_defaults():
    optimizer = WithOptions([parameter()], factor=2.0, maximize=True, engine="loop")
    assert optimizer.engine == "loop"
    assert {key: optimizer.defaults[key] for key in ("lr", "factor", "maximize")} == {
        "lr": 0.1,
        "factor": 2.0,
        "maximize": True,
    }
    assert not {"self", "params", "options", "engine"} & set(optimizer.defaults)
    with pytest.raises(HyperparameterTypeError, match=r"maximize must be True or False"):
        WithOptions([parameter()], maximize=1)


def test_constructor_without_options_takes_no_framework_keyword():
    assert WithoutOptions([parameter()], lr=0.5).defaults["foreach"] is None
    with pytest.raises(HyperparameterTypeError, match=r"unexpected keyword argument 'maximize'; it has params, lr"):
        WithoutOptions([parameter()], maximize=True)


def test_optimizer_is_freed_without_garbage_collection(gc_disabled):
    dropped = weakref.ref(WithOptions([parameter()]))
    assert dropped() is None


def test_hyperparameters_may_contain_defaults_of_framework_keywords():
    class Ascending(WithOptions):
        def __init__(self, params, lr=0.1, **options):
            RuleOptimizer.__init__(self, params, {"lr": lr, "factor": 1.0, "maximize": True}, **options)

    assert Ascending([parameter()]).defaults["maximize"] is True
    assert Ascending([parameter()], maximize=False).defaults["maximize"] is False


def test_unknown_keyword_that_a_constructor_passes_to_rule_optimizer_raises():
    class Misspelled(RuleOptimizer):
        def __init__(self, params, lr=0.1):
            super().__init__(params, {"lr": lr}, maximise=True)

        rule = staticmethod(lambda p, g, *, lr: p - lr * g)

    with pytest.raises(HyperparameterTypeError, match=r"unexpected keyword argument 'maximise'.*'maximize'") as caught:
        Misspelled([parameter()])
    assert caught.value.argument == "maximise"


# ------------------------------------------------------------------------------------------------ signatures


FRAMEWORK = {
    "decoupled_weight_decay": (False, bool),
    "maximize": (False, bool),
    "cautious": (False, bool),
    "clip_value": (None, float | None),
    "clip_norm": (None, float | None),
    "agc": (None, float | None),
    "foreach": (None, bool | None),
    "capturable": (False, bool),
    "differentiable": (False, bool),
    "fused": (None, bool | None),
    "engine": ("auto", optplug.Engine),
    "state_dtype": (None, torch.dtype | str | None),
}
"""The defaults and types of the keywords of `RuleOptimizer`."""

NOT_TAKEN = {
    "adamw": {"decoupled_weight_decay"},
    "rprop": {"decoupled_weight_decay"},
    "sparse_adam": {"decoupled_weight_decay", "foreach", "capturable", "differentiable"},
}
RULE_OPTIMIZERS = [name for name in optplug.list_optimizers("optplug-classic:*") if name != "lbfgs"]


def framework_arguments(cls: Any) -> dict[str, Any]:
    """The default and the type of each framework keyword in the signature of a class."""
    parameters = inspect.signature(cls).parameters
    return {name: (p.default, p.annotation) for name, p in parameters.items() if name in FRAMEWORK}


def test_keywords_of_rule_optimizer_have_documented_types_and_defaults():
    assert framework_arguments(RuleOptimizer) == FRAMEWORK


@pytest.mark.parametrize("name", RULE_OPTIMIZERS)
def test_signature_has_every_keyword_with_type_and_default(name):
    cls = optplug.get_optimizer(name)
    taken = {key: value for key, value in FRAMEWORK.items() if key not in NOT_TAKEN.get(name, ())}
    assert framework_arguments(cls) == taken
    assert all(p.kind is not p.VAR_KEYWORD for p in inspect.signature(cls).parameters.values())
    for key, (default, _) in taken.items():
        assert key in cls([parameter()], **{key: default}).defaults or key in ("engine", "state_dtype")
    for key in NOT_TAKEN.get(name, ()):
        with pytest.raises(HyperparameterTypeError, match=f"unexpected keyword argument {key!r}"):
            cls([parameter()], **{key: FRAMEWORK[key][0]})


def test_help_shows_every_keyword():
    synopsis = pydoc.render_doc(Adam, renderer=pydoc.plaintext).partition("Adaptive moment estimation")[0]
    for text in ("maximize: bool = False", "fused: bool | None = None", "state_dtype: torch.dtype | str | None = None"):
        assert text in synopsis
    assert "options" not in synopsis


class Keys(TypedDict, total=False):
    foreach: bool | None
    warmth: int


class Typed(WithOptions):
    def __init__(self, params, lr=0.5, **options: Unpack[Keys]):
        self.warmth = options.pop("warmth", 3)
        super().__init__(params, lr, **options)


def test_signatures_of_third_party_constructors_are_complete():
    class PassingEverything(Adam):
        def __init__(self, *args, extra: int = 1, **kwargs):
            super().__init__(*args, **kwargs)

    def names(cls):
        return list(inspect.signature(cls).parameters)

    assert names(WithOptions) == ["params", "lr", "factor", *FRAMEWORK, "options"]
    assert names(WithoutOptions) == ["params", "lr"]
    assert names(Typed) == ["params", "lr", "foreach", "warmth"]
    assert Typed([parameter()], warmth=4).warmth == 4
    with pytest.raises(HyperparameterTypeError, match="unexpected keyword argument 'maximize'"):
        Typed([parameter()], maximize=True)
    assert names(PassingEverything) == [*names(Adam)[:6], "extra", *names(Adam)[6:], "options"]
    assert PassingEverything([parameter()], 0.5, extra=2).defaults["lr"] == 0.5
    assert PassingEverything(params=[parameter()]).defaults["lr"] == 1e-3


def test_constructor_may_use_keywords_of_untyped_options():
    class Warm(WithOptions):
        def __init__(self, params, **options):
            self.warmth = options.pop("warmth", 3)
            super().__init__(params, **options)

    assert Warm([parameter()], warmth=4, lr=0.5).warmth == 4
    inspect.signature(Warm).bind([parameter()], warmth=4)  # does not raise
    with pytest.raises(HyperparameterTypeError, match="unexpected keyword argument 'wramth'"):
        Warm([parameter()], wramth=4)


def test_constructor_that_passes_its_locals_raises():
    class OldForm(WithoutOptions):
        def __init__(self, params, lr=1.0):
            RuleOptimizer.__init__(self, params, locals())

    with pytest.raises(RuleError, match=r"OldForm passes its locals\(\): pass a dict of its hyperparameters"):
        OldForm([parameter()])


CORRECT_CALLS = """
optplug_classic.adam.Adam(params, 0.1, betas=(0.5, 0.9), engine="numba", state_dtype=torch.float32, fused=True)
optplug_classic.adamw.AdamW(params, weight_decay=0.1, capturable=True, foreach=None)
optplug_classic.rmsprop.RMSprop(params, 0.1, 0.9, 1e-8, 0.0, 0.9, True, False, None, True, decoupled_weight_decay=True)
Mine(params, lr=0.1, maximize=True, state_dtype="float32")
Mine(params, 0.1, foreach=False)
Mine(params, cautious=True, clip_value=1, clip_norm=None, agc=0.01)
optplug_classic.adamw.AdamW(params, cautious=True, clip_norm=1.0)
optplug_classic.asgd.ASGD(params, agc=None)
optplug_classic.rprop.Rprop(params, cautious=False, clip_value=0.5)
optplug_classic.sparse_adam.SparseAdam(params, clip_norm=0.5)
"""
WRONG_CALLS = """
optplug_classic.adam.Adam(params, maximise=True)
optplug_classic.adam.Adam(params, engine="nubma")
optplug_classic.adam.Adam(params, capturable="yes")
optplug_classic.adam.Adam(params, lr="0.1")
optplug_classic.adamw.AdamW(params, decoupled_weight_decay=False)
optplug_classic.rprop.Rprop(params, decoupled_weight_decay=True)
optplug_classic.adagrad.Adagrad(params, state_dtype=32)
optplug_classic.asgd.ASGD(params, fused="yes")
optplug_classic.asgd.ASGD(params, cautious=None)
optplug_classic.sparse_adam.SparseAdam(params, clip_norm="1")
Mine(params, agc=(0.1,))
Mine(params, factor=2.0)
Mine(params, foreach="yes")
"""
SNIPPET = """
import optplug_classic.adagrad, optplug_classic.adam, optplug_classic.adamw, optplug_classic.asgd
import optplug_classic.rmsprop, optplug_classic.rprop, optplug_classic.sparse_adam
import torch
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, RuleOptions


class Mine(RuleOptimizer):
    def __init__(self, params: Params, lr: float = 0.1, **options: Unpack[RuleOptions]) -> None:
        super().__init__(params, {"lr": lr}, **options)


params = [torch.zeros(1)]
"""


def test_mypy_checks_keywords_in_code_of_users(tmp_path, pytestconfig):
    lines, output = lines_with_type_errors(SNIPPET + CORRECT_CALLS + WRONG_CALLS, tmp_path, pytestconfig)
    first = (SNIPPET + CORRECT_CALLS).count("\n") + 2
    assert lines == set(range(first, first + len(WRONG_CALLS.split("\n")) - 2)), output


# ------------------------------------------------------------------------------------------------ subclasses


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

    cls = type("Wrong", (WithOptions,), {**attributes, "rule": staticmethod(rule)})
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
        assert declared_defaults(type(wrapped)) == declared_defaults(cls)
        for key, value in group.items():
            assert wrapped.param_groups[1][key] == (tuple(value) if isinstance(value, list) else value)
        with pytest.raises(HyperparameterError, match=r"has no option 'weigth_decay'.*'weight_decay'"):
            wrapped.add_param_group({"params": [parameter()], "weigth_decay": 0.1})


def test_numpy_numbers_are_accepted():
    assert Adam([parameter()], lr=np.float32(0.5)).defaults["lr"] == 0.5
    assert optplug.get_optimizer("lbfgs")([parameter()], history_size=np.int64(5)).defaults["history_size"] == 5


@pytest.mark.parametrize(("name", "key"), [("adamw", "decoupled_weight_decay"), ("sparse_adam", "capturable")])
def test_group_option_that_the_constructor_lacks_raises(name, key):
    cls = optplug.get_optimizer(name)
    default = cls([parameter()]).defaults[key]
    with pytest.raises(HyperparameterError, match=f"{cls.__name__} has no option {key!r}") as caught:
        cls([{"params": [parameter()], key: not default}])
    assert caught.value.argument == key
    optimizer = cls([parameter()])
    # A copy of a group has all options, with the default values.
    optimizer.add_param_group({**optimizer.param_groups[0], "params": [parameter()]})


def test_subclass_may_have_fewer_arguments_than_its_base():
    class OnlyLr(Adam):
        def __init__(self, params, lr=1e-3):
            super().__init__(params, lr=lr, betas=(0.9, 0.95))

    class NoArguments(Adam):
        def __init__(self, params):
            super().__init__(params)

    class Subclass(WithOptions):
        def __init__(self, params, **options):
            super().__init__(params, **options)

    assert OnlyLr([parameter()], lr=0.5).defaults["betas"] == (0.9, 0.95)
    assert OnlyLr([{"params": [parameter()], "betas": [0.5, 0.6]}]).param_groups[0]["betas"] == (0.5, 0.6)
    assert NoArguments([parameter()]).defaults["lr"] == 1e-3
    assert Subclass([parameter()], lr=0.2, maximize=True).defaults["lr"] == 0.2


def test_misspelled_keyword_in_kwargs_raises():
    with pytest.raises(HyperparameterTypeError, match=r"unexpected keyword argument 'maximise'.*'maximize'") as caught:
        WithOptions([parameter()], maximise=True, facter=2.0)
    assert [error.argument for error in caught.value.errors] == ["maximise", "facter"]
    with pytest.raises(HyperparameterTypeError, match=r"unexpected keyword argument 'maximise'.*'maximize'") as caught:
        Adam([parameter()], maximise=True, beta=2.0)
    assert [error.argument for error in caught.value.errors] == ["maximise", "beta"]


def test_constructor_with_hidden_signature_takes_every_keyword():
    def hide_signature(function):
        return lambda self, *args, **kwargs: function(self, *args, **kwargs)

    class Hidden(RuleOptimizer):
        @hide_signature
        def __init__(self, params, lr=0.1):
            super().__init__(params, {"lr": lr})

        rule = staticmethod(lambda p, g, *, lr: p - lr * g)

    assert Hidden([parameter()], lr=0.5).defaults["lr"] == 0.5
    assert Hidden(params=[parameter()]).defaults["lr"] == 0.1


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
            RuleOptimizer.__init__(self, params, {"lr": lr})

        rule = staticmethod(lambda p, g, sum, *, lr: (p - lr * g, sum))  # noqa: A006

    OwnRule([parameter()]).step()


def test_share_memory_before_a_special_first_step_raises():
    optimizer = SGD([parameter()], momentum=0.9, dampening=0.5)
    with pytest.raises(RuleError, match=r"call share_memory\(\) after it"):
        optimizer.share_memory()
    optimizer.step()
    optimizer.share_memory()
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["momentum_buffer"].is_shared()
