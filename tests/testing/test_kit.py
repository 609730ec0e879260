"""The conformance kit can fail: each planted fault is caught by the check that should catch it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

import optplug
from optplug import ClosedFormLR, RuleOptimizer, State, ops
from optplug.engines import foreach
from optplug.testing import (
    Check,
    check_optimizer,
    check_scheduler,
    inapplicable_checks,
    optimizer_checks,
    scheduler_checks,
)


class Heavy(RuleOptimizer):
    """A sound optimizer; the faulty ones derive from it."""

    states = (State("step", scalar=True), State("velocity"))

    def __init__(
        self, params, lr=0.01, friction=0.1, weight_decay=0.0, maximize=False, engine="auto", state_dtype=None
    ):
        hypers = {"lr": lr, "friction": friction, "weight_decay": weight_decay}
        super().__init__(params, hypers, maximize=maximize, engine=engine, state_dtype=state_dtype)

    @staticmethod
    def rule(p, g, step, velocity, *, lr, friction):
        step = step + 1
        velocity = (1 - friction) * velocity + g
        return p - lr / ops.sqrt(step) * velocity, step, velocity


def failures(optimizer) -> set[str]:
    """The properties that fail."""
    return failing(optimizer_checks(importable(optimizer)))


def importable(cls: type) -> type:
    """A class that a test makes, where pickle finds it."""
    if "<locals>" in cls.__qualname__:
        cls.__module__, cls.__qualname__ = __name__, cls.__name__
        globals()[cls.__name__] = cls
    return cls


def failing(checks: list[Check]) -> set[str]:
    failed = {}
    for check in checks:
        try:
            check()
        except AssertionError as error:
            failed[check.id] = str(error)
    assert all(text.startswith(f"{id_}: ") for id_, text in failed.items())
    return {id_.partition("[")[0] for id_ in failed}


def test_a_sound_optimizer_passes_and_the_kit_tells_what_did_not_apply():
    absent = "engine {!r} is not part of this version; there are auto, loop, foreach, numba"
    assert check_optimizer(Heavy) == {"engine triton": absent.format("triton")}
    ids = [check.id for check in optimizer_checks(Heavy)]
    assert len(ids) == len(set(ids)) == 58


def test_all_failures_come_in_one_error():
    class Wrong(Heavy):
        @staticmethod
        def rule(p, g, step, velocity, *, lr, friction):
            return p + lr * g, step + 1, velocity

    with pytest.raises(AssertionError) as caught:
        check_optimizer(importable(Wrong))
    assert str(caught.value) == (
        "3 of 58 checks failed:\n"
        "the_bowl_goes_down[loop-default]: 30 steps on x² lead from 5 to 16.4052\n"
        "the_bowl_goes_down[foreach-default]: 30 steps on x² lead from 5 to 16.4052\n"
        "the_bowl_goes_down[numba-default]: 30 steps on x² lead from 5 to 16.4052"
    )


def test_a_foreach_line_that_differs_is_caught(monkeypatch):
    sound = foreach._compiled

    def compiled(traced):
        text = foreach.source(traced).replace("alpha=-", "alpha=-1.0000001 * ")
        namespace: dict[str, Any] = {n: getattr(torch, n) for n in dir(torch) if n.startswith("_foreach_")}
        exec(text, {**namespace, "_each": foreach._each}, scope := {})
        return scope["step"]

    monkeypatch.setattr(foreach, "_compiled", compiled)
    # Where numba refuses a layout, foreach steps it.
    assert failures(Heavy) == {"engine_agrees_with_loop", "layout_does_not_matter", "capability_complex_is_true"}
    monkeypatch.setattr(foreach, "_compiled", sound)
    assert failures(Heavy) == set()


def test_a_rule_that_changes_the_gradient_is_caught():
    class Clips(Heavy):
        @staticmethod
        def rule(p, g, step, velocity, *, lr, friction):
            return Heavy.rule(p, g.clamp_(-1, 1), step, velocity, lr=lr, friction=friction)

    assert "gradients_are_left_alone" in failures(Clips)
    assert inapplicable_checks(Clips)["engine foreach"] == (
        "engine 'foreach' cannot run this rule: a rule may not use the attribute .clamp_; it may use + - * / ** and "
        "abs, exp, lerp, log, maximum, minimum, sign, sqrt, where"
    )


def test_a_state_that_is_lost_on_resume_is_caught():
    class Forgets(Heavy):
        def state_dict(self):
            saved = super().state_dict()
            for state in saved["state"].values():
                state.pop("velocity", None)
            return saved

    assert {"resumed_equals_uninterrupted", "lr_may_change"} <= failures(Forgets)

    class Remembers(torch.optim.Optimizer):
        """State beside `state`."""

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

    assert {"resumed_equals_uninterrupted", "copies_continue_identically"} <= failures(Remembers)


class Squares(torch.optim.Optimizer):
    """An ordinary optimizer that is wrong for complex parameters."""

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


def test_a_false_capability_is_caught_in_both_directions():
    class SaysComplex(Squares):
        capabilities = frozenset({"complex"})

    class SaysSparse(Squares):
        capabilities = frozenset({"sparse"})

    class SaysModes(Squares):
        capabilities = frozenset({"modes"})

    class SaysClosure(Squares):
        capabilities = frozenset({"closure"})

    class Refuses(Squares):
        def step(self, closure=None):
            if any(p.is_complex() for group in self.param_groups for p in group["params"]):
                raise TypeError("real parameters only")
            return super().step(closure)

    assert failures(Refuses) == set()
    assert failures(Squares) == {"capability_complex_is_true"}
    assert failures(SaysComplex) == {"capability_complex_is_true"}
    assert failures(SaysSparse) == {"capability_complex_is_true", "capability_sparse_is_true"}
    assert "capabilities_modes_and_closure_are_true" in failures(SaysModes)
    assert "capabilities_modes_and_closure_are_true" in failures(SaysClosure)

    class TakesSparse(Refuses):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad = p.grad.to_dense() if p.grad is not None and p.grad.is_sparse else p.grad
            return super().step(closure)

    assert failures(TakesSparse) == {"capability_sparse_is_true"}


def test_an_ordinary_class_gets_the_checks_that_apply_and_the_reasons_for_the_others():
    assert inapplicable_checks(Squares) == {
        "engine_agrees_with_loop": "an ordinary Optimizer class, without rule and engines",
        "report_names_the_engine": "an ordinary Optimizer class, without rule and engines",
        "maximize_is_descent_on_the_negative": "it has no option 'maximize'",
        "weight_decay_is_its_formula": "an ordinary Optimizer class, without rule and engines",
        "state_dtype_is_kept": "an ordinary Optimizer class, without rule and engines",
        "wrong_options_are_refused": "an ordinary Optimizer class, without rule and engines",
    }
    assert len(optimizer_checks(Squares)) == 14


def test_an_optimizer_that_needs_its_closure_gets_one():
    class LBFGS(torch.optim.LBFGS):
        capabilities = frozenset({"closure"})

    # torch's LBFGS does not survive pickle or deepcopy: they lose its list of parameters.
    assert failures(LBFGS) == {"copies_continue_identically"}
    assert inapplicable_checks(LBFGS)["gradients_are_left_alone"] == "it needs closure"


@pytest.mark.parametrize(
    ("fault", "caught_by"),
    [
        ("grad replaced", "gradients_are_left_alone"),
        ("moves without gradient", "parameters_without_gradient_stay_put"),
        ("copies lose the engine", "copies_continue_identically"),
        ("maximize ignored", "maximize_is_descent_on_the_negative"),
        ("decay ignored", "weight_decay_is_its_formula"),
        ("lr remembered", "lr_may_change"),
        ("stride assumed", "layout_does_not_matter"),
        ("closure twice", "closure_is_called_once_before_the_update"),
        ("closure without grad", "closure_is_called_once_before_the_update"),
        ("groups forgotten", "groups_may_be_added"),
        ("state dtype dropped", "state_dtype_is_kept"),
        ("options unchecked", "wrong_options_are_refused"),
        ("cycle", "a_dropped_optimizer_is_freed"),
        ("cache", "a_dropped_optimizer_is_freed"),
        ("report lies", "report_names_the_engine"),
        ("upward", "the_bowl_goes_down"),
    ],
)
def test_a_planted_fault_is_caught(fault, caught_by):
    kept: list[object] = []

    class Faulty(Heavy):
        def __init__(self, params, **options):
            super().__init__(params, **options)
            self.first_lr = self.param_groups[0]["lr"]
            if fault == "cycle":
                self.myself = self
            if fault == "cache":
                kept.append(self)

        def __getstate__(self):
            state = super().__getstate__() | {"first_lr": self.first_lr}
            if fault == "copies lose the engine":
                state["engine"] = "auto"
            return state

        def _variant(self, group):
            group = dict(group)
            if fault == "maximize ignored":
                group["maximize"] = False
            if fault == "decay ignored":
                group["weight_decay"] = 0.0
            return super()._variant(group)

        def step(self, closure=None):
            if fault == "closure twice" and closure is not None:
                closure()
            if fault == "closure without grad" and closure is not None:
                with torch.no_grad():
                    loss = closure()
                super().step()
                return loss
            params = [p for group in self.param_groups for p in group["params"]]
            if fault == "grad replaced":
                for p in params:
                    p.grad = None if p.grad is None else p.grad.clone()
            if fault == "groups forgotten":
                for group in self.param_groups[1:]:
                    for p in group["params"]:
                        p.grad = None
            if fault == "lr remembered":
                for group in self.param_groups:
                    group["lr"] = self.first_lr
            loss = super().step(closure)
            with torch.no_grad():
                if fault == "moves without gradient":
                    for p in params:
                        p.mul_(0.999)
                if fault == "stride assumed":
                    for p in params:
                        if not p.is_contiguous():
                            p.add_(1e-6)
                if fault == "upward":
                    for p in params:
                        p.mul_(1.1)
            return loss

        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)
            if fault == "state dtype dropped":
                for p, state in self.state.items():
                    state["velocity"] = state["velocity"].to(p.dtype)

        def _check_group(self, group, defaults):
            if fault != "options unchecked":
                super()._check_group(group, defaults)

        def engine_report(self):
            return [] if fault == "report lies" else super().engine_report()

    Faulty.__init__.__signature__ = __import__("inspect").signature(Heavy.__init__)
    assert caught_by in failures(Faulty)


def test_a_name_that_nobody_offers_and_what_is_no_optimizer_are_refused():
    with pytest.raises(optplug.errors.UnknownNameError):
        optimizer_checks("adamn")
    with pytest.raises(TypeError, match=re.escape("expected the name of an optimizer or its class, got <class 'int'>")):
        optimizer_checks(int)
    with pytest.raises(TypeError, match=re.escape("expected the name of a scheduler or its class, got 3")):
        scheduler_checks(3)


# ---------------------------------------------------------------------------------------------- schedulers


class Halving(ClosedFormLR):
    def multiplier(self, t):
        return 0.5**t


def schedule_failures(scheduler, **arguments) -> set[str]:
    return failing(scheduler_checks(scheduler, **arguments))


def test_a_sound_scheduler_passes():
    check_scheduler(Halving)
    check_scheduler("cosine-annealing-lr", T_max=12, eta_min=0.003)
    check_scheduler(torch.optim.lr_scheduler.StepLR, step_size=3)


def test_planted_faults_in_schedulers_are_caught():
    class OtherForm(Halving):
        def _get_closed_form_lr(self):
            return [0.9 * lr for lr in super()._get_closed_form_lr()]

    class FirstGroup(Halving):
        def get_lr(self):
            return [super(FirstGroup, self).get_lr()[0] for _ in self.base_lrs]

    class Forgets(Halving):
        def state_dict(self):
            return {k: v for k, v in super().state_dict().items() if k != "last_epoch"}

        def multiplier(self, t):
            return 1 / (1 + t)

    class NoPickle(Halving):
        def state_dict(self):
            return super().state_dict() | {"myself": object}

    class Replaces(Halving):
        def step(self, epoch=None):
            super().step(epoch)
            for group in self.optimizer.param_groups:
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"] = group["lr"].clone()

    class Tells(LRScheduler):
        def get_lr(self):
            return [group["lr"] for group in self.optimizer.param_groups]

        def get_last_lr(self):
            return [0.0]

    assert schedule_failures(Halving) == set()
    assert schedule_failures(OtherForm) == {"recursion_equals_closed_form"}
    assert "groups_go_their_own_way" in schedule_failures(FirstGroup)
    assert schedule_failures(Forgets) == {"resumed_equals_uninterrupted"}
    assert schedule_failures(NoPickle) == {"resumed_equals_uninterrupted"}
    assert schedule_failures(Replaces) == {"a_tensor_lr_is_set_in_place"}
    assert schedule_failures(Tells) == {"reports_last_lr"}
