"""Tests of the conformance kit: correct classes pass, and each fault fails the check that must detect it."""

from __future__ import annotations

import re
from typing import ClassVar

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

import optplug
from broken_optimizers import Plain
from optplug import ClosedFormLR, RuleOptimizer, State, ops
from optplug.engines import foreach
from optplug.registry.specs import OptimizerSpec, SchedulerSpec
from optplug.rules import modifiers, trace
from optplug.testing import (
    Check,
    check_optimizer,
    check_scheduler,
    conformance_report,
    inapplicable_checks,
    optimizer_checks,
    parametrize,
    scheduler_checks,
)
from optplug.testing.modifiers import MODIFIERS


class Correct(RuleOptimizer):
    """A correct optimizer; the faulty classes derive from it."""

    states = (State("step", scalar=True), State("velocity"))

    def __init__(self, params, lr=0.01, friction=0.1, weight_decay=0.0, **options):
        super().__init__(params, {"lr": lr, "friction": friction, "weight_decay": weight_decay}, **options)

    @staticmethod
    def rule(p, g, step, velocity, *, lr, friction):
        step = step + 1
        velocity = (1 - friction) * velocity + g
        return p - lr / ops.sqrt(step) * velocity, step, velocity


NO_MODES = "it has no train() and eval()"
NO_MODES_NO_NEEDS = {
    "eval_before_the_first_step_has_no_effect": NO_MODES,
    "train_reverts_eval": NO_MODES,
    "eval_parameters_decrease_the_loss": NO_MODES,
    "declared_needs_are_real": "it declares no need of a closure or a graph",
}


def failed_optimizer_checks(optimizer) -> set[str]:
    """Return the properties whose checks fail."""
    return failed_properties(optimizer_checks(importable(optimizer)))


def importable(cls: type) -> type:
    """Make a class that is defined in a test a global of this module, so that pickle finds it."""
    if "<locals>" in cls.__qualname__:
        cls.__module__, cls.__qualname__ = __name__, cls.__name__
        globals()[cls.__name__] = cls
    return cls


def failed_properties(checks: list[Check]) -> set[str]:
    failed = {}
    for check in checks:
        try:
            check()
        except AssertionError as error:
            failed[check.id] = str(error)
    assert all(text.startswith(f"{id_}: ") for id_, text in failed.items())
    return {id_.partition("[")[0] for id_ in failed}


def test_correct_optimizer_passes_and_unavailable_engine_is_reported():
    absent = "engine {!r} is not part of this version; there are auto, loop, foreach, numba"
    assert check_optimizer(Correct) == {"engine triton": absent.format("triton"), **NO_MODES_NO_NEEDS}
    ids = [check.id for check in optimizer_checks(Correct)]
    assert len(ids) == len(set(ids)) == 90


def test_check_optimizer_raises_one_error_with_all_failures():
    class Wrong(Correct):
        @staticmethod
        def rule(p, g, step, velocity, *, lr, friction):
            return p + lr * g, step + 1, velocity

    with pytest.raises(AssertionError) as caught:
        check_optimizer(importable(Wrong))
    assert str(caught.value) == (
        "3 of 90 checks failed:\n"
        "quadratic_loss_decreases[loop-default]: 30 steps on x² change it from 5 to 16.4052; it must decrease\n"
        "quadratic_loss_decreases[foreach-default]: 30 steps on x² change it from 5 to 16.4052; it must decrease\n"
        "quadratic_loss_decreases[numba-default]: 30 steps on x² change it from 5 to 16.4052; it must decrease"
    )


def test_wrong_foreach_code_is_detected(monkeypatch):
    original = foreach._compile_step

    def compiled(traced):
        step = original(traced)
        exec(foreach.source(traced).replace("alpha=-", "alpha=-1.0000001 * "), step.__globals__, scope := {})
        return scope["step"]

    monkeypatch.setattr(foreach, "_compile_step", compiled)
    # foreach steps the layouts that numba cannot take.
    assert failed_optimizer_checks(Correct) == {
        "engine_agrees_with_loop",
        "memory_layout_has_no_effect",
        "conjugated_gradients_are_stepped",
    }
    monkeypatch.setattr(foreach, "_compile_step", original)
    assert failed_optimizer_checks(Correct) == set()


