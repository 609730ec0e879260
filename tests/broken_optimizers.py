"""A correct optimizer without a rule, and optimizers that derive from it and have one fault each.

Each faulty class states the promise that detects its fault, the other promises that it breaks too, and whose fault it
is: `"class"`, or `"declaration"` if the class is correct and its declaration is not.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer


class Plain(Optimizer):
    """A correct optimizer: the mean of the gradients, with bias correction and decoupled weight decay."""

    capabilities: ClassVar[frozenset[str]] = frozenset()
    promise: ClassVar[str] = ""
    others: ClassVar[frozenset[str]] = frozenset()
    blame: ClassVar[str] = "class"

    def __init__(
        self,
        params: Any,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, maximize=maximize))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.evaluate(closure)
        for p, group in self.pairs():
            if p.grad is not None:
                self.update(p, p.grad, group)
        return loss

    def evaluate(self, closure: Any) -> Any:
        return None if closure is None else torch.enable_grad()(closure)()

    def pairs(self) -> list[tuple[Tensor, dict[str, Any]]]:
        return [(p, group) for group in self.param_groups for p in group["params"]]

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        self.check(p, g)
        state = self.state[p]
        state["step"] = state.get("step", 0) + 1
        mean = state.setdefault("mean", torch.zeros_like(p))
        mean.lerp_(-g if group["maximize"] else g, 1 - group["momentum"])
        self.apply(p, mean / (1 - group["momentum"] ** state["step"]), group)

    def check(self, p: Tensor, g: Tensor) -> None:
        if p.is_complex() or g.is_sparse:
            raise TypeError("real parameters and dense gradients only")

    def apply(self, p: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)


class WithModes(Plain):
    """A correct optimizer with modes: the evaluation parameters are the trained ones."""

    capabilities = frozenset({"modes"})
    shift = 0.0

    def train(self) -> None:
        self.switch(evaluates=False)

    def eval(self) -> None:
        self.switch(evaluates=True)

    @torch.no_grad()
    def switch(self, evaluates: bool) -> None:
        for p, group in self.pairs():
            if p in self.state and group.get("evaluates", False) != evaluates:
                p.add_(self.shift if evaluates else -self.shift)
        for group in self.param_groups:
            group["evaluates"] = evaluates


# ------------------------------------------------------------------------------------------ steps and state


class NeedsAnUndeclaredClosure(Plain):
    promise, blame = "steps_as_declared", "declaration"

    def evaluate(self, closure):
        if closure is None:
            raise RuntimeError("a closure is required")
        return super().evaluate(closure)


class NeedsUndeclaredGradientsFirst(Plain):
    """Steps by the gradients at hand, and then again by those of the closure."""

    promise, blame = "steps_as_declared", "declaration"

    @torch.no_grad()
    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("a closure is required")
        super().step()
        return super().step(closure)


class RefusesScalars(Plain):
    promise = "all_parameters_are_stepped"

    def check(self, p, g):
        super().check(p, g)
        p.shape[0]


class ModifiesGradients(Plain):
    promise = "gradients_are_not_modified"

    def update(self, p, g, group):
        super().update(p, g if p.is_complex() or g.is_sparse else g.clamp_(-1, 1), group)


class MovesParametersWithoutGradient(Plain):
    promise = "parameters_without_gradient_do_not_change"
    others = frozenset(
        {
            *("frozen_parameters_do_not_change", "parameters_have_their_own_step_count"),
            "steps_without_gradients_succeed",
        }
    )

    def evaluate(self, closure):
        loss = super().evaluate(closure)
        for p, _ in self.pairs():
            p.mul_(0.999)
        return loss


class StepsFrozenParameters(Plain):
    promise = "frozen_parameters_do_not_change"

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for p, group in self.pairs():
            if p.grad is None and p in self.state:
                self.apply(p, self.state[p]["mean"], group)
        return loss


class LosesStateInStateDict(Plain):
    promise = "resumed_equals_uninterrupted"
    others = frozenset({"lr_changes_take_effect"})

    def state_dict(self):
        saved = super().state_dict()
        return {**saved, "state": {i: {"step": state["step"]} for i, state in saved["state"].items()}}


class Note:
    """An object that torch does not load with weights_only=True."""


class KeepsObjectsInState(Plain):
    promise = "state_dict_loads_safely"

    def update(self, p, g, group):
        super().update(p, g, group)
        self.state[p]["note"] = Note()


class BreaksPickle(Plain):
    promise = "copies_continue_identically"

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.scale = lambda: 1.0

    def __getstate__(self):
        return self.__dict__.copy()


class LosesAttributesInCopies(Plain):
    promise = "copies_continue_identically"

    def __init__(self, params, lr=0.05, momentum=0.9, weight_decay=0.0, maximize=False):
        super().__init__(params, lr, momentum, weight_decay, maximize)
        self.scale = 1.0

    def apply(self, p, update, group):
        super().apply(p, self.scale * update, group)


class CountsStepsInAGlobal(Plain):
    promise = "instances_are_independent"
    others = frozenset(
        {
            *("copies_continue_identically", "lr_changes_take_effect", "maximize_equals_minimizing_the_negative"),
            *("resumed_equals_uninterrupted", "schedulers_can_be_attached"),
        }
    )
    steps: ClassVar[list[int]] = [0]

    def update(self, p, g, group):
        super().update(p, g, group)
        self.steps[0] += 1
        p.mul_(1 - 1e-4 / self.steps[0])


class ChangesDefaults(Plain):
    promise = "instances_are_independent"

    def evaluate(self, closure):
        self.defaults["lr"] *= 0.9
        return super().evaluate(closure)


class SharesTheStepCount(Plain):
    promise = "parameters_have_their_own_step_count"

    def evaluate(self, closure):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
        return super().evaluate(closure)

    def update(self, p, g, group):
        self.state[p]["step"] = group["step"] - 1
        super().update(p, g, group)


class IgnoresMaximize(Plain):
    promise = "maximize_equals_minimizing_the_negative"

    def update(self, p, g, group):
        super().update(p, g, {**group, "maximize": False})


class BreaksNonContiguousTensors(Plain):
    promise = "memory_layout_has_no_effect"

    def apply(self, p, update, group):
        p.reshape(-1).sub_(group["lr"] * update.reshape(-1) + group["lr"] * group["weight_decay"] * p.reshape(-1))


class DoesNotCallTheClosure(Plain):
    promise = "closure_is_called_once_before_the_update"

    def evaluate(self, closure):
        return None


class CallsTheClosureLast(Plain):
    promise = "closure_is_called_once_before_the_update"

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        return super().evaluate(closure)


class KeepsParametersAlive(Plain):
    promise = "unreferenced_optimizer_is_freed"
    cache: ClassVar[list[Tensor]] = []

    def update(self, p, g, group):
        super().update(p, g, group)
        self.cache.append(p)


class ReferenceCycle(Plain):
    promise = "unreferenced_optimizer_is_freed"

    def __init__(self, params, lr=0.05, momentum=0.9, weight_decay=0.0, maximize=False):
        super().__init__(params, lr, momentum, weight_decay, maximize)
        self.myself = self


class Ascends(Plain):
    promise = "quadratic_loss_decreases"

    def apply(self, p, update, group):
        super().apply(p, -update, group)


# ------------------------------------------------------------------------------------------ groups and lr


class IgnoresLrChanges(Plain):
    promise = "lr_changes_take_effect"
    others = frozenset({"options_of_groups_take_effect"})

    def apply(self, p, update, group):
        super().apply(p, update, {**group, "lr": self.defaults["lr"]})


class ReplacesStep(Plain):
    promise = "schedulers_can_be_attached"
    others = frozenset({"unreferenced_optimizer_is_freed"})

    def __init__(self, params, lr=0.05, momentum=0.9, weight_decay=0.0, maximize=False):
        super().__init__(params, lr, momentum, weight_decay, maximize)
        self.step = functools.partial(type(self).step, self)


class DividesByTheLr(Plain):
    promise = "lr_of_zero_keeps_parameters_finite"

    def apply(self, p, update, group):
        p.sub_(group["lr"] * (update + group["weight_decay"] * p) * torch.tensor(group["lr"]) / group["lr"])


class IgnoresOptionsOfGroups(Plain):
    promise = "options_of_groups_take_effect"

    def apply(self, p, update, group):
        super().apply(p, update, {**group, "weight_decay": self.defaults["weight_decay"]})


class ReadsGroupsAtConstruction(Plain):
    promise = "added_groups_are_stepped"
    others = frozenset({"copies_continue_identically", "resumed_equals_uninterrupted"})

    def __init__(self, params, lr=0.05, momentum=0.9, weight_decay=0.0, maximize=False):
        super().__init__(params, lr, momentum, weight_decay, maximize)
        self.constructed = super().pairs()

    def pairs(self):
        return self.constructed


# ------------------------------------------------------------------------------------------ modes


class EvalNeedsAState(WithModes):
    promise = "eval_before_the_first_step_has_no_effect"

    def eval(self):
        for p, _ in self.pairs():
            self.state[p]["mean"]
        super().eval()


class TrainDoesNotRevertEval(WithModes):
    promise = "train_reverts_eval"
    shift = 1e-3

    @torch.no_grad()
    def train(self):
        for group in self.param_groups:
            group["evaluates"] = False


class WrongEvalWeights(WithModes):
    promise = "eval_parameters_decrease_the_loss"
    shift = 16.0


# ------------------------------------------------------------------------------------------ capabilities


class UndeclaredModes(WithModes):
    capabilities = frozenset()
    promise, blame = "capability_modes_is_correct", "declaration"


class DeclaresComplexFalsely(Plain):
    capabilities = frozenset({"complex"})
    promise, blame = "capability_complex_is_correct", "declaration"

    def check(self, p, g):
        if g.is_sparse:
            raise TypeError("dense gradients only")

    def apply(self, p, update, group):
        super().apply(p, update * update.abs(), group)


class WrongForComplex(DeclaresComplexFalsely):
    capabilities = frozenset()
    promise, blame = "capability_complex_is_correct", "class"


class DoesNotResolveConjugates(Plain):
    capabilities = frozenset({"complex"})
    promise = "conjugated_gradients_are_stepped"

    def check(self, p, g):
        if g.is_sparse:
            raise TypeError("dense gradients only")
        if g.is_complex():
            torch.view_as_real(g)


class UndeclaredComplex(Plain):
    promise, blame = "capability_complex_is_correct", "declaration"

    def check(self, p, g):
        if g.is_sparse:
            raise TypeError("dense gradients only")


class DeclaresSparseFalsely(Plain):
    """The rows of sparse gradients are not summed if an index occurs twice."""

    capabilities = frozenset({"sparse"})
    promise, blame = "capability_sparse_is_correct", "declaration"

    def update(self, p, g, group):
        if g.is_sparse:
            dense = torch.zeros_like(p)
            dense[g._indices()[0]] = g._values()
            g = dense
        super().update(p, g, group)


class RefusesVectors(Plain):
    promise, blame = "capability_matrix_only_is_correct", "declaration"

    def check(self, p, g):
        super().check(p, g)
        if p.dim() < 2:
            raise ValueError("matrices only")


class DeclaresSparseOnlyFalsely(Plain):
    capabilities = frozenset({"sparse", "sparse_only"})
    promise, blame = "capability_sparse_only_is_correct", "declaration"

    def update(self, p, g, group):
        super().update(p, g.to_dense(), group)


class DeclaresAClosureFalsely(Plain):
    capabilities = frozenset({"closure"})
    promise, blame = "declared_needs_are_real", "declaration"


class DeclaresGradientsFirstFalsely(Plain):
    capabilities = frozenset({"gradients_first"})
    promise, blame = "declared_needs_are_real", "declaration"


class DeclaresNoClosureFalsely(Plain):
    capabilities = frozenset({"no_closure"})
    promise, blame = "declared_needs_are_real", "declaration"


class DeclaresAClosureInPlaceOfGradientsFirst(Plain):
    """Moves in the direction of given gradients, and steps with those of the closure there."""

    capabilities = frozenset({"closure"})
    promise, blame = "declared_needs_are_real", "declaration"

    @torch.no_grad()
    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("a closure is required")
        given = [(p, p.grad.clone()) for p, _ in self.pairs() if p.grad is not None]
        for p, g in given:
            p.add_(g, alpha=0.05)
        loss = torch.enable_grad()(closure)()
        for p, g in given:
            p.sub_(g, alpha=0.05)
        for p, group in self.pairs():
            if p.grad is not None:
                self.update(p, p.grad, group)
        return loss


class LosesStateThatEveryFifthStepRenews(Plain):
    """Keeps its state outside of `state`; every five steps, the state begins anew."""

    promise = "resumed_equals_uninterrupted"
    others = frozenset({"copies_continue_identically", "parameters_have_their_own_step_count"})

    def evaluate(self, closure):
        self.__dict__.setdefault("slow", {})
        self.__dict__["steps"] = self.__dict__.get("steps", 0) + 1
        return super().evaluate(closure)

    def update(self, p, g, group):
        self.check(p, g)
        start = self.slow.setdefault(id(p), p.detach().clone())
        self.apply(p, -g if group["maximize"] else g, group)
        if self.steps % 5 == 0:
            p.lerp_(start, 0.5)
            self.slow[id(p)] = p.detach().clone()


class DeclaresFusedFalsely(Plain):
    capabilities = frozenset({"fused"})
    promise, blame = "spec_agrees_with_the_class", "declaration"


class DeclaresALengthThatIsNoArgument(Plain):
    length = "horizon"
    promise, blame = "spec_agrees_with_the_class", "declaration"


class DividesByTheNorm(Plain):
    promise = "gradients_of_zero_keep_parameters_finite"

    def update(self, p, g, group):
        self.check(p, g)
        self.apply(p, (-g if group["maximize"] else g) / g.norm(), group)


class NeedsAGradient(Plain):
    promise = "steps_without_gradients_succeed"

    def evaluate(self, closure):
        loss = super().evaluate(closure)
        torch.stack([p.grad.to_dense().abs().sum() for p, _ in self.pairs() if p.grad is not None])
        return loss


class LeavesGradientsDisabled(Plain):
    promise = "global_state_is_kept"

    def step(self, closure=None):
        loss = super().step(closure)
        torch.set_grad_enabled(False)
        return loss


class SeedsRandomNumbers(Plain):
    promise = "global_state_is_kept"

    def evaluate(self, closure):
        torch.manual_seed(0)
        return super().evaluate(closure)


class ChangesTheDefaultDtype(Plain):
    promise = "global_state_is_kept"

    def evaluate(self, closure):
        torch.set_default_dtype(torch.float64 if torch.get_default_dtype() == torch.float32 else torch.float32)
        return super().evaluate(closure)


FAULTY = tuple(
    value
    for value in dict(globals()).values()
    if isinstance(value, type) and issubclass(value, Plain) and value.promise
)
"""The optimizers with a fault."""
