"""The conformance kit on every registered optimizer and scheduler."""

from __future__ import annotations

import pytest

import optplug
from optplug.registry import registry
from optplug.registry.specs import OptimizerSpec, spec_from_target
from optplug.testing import Check, inapplicable_checks, optimizer_checks, scheduler_checks
from support import first_party

OPTIMIZERS = [pytest.param(check, id=f"{n}-{check}") for n in first_party("optimizer") for check in optimizer_checks(n)]
SCHEDULERS = [pytest.param(check, id=f"{n}-{check}") for n in first_party("scheduler") for check in scheduler_checks(n)]


@pytest.mark.parametrize("check", OPTIMIZERS)
def test_optimizer_conforms(check: Check):
    check()


@pytest.mark.parametrize("check", SCHEDULERS)
def test_scheduler_conforms(check: Check):
    check()


CLASSIC_OPTIMIZERS = optplug.list_optimizers("optplug-classic:*")
BUILT_IN_OPTIMIZERS = [*CLASSIC_OPTIMIZERS, *optplug.list_optimizers("optplug-modern:*")]
RULES = [name for name in BUILT_IN_OPTIMIZERS if issubclass(optplug.get_optimizer(name), optplug.RuleOptimizer)]
NO_DECAY = {"weight_decay_matches_formula": "it has no option 'weight_decay'"}
WITH_OWN_DECAY = ("adafactor", "adan", "lamb", "lars", "muon", "prodigy", "schedule_free_adamw", "soap")
OWN_DECAY = {"weight_decay_matches_formula": "its rule implements weight decay itself"}
NO_NEEDS = {"declared_needs_are_real": "it declares no need of a closure or a graph"}
NO_MODES = dict.fromkeys(
    ("eval_before_the_first_step_has_no_effect", "train_reverts_eval", "eval_parameters_decrease_the_loss"),
    "it has no train() and eval()",
)
REAL_ONLY = {"conjugated_gradients_are_stepped": "it takes real parameters only"}
DEPENDENT = {"parameters_have_their_own_step_count": "the step of a parameter depends on other parameters"}
GROUP_STEPS = {
    "parameters_have_their_own_step_count": "declared exception: warmup and average count the steps of the parameter "
    "group"
}
NO_AGC = {"agc_matches_definition": "it takes sparse gradients only, which agc does not support"}


def engines_without_rows(name: str) -> dict[str, str]:
    """The engines that refuse an optimizer because it uses rows and columns of matrices, and their messages."""
    if all(state.dim is None for state in optplug.get_optimizer(name).states):
        return {}
    return {key: reason for key, reason in inapplicable_checks(name).items() if "uses rows and columns" in reason}


@pytest.mark.parametrize("name", RULES)
def test_inapplicable_checks_of_rule_optimizers(name: str):
    absent = "engine {!r} is not part of this version; there are auto, loop, foreach, numba"
    later = {"engine triton": absent.format("triton")}
    own = NO_DECAY if name in ("rprop", "sparse_adam") else OWN_DECAY if name in WITH_OWN_DECAY else {}
    own = {**own, **NO_AGC} if name == "sparse_adam" else own
    capabilities = registry.resolve("optimizer", name).spec.capabilities
    own = own if "complex" in capabilities else {**own, **REAL_ONLY}
    own = {**own, **(GROUP_STEPS if "modes" in capabilities else NO_MODES)}
    own = {**own, **DEPENDENT} if name == "prodigy" else own
    assert inapplicable_checks(name) == {**later, **own, **NO_NEEDS, **engines_without_rows(name)}


def test_all_optimizers_except_lbfgs_have_a_rule():
    assert {*BUILT_IN_OPTIMIZERS} - {*RULES} == {"lbfgs"}
    assert len(CLASSIC_OPTIMIZERS) == 11


@pytest.mark.parametrize("name", RULES)
def test_rules_are_compared_on_all_engines_in_all_cases(name: str):
    ids = {check.id for check in optimizer_checks(name)}
    engines = {
        engine for engine in ("loop", "foreach", "numba") if f"engine {engine}" not in engines_without_rows(name)
    }
    for case in optplug.get_optimizer(name).cases:
        label = ",".join(f"{key}={value}" for key, value in case.items()).replace(" ", "") or "default"
        assert {f"engine_agrees_with_loop[{engine}-{label}]" for engine in engines} <= ids


@pytest.mark.parametrize("name", BUILT_IN_OPTIMIZERS)
def test_spec_and_class_have_equal_capabilities(name: str):
    of_class = spec_from_target(OptimizerSpec, optplug.get_optimizer(name))
    assert registry.resolve("optimizer", name).spec.capabilities == of_class.capabilities