def test_rule_that_modifies_the_gradient_is_detected():
    class ModifiesGradient(Correct):
        @staticmethod
        def rule(p, g, step, velocity, *, lr, friction):
            return Correct.rule(p, g.clamp_(-1, 1), step, velocity, lr=lr, friction=friction)

    assert "gradients_are_not_modified" in failed_optimizer_checks(ModifiesGradient)
    assert inapplicable_checks(ModifiesGradient)["engine foreach"] == (
        "engine 'foreach' cannot run this rule: a rule may not use the attribute .clamp_; it may use + - * / ** and "
        "abs, amax, dot, exp, lerp, log, maximum, mean and 7 more (see optplug.ops)"
    )


def test_state_lost_on_resume_is_detected():
    class LosesState(Correct):
        def state_dict(self):
            saved = super().state_dict()
            for state in saved["state"].values():
                state.pop("velocity", None)
            return saved

    assert {"resumed_equals_uninterrupted", "lr_changes_take_effect"} <= failed_optimizer_checks(LosesState)

    class KeepsStateInAttribute(torch.optim.Optimizer):
        """Keeps its step count outside of `state`."""

        def __init__(self, params, lr=0.01):
            super().__init__(params, {"lr": lr})
            self.count = 0

        @torch.no_grad()
        def step(self, closure=None):
            loss = None if closure is None else torch.enable_grad()(closure)()
            self.count += 1
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p -= group["lr"] / self.count * p.grad.sign()
            return loss

    assert {"resumed_equals_uninterrupted", "copies_continue_identically"} <= failed_optimizer_checks(
        KeepsStateInAttribute
    )


class WrongForComplex(torch.optim.Optimizer):
    """An optimizer without a rule, whose step is wrong for complex parameters."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    if p.grad.is_sparse:
                        raise RuntimeError("dense gradients only")
                    p.sub_(group["lr"] * p.grad / (1 + p.grad * p.grad))
        return loss


def test_missing_and_wrong_capabilities_are_detected():
    class DeclaresComplex(WrongForComplex):
        capabilities = frozenset({"complex"})

    class DeclaresSparse(WrongForComplex):
        capabilities = frozenset({"sparse"})

    class DeclaresModes(WrongForComplex):
        capabilities = frozenset({"modes"})

    class DeclaresClosure(WrongForComplex):
        capabilities = frozenset({"closure"})

    class RejectsComplex(WrongForComplex):
        def step(self, closure=None):
            if any(p.is_complex() for group in self.param_groups for p in group["params"]):
                raise TypeError("real parameters only")
            return super().step(closure)

    assert failed_optimizer_checks(RejectsComplex) == set()
    assert failed_optimizer_checks(WrongForComplex) == {"capability_complex_is_correct"}
    assert failed_optimizer_checks(DeclaresComplex) == {"capability_complex_is_correct"}
    assert failed_optimizer_checks(DeclaresSparse) == {"capability_complex_is_correct", "capability_sparse_is_correct"}
    assert "capability_modes_is_correct" in failed_optimizer_checks(DeclaresModes)
    assert "declared_needs_are_real" in failed_optimizer_checks(DeclaresClosure)

    class TakesSparse(RejectsComplex):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad = p.grad.to_dense() if p.grad is not None and p.grad.is_sparse else p.grad
            return super().step(closure)

    assert failed_optimizer_checks(TakesSparse) == {"capability_sparse_is_correct"}


def test_plain_optimizer_class_has_inapplicable_checks_with_reasons():
    assert inapplicable_checks(WrongForComplex) == {
        "engine_agrees_with_loop": "not a RuleOptimizer: it has no rule and no engines",
        "engine_report_is_correct": "not a RuleOptimizer: it has no rule and no engines",
        "maximize_equals_minimizing_the_negative": "it has no option 'maximize'",
        "weight_decay_matches_formula": "not a RuleOptimizer: it has no rule and no engines",
        "clip_value_matches_definition": "not a RuleOptimizer: it has no rule and no engines",
        "clip_norm_matches_definition": "not a RuleOptimizer: it has no rule and no engines",
        "agc_matches_definition": "not a RuleOptimizer: it has no rule and no engines",
        "cautious_matches_definition": "not a RuleOptimizer: it has no rule and no engines",
        "all_modifiers_match_definition": "not a RuleOptimizer: it has no rule and no engines",
        "state_dtype_is_kept": "not a RuleOptimizer: it has no rule and no engines",
        "invalid_options_are_rejected": "not a RuleOptimizer: it has no rule and no engines",
        **NO_MODES_NO_NEEDS,
        "conjugated_gradients_are_stepped": "it takes real parameters only",
    }
    assert len(optimizer_checks(WrongForComplex)) == 28


def test_optimizer_with_capability_closure_is_stepped_with_a_closure():
    class LBFGS(torch.optim.LBFGS):
        capabilities = frozenset({"closure"})

    # pickle and deepcopy lose the list of parameters of torch's LBFGS.
    assert failed_optimizer_checks(LBFGS) == {"copies_continue_identically"}
    assert inapplicable_checks(LBFGS)["gradients_are_not_modified"] == "it needs closure"


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("replaces gradients", "gradients_are_not_modified"),
        ("moves parameters without gradient", "parameters_without_gradient_do_not_change"),
        ("copies lose the engine", "copies_continue_identically"),
        ("ignores maximize", "maximize_equals_minimizing_the_negative"),
        ("ignores weight_decay", "weight_decay_matches_formula"),
        ("ignores clip_value", "clip_value_matches_definition"),
        ("ignores clip_norm", "clip_norm_matches_definition"),
        ("ignores agc", "agc_matches_definition"),
        ("ignores cautious", "cautious_matches_definition"),
        ("ignores agc", "all_modifiers_match_definition"),
        ("keeps the first lr", "lr_changes_take_effect"),
        ("wrong for non-contiguous tensors", "memory_layout_has_no_effect"),
        ("calls the closure twice", "closure_is_called_once_before_the_update"),
        ("calls the closure with gradients disabled", "closure_is_called_once_before_the_update"),
        ("ignores added groups", "added_groups_are_stepped"),
        ("loses the state dtype", "state_dtype_is_kept"),
        ("does not check options", "invalid_options_are_rejected"),
        ("reference cycle", "unreferenced_optimizer_is_freed"),
        ("global cache", "unreferenced_optimizer_is_freed"),
        ("wrong engine report", "engine_report_is_correct"),
        ("increases parameters", "quadratic_loss_decreases"),
    ],
)
def test_optimizer_fault_fails_its_check(fault, check):
    cache: list[object] = []

    class Faulty(Correct):
        def __init__(self, params, **options):
            super().__init__(params, **options)
            self.first_lr = self.param_groups[0]["lr"]
            if fault == "reference cycle":
                self.myself = self
            if fault == "global cache":
                cache.append(self)

        def __getstate__(self):
            state = super().__getstate__() | {"first_lr": self.first_lr}
            if fault == "copies lose the engine":
                state["engine"] = "auto"
            return state

        def _variant(self, group, **options):
            group = dict(group)
            if fault == "ignores maximize":
                group["maximize"] = False
            if fault == "ignores weight_decay":
                group["weight_decay"] = 0.0
            if fault.removeprefix("ignores ") in MODIFIERS:
                group[fault.removeprefix("ignores ")] = None
            return super()._variant(group, **options)

        def step(self, closure=None):
            if fault == "calls the closure twice" and closure is not None:
                closure()
            if fault == "calls the closure with gradients disabled" and closure is not None:
                with torch.no_grad():
                    loss = closure()
                super().step()
                return loss
            params = [p for group in self.param_groups for p in group["params"]]
            if fault == "replaces gradients":
                for p in params:
                    p.grad = None if p.grad is None else p.grad.clone()
            if fault == "ignores added groups":
                for group in self.param_groups[1:]:
                    for p in group["params"]:
                        p.grad = None
            if fault == "keeps the first lr":
                for group in self.param_groups:
                    group["lr"] = self.first_lr
            loss = super().step(closure)
            with torch.no_grad():
                if fault == "moves parameters without gradient":
                    for p in params:
                        p.mul_(0.999)
                if fault == "wrong for non-contiguous tensors":
                    for p in params:
                        if not p.is_contiguous():
                            p.add_(1e-6)
                if fault == "increases parameters":
                    for p in params:
                        p.mul_(1.1)
            return loss

        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)
            if fault == "loses the state dtype":
                for p, state in self.state.items():
                    state["velocity"] = state["velocity"].to(p.dtype)

        def _check_group(self, group, defaults):
            if fault != "does not check options":
                super()._check_group(group, defaults)

        def engine_report(self):
            return [] if fault == "wrong engine report" else super().engine_report()

    Faulty.__init__.__signature__ = __import__("inspect").signature(Correct.__init__)
    assert check in failed_optimizer_checks(Faulty)


def ascending_limits_only(p, g, limit):
    return ops.minimum(g, limit)


def limit_without_minimum(p, g, ratio):
    return modifiers.clip_norm(p, g, ratio * ops.norm(p) + 1e-30)


def limit_of_the_mean_square(p, g, limit):
    return modifiers.clip_norm(p, g, limit * ops.sqrt(ops.numel(g)))


def always_scaled(p, g, limit):
    return g * (limit / ops.norm(g))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("clip_value", ascending_limits_only),
        ("clip_value", lambda p, g, limit: modifiers.clip_value(p, g, 1.000001 * limit)),
        ("clip_value", modifiers.clip_norm),
        ("clip_norm", always_scaled),
        ("clip_norm", limit_of_the_mean_square),
        ("clip_norm", modifiers.clip_value),
        ("agc", limit_without_minimum),
        ("agc", always_scaled),
        ("agc", modifiers.clip_norm),
    ],
)
def test_wrong_limit_of_the_gradient_is_detected(name, wrong, monkeypatch):
    monkeypatch.setitem(modifiers.CLIPS, name, wrong)
    assert failed_modifier_checks(Correct) == {f"{name}_matches_definition", "all_modifiers_match_definition"}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p, g, new_p: ops.where(g * (p - new_p) <= 0, new_p, p),  # the opposite
        lambda p, g, new_p: ops.where(g * (p - new_p) < 0, 0.0 * p, new_p),  # not the parameter
        lambda p, g, new_p: ops.where(g * new_p >= 0, p, new_p),  # not the update
    ],
)
def test_wrong_mask_of_the_update_is_detected(wrong, monkeypatch):
    monkeypatch.setattr(trace, "postlude", lambda p, g, new_p, cautious: wrong(p, g, new_p) if cautious else new_p)
    assert failed_modifier_checks(Correct) == {"cautious_matches_definition", "all_modifiers_match_definition"}


def test_wrong_order_of_modifiers_is_detected(monkeypatch):
    monkeypatch.setattr(modifiers, "CLIPS", dict(reversed(modifiers.CLIPS.items())))
    original = modifiers.prelude
    monkeypatch.setattr(trace, "prelude", lambda *args, clips, **options: original(*args, clips=clips[::-1], **options))
    assert failed_modifier_checks(Correct) == {"all_modifiers_match_definition"}


class Decayed(Correct):
    cases = ({"weight_decay": 0.3}, {"weight_decay": 0.9, "decoupled_weight_decay": True})


def test_cautious_that_ignores_the_weight_decay_is_detected(monkeypatch):
    """The gradient and the parameter before the weight decay are the wrong ones."""
    before = []
    original = modifiers.prelude

    def prelude(p, g, *args, **options):
        before[:] = [p, g]
        return original(p, g, *args, **options)

    monkeypatch.setattr(trace, "prelude", prelude)
    assert failed_modifier_checks(Decayed) == set()
    for wrong in (
        lambda p, g, new_p, cautious: modifiers.postlude(before[0], g, new_p, cautious=cautious),
        lambda p, g, new_p, cautious: modifiers.postlude(p, before[1], new_p, cautious=cautious),
    ):
        monkeypatch.setattr(trace, "postlude", wrong)
        assert "cautious_matches_definition" in failed_modifier_checks(Decayed)


def failed_modifier_checks(optimizer) -> set[str]:
    """Return the properties of modifiers whose checks fail. Traces with other modifiers are not used."""
    trace.trace.cache_clear()
    try:
        return failed_properties([check for check in optimizer_checks(optimizer) if "definition[" in check.id])
    finally:
        trace.trace.cache_clear()


def test_modifiers_that_do_not_apply_are_listed_with_the_reason():
    class WithoutOptions(Correct):
        def __init__(self, params, lr=0.01, friction=0.1, engine="auto"):
            super().__init__(params, lr, friction, engine=engine)

    class OwnModifiers(Correct):
        @staticmethod
        def rule(p, g, step, velocity, *, lr, friction, clip_norm, cautious=False):
            return Correct.rule(p, g, step, velocity, lr=lr, friction=friction)

        def __init__(self, params, lr=0.01, friction=0.1, clip_norm=0.0, cautious=False, **options):
            hypers = {"lr": lr, "friction": friction, "clip_norm": clip_norm, "cautious": cautious}
            RuleOptimizer.__init__(self, params, hypers, **options)

        ranges = (optplug.ranges.at_least(0, "clip_norm"),)

    reasons = inapplicable_checks(WithoutOptions)
    assert reasons["clip_value_matches_definition"] == "it has no option 'clip_value'"
    assert reasons["cautious_matches_definition"] == "it has no option 'cautious'"
    reasons = inapplicable_checks(OwnModifiers)
    assert reasons["clip_norm_matches_definition"] == "its rule implements clip_norm itself"
    assert reasons["cautious_matches_definition"] == "its rule implements cautious itself"
    assert not {"agc_matches_definition", "all_modifiers_match_definition"} & reasons.keys()
    assert failed_optimizer_checks(OwnModifiers) == set()


def test_unknown_names_and_wrong_types_raise():
    with pytest.raises(optplug.errors.UnknownNameError):
        optimizer_checks("adamn")
    with pytest.raises(
        TypeError, match=re.escape("expected the name of an optimizer, its class or its spec, got <class 'int'>")
    ):
        optimizer_checks(int)
    with pytest.raises(TypeError, match=re.escape("expected the name of a scheduler, its class or its spec, got 3")):
        scheduler_checks(3)


# ---------------------------------------------------------------------------------------------- schedulers


class Halving(ClosedFormLR):
    def multiplier(self, t):
        return 0.5**t


def failed_scheduler_checks(scheduler, **arguments) -> set[str]:
    return failed_properties(scheduler_checks(scheduler, **arguments))


def test_correct_schedulers_pass():
    check_scheduler(Halving)
    check_scheduler("cosine-annealing-lr", T_max=12, eta_min=0.003)
    check_scheduler(torch.optim.lr_scheduler.StepLR, step_size=3)


def test_scheduler_fault_fails_its_check():
    class WrongClosedForm(Halving):
        def _get_closed_form_lr(self):
            return [0.9 * lr for lr in super()._get_closed_form_lr()]

    class UsesFirstGroupOnly(Halving):
        def get_lr(self):
            return [super(UsesFirstGroupOnly, self).get_lr()[0] for _ in self.base_lrs]

    class LosesLastEpoch(Halving):
        def state_dict(self):
            return {k: v for k, v in super().state_dict().items() if k != "last_epoch"}

        def multiplier(self, t):
            return 1 / (1 + t)

    class UnpicklableState(Halving):
        def state_dict(self):
            return super().state_dict() | {"self": object}

    class ReplacesTensorLr(Halving):
        def step(self, epoch=None):
            super().step(epoch)
            for group in self.optimizer.param_groups:
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"] = group["lr"].clone()

    class ReportsWrongLr(LRScheduler):
        def get_lr(self):
            return [group["lr"] for group in self.optimizer.param_groups]

        def get_last_lr(self):
            return [0.0]

    assert failed_scheduler_checks(Halving) == set()
    assert failed_scheduler_checks(WrongClosedForm) == {"steps_equal_closed_form"}
    assert "groups_are_independent" in failed_scheduler_checks(UsesFirstGroupOnly)
    assert failed_scheduler_checks(LosesLastEpoch) == {"resumed_equals_uninterrupted"}
    assert failed_scheduler_checks(UnpicklableState) == {"resumed_equals_uninterrupted"}
    assert failed_scheduler_checks(ReplacesTensorLr) == {"tensor_lr_is_updated_in_place"}
    assert failed_scheduler_checks(ReportsWrongLr) == {"get_last_lr_returns_group_lrs"}


def test_spec_has_the_cases_functions_and_required_lengths_of_a_scheduler():
    cases = ({"lr_lambda": "0.9 ** epoch"},)
    check_scheduler(
        SchedulerSpec("lambda", torch.optim.lr_scheduler.LambdaLR, cases=cases, functions=("lr_lambda",)),
    )
    check_scheduler(SchedulerSpec("linear", HalvingAfter))
    with pytest.raises(optplug.errors.ConfigTypeError, match=r"LambdaLR needs lr_lambda: pass arguments"):
        scheduler_checks(SchedulerSpec("lambda", torch.optim.lr_scheduler.LambdaLR))


class HalvingAfter(ClosedFormLR):
    def __init__(self, optimizer, total_steps, last_epoch=-1):
        self.total_steps = total_steps
        super().__init__(optimizer, last_epoch)

    def multiplier(self, t):
        return 1.0 if t < self.total_steps else 0.5


# ---------------------------------------------------------------------------------------------- declarations


@pytest.mark.parametrize("what", ["sgd", Correct, OptimizerSpec("correct", Correct), "step_lr", Halving])
def test_parametrize_makes_one_test_for_each_check(what):
    @parametrize(what)
    def conforms(check):
        check()

    (mark,) = conforms.pytestmark
    argument, checks = mark.args
    assert argument == "check"
    assert len({mark.kwargs["ids"](check) for check in checks}) == len(checks) > 4


def test_engines_can_be_selected():
    labels = [check.id.partition("[")[2] for check in optimizer_checks(Correct, engines=["loop"])]
    assert {label.partition("-")[0] for label in labels} == {"loop", "default]"}


def test_declared_exceptions_are_not_tested_and_shown_with_the_reason():
    class Scales(Plain):
        exceptions: ClassVar[dict[str, str]] = {"gradients_are_not_modified": "it clips in place"}

        def update(self, p, g, group):
            super().update(p, g if p.is_complex() or g.is_sparse else g.clamp_(-1, 1), group)

    assert failed_optimizer_checks(Scales) == set()
    reason = inapplicable_checks(Scales)["gradients_are_not_modified"]
    assert reason == "declared exception: it clips in place"
    Scales.exceptions = {"gradients_are_not_modfied": ""}
    with pytest.raises(optplug.errors.SpecError, match="did you mean 'gradients_are_not_modified'"):
        optimizer_checks(Scales)


def test_spec_declares_the_arguments_and_shapes_of_a_class():
    class Picky(Plain):
        def __init__(self, params, lr, rank, num_iterations):
            assert (rank, num_iterations) == (2, 10)
            super().__init__(params, lr)

        def check(self, p, g):
            super().check(p, g)
            if p.shape != (4, 3):
                raise ValueError("4 x 3 only")

    (broken,) = conformance_report(importable(Picky)).broken
    assert (broken.promise, broken.blame) == ("steps_as_declared", "declaration")
    assert "missing 1 required positional argument: 'rank'" in broken.what
    assert broken.remedy == "declare `cases` with values of the required arguments"
    spec = OptimizerSpec("picky", Picky, shapes=((4, 3),), cases=({"lr": 0.1, "rank": 2},))
    assert [(each.promise, each.what) for each in conformance_report(spec).broken] == []


def test_factory_is_tested_as_a_class():
    report = conformance_report(OptimizerSpec("plain", plain_by_factory))
    assert (report.broken, report.target) == ((), f"{__name__}.plain_by_factory")


def plain_by_factory(params, lr=0.05):
    return Plain(params, lr)


@pytest.mark.parametrize("capability", ["create_graph", "sparse_only", "module", "named_params"])
def test_missing_declaration_is_the_remedy(capability):
    class Needs(Plain):
        def __init__(self, params, lr=0.05):
            if capability == "module":
                params = params.parameters()
            if capability == "named_params":
                params = [p for _, p in params]
            super().__init__(params, lr)

        def update(self, p, g, group):
            if capability == "sparse_only":
                g = g.to_dense() if g.is_sparse else g._indices()
            if capability == "create_graph" and not g.requires_grad:
                raise RuntimeError("gradients with a graph, please")
            super().update(p, g.detach(), group)

    (broken,) = conformance_report(importable(Needs)).broken
    assert (broken.promise, broken.blame) == ("steps_as_declared", "declaration")
    assert broken.remedy == f"declare {capability!r}"


def test_wrapper_is_tested_around_sgd():
    class Around(torch.optim.Optimizer):
        def __init__(self, base, scale=2.0):
            self.base, self.scale = base, scale
            super().__init__(base.param_groups, {})
            self.param_groups = base.param_groups

        def step(self, closure=None):
            return self.base.step(closure)

    report = conformance_report(OptimizerSpec("around", importable(Around), base="base"))
    assert "steps_as_declared" in report.kept
    assert "resumed_equals_uninterrupted" in {*report.kept, *(each.promise for each in report.broken)}
