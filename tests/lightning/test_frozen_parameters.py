"""Parameters that are frozen, unfrozen, added or replaced around the construction of the optimizer; lazy parameters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from optplug.config.param_groups import group_table
from optplug.errors import WiringError
from optplug.registry.specs import OptimizerSpec

SGD = {"name": "sgd", "lr": 0.1}
ADAMW = {"name": "adamw", "lr": 0.1, "weight_decay": 0.5}
PARTS = [{**SGD, "match": "layer.*"}, {"name": "adam", "lr": 0.1, "match": "backbone.*"}]


@pytest.fixture
def frozen_module(scripted_module: type) -> Any:
    """The class of a module whose backbone is frozen until its method `thaw` is called in epoch 1."""

    class Frozen(scripted_module):
        def __init__(self, thaws: bool = True) -> None:
            super().__init__(val={"val_loss": [1.0]})
            self.backbone = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
            self.backbone.requires_grad_(False)
            self.thaws = thaws
            self.initial = {name: p.detach().clone() for name, p in self.backbone.named_parameters()}

        def loss(self, batch: Any) -> torch.Tensor:
            return nn.functional.mse_loss(self.layer(self.backbone(batch[0])), batch[1])

        def on_train_epoch_start(self) -> None:
            if self.thaws and self.trainer.current_epoch >= 1:
                self.thaw()

        def thaw(self) -> None:
            self.backbone.requires_grad_(True)

        def moved(self) -> bool:
            return all(not torch.equal(p, self.initial[name]) for name, p in self.backbone.named_parameters())

    return Frozen


@pytest.fixture
def fit_module(optplug_lightning: Any, trainer: Any) -> Callable[..., Any]:
    """Fits a module with `ConfigureOptimizers` and other callbacks, and returns the trainer."""

    def run(
        module: Any, *given: Any, callbacks: Any = (), path: Any = None, max_epochs: int = 3, **options: Any
    ) -> Any:
        mine = optplug_lightning.ConfigureOptimizers(*given, verbose=False, **options)
        made = trainer(callbacks=[*callbacks, mine], max_epochs=max_epochs)
        made.fit(module, ckpt_path=path)
        return made

    return run


@contextmanager
def unheld_warnings() -> Iterator[list[str]]:
    """Collects optplug's warnings about parameters that no optimizer holds."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    found += [str(one.message) for one in caught if "no optimizer of the trainer holds" in str(one.message)]


# ------------------------------------------------------------------------------------------ unfrozen without a group


CONFIGURATIONS: dict[str, tuple[Any, Any]] = {
    "one group": (SGD, None),
    "no_decay": (ADAMW, "no_decay"),
    "layer_decay": (SGD, [{"preset": "layer_decay", "decay": 0.5, "layers": ["backbone.{}.*", "*"]}]),
    "match": (SGD, [{"match": "backbone.*", "lr_mult": 0.5}]),
    "type": (ADAMW, [{"type": "LayerNorm", "weight_decay": 0.0}]),
    "combine": ({"combine": PARTS}, None),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_parameters_unfrozen_by_the_module_are_trained(name: str, frozen_module: Any, fit_module: Any) -> None:
    optimizer, param_groups = CONFIGURATIONS[name]
    module = frozen_module()
    with unheld_warnings() as said:
        fit_module(module, optimizer, param_groups=param_groups)
    assert module.moved()
    assert said == []


def test_parameters_unfrozen_in_manual_optimization_with_several_optimizers_are_trained(
    frozen_module: Any, fit_module: Any
) -> None:
    class Manual(frozen_module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizers = self.optimizers()
            self.manual_backward(self.loss(batch))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    module = Manual()
    fit_module(module, PARTS)
    assert module.moved()


def test_parameters_unfrozen_under_the_helper_move_as_with_torch_optim(frozen_module: Any, trainer: Any) -> None:
    import optplug

    class Ours(frozen_module):
        def configure_optimizers(self) -> Any:
            return optplug.configure_optimizers(self, SGD)

    class Torchs(frozen_module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    ours, torchs = Ours(), Torchs()
    torchs.load_state_dict(ours.state_dict())
    for module in (ours, torchs):
        torch.manual_seed(0)
        trainer(max_epochs=3).fit(module)
    for p, q in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_optimizer_of_a_third_party_class_holds_no_frozen_parameters(
    frozen_module: Any, fit_module: Any, register_optimizers: Any
) -> None:
    class MatricesOnly(torch.optim.SGD):
        def __init__(self, params: Any, lr: float = 0.1) -> None:
            super().__init__(params, lr=lr)
            if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
                raise ValueError("only matrices")

    register_optimizers(OptimizerSpec("matrices_only", MatricesOnly))
    module = frozen_module(thaws=False)
    module.layer.bias = None
    made = fit_module(module, "matrices_only", max_epochs=1)
    assert group_table(made.optimizers[0], module)[-1].group == "(frozen)"
    module = frozen_module()
    module.layer.bias = None
    with unheld_warnings() as said:
        fit_module(module, "matrices_only")
    assert [text.count("backbone.") for text in said] == [4]


# ------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_run_that_unfreezes_resumes_a_run_with_frozen_parameters(
    name: str, frozen_module: Any, fit_module: Any, tmp_path: Any
) -> None:
    optimizer, param_groups = CONFIGURATIONS[name]
    path = tmp_path / "stage1.ckpt"
    fit_module(frozen_module(thaws=False), optimizer, param_groups=param_groups).save_checkpoint(path)
    rows = [row for rows in torch.load(path, weights_only=True)["optplug"]["groups"] for row in rows]
    assert sum(row.get("frozen", 0) for row in rows) == 4
    module = frozen_module()
    module.backbone.requires_grad_(True)
    made = fit_module(module, optimizer, param_groups=param_groups, path=path, max_epochs=5)
    assert module.moved()
    assert sum(row.frozen for row in group_table(made.optimizers[0], module)) == 0


def test_checkpoint_of_lightning_with_other_groups_names_reset_all(
    frozen_module: Any, fit_module: Any, trainer: Any, tmp_path: Any
) -> None:
    class Native(frozen_module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.layer.parameters(), lr=0.1)

    path = tmp_path / "native.ckpt"
    native = trainer(max_epochs=1)
    native.fit(Native())
    native.save_checkpoint(path)
    thawed = frozen_module()
    thawed.thaw()
    with pytest.raises(WiringError, match=r"have 2 parameters, but .* have 6; on_resume: reset_all keeps the weights"):
        fit_module(thawed, SGD, path=path)
    with pytest.raises(WiringError, match=r"\(default, no_decay\) have 2, 4; on_resume: reset_all"):
        fit_module(frozen_module(), ADAMW, param_groups="no_decay", path=path)
    module = frozen_module()
    fit_module(module, SGD, path=path, on_resume="reset_all")
    assert module.moved()


def test_checkpoint_of_lightning_with_the_same_groups_resumes(
    frozen_module: Any, fit_module: Any, trainer: Any, tmp_path: Any
) -> None:
    class Native(frozen_module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    path = tmp_path / "native.ckpt"
    native = trainer(max_epochs=1)
    native.fit(Native())
    native.save_checkpoint(path)
    module = frozen_module()
    made = fit_module(module, SGD, path=path)
    assert module.moved()
    assert not made.optimizers[0]._optimizer_load_state_dict_pre_hooks


RULES: dict[str, Any] = {
    "one group": None,
    "no_decay": "no_decay",
    "backbone": [{"match": "backbone.*", "lr_mult": 0.5}],
    "head": [{"match": "layer.*", "lr_mult": 0.5}],
}


@pytest.mark.parametrize("rules", RULES)
def test_run_resumes_a_checkpoint_without_the_frozen_parameters(
    rules: str, frozen_module: Any, fit_module: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    schedule = {"name": "exponential_lr", "gamma": 0.5, "warmup_steps": 2}

    def run(**options: Any) -> Any:
        module = frozen_module(thaws=False)
        made = fit_module(module, ADAMW, schedule, param_groups=RULES[rules], **options)
        return module, made

    torch.manual_seed(0)
    whole, uninterrupted = run(max_epochs=4)
    torch.manual_seed(0)
    with monkeypatch.context() as patch:  # as earlier versions
        patch.setattr("optplug.lightning.configure.frozen_to_hold", lambda *args: frozenset())
        run(max_epochs=2)[1].save_checkpoint(tmp_path / "old.ckpt")
    resumed, made = run(max_epochs=4, path=tmp_path / "old.ckpt")
    assert sum(row.frozen for row in group_table(made.optimizers[0], resumed)) == 4
    for group, expected in zip(made.optimizers[0].param_groups, uninterrupted.optimizers[0].param_groups, strict=True):
        assert group["lr"] == pytest.approx(expected["lr"])
        assert group["initial_lr"] == pytest.approx(expected["initial_lr"])
    torch.testing.assert_close(resumed.layer.weight, whole.layer.weight)
    module = frozen_module()
    fit_module(module, ADAMW, schedule, param_groups=RULES[rules], path=tmp_path / "old.ckpt", max_epochs=4)
    assert module.moved()


def test_run_resumes_a_checkpoint_of_torch_over_the_trainable_parameters(
    frozen_module: Any, fit_module: Any, trainer: Any, tmp_path: Any
) -> None:
    class Native(frozen_module):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.25)

    native = trainer(max_epochs=1)
    native.fit(Native(thaws=False))
    native.save_checkpoint(tmp_path / "native.ckpt")
    module = frozen_module()
    made = fit_module(module, ADAMW, path=tmp_path / "native.ckpt")
    assert module.moved()
    assert made.optimizers[0].param_groups[0]["lr"] == 0.25
    steps = [int(made.optimizers[0].state[p]["step"]) for p in (module.layer.weight, module.backbone[0].weight)]
    assert steps[0] > steps[1]


def test_run_resumes_a_checkpoint_from_before_a_frozen_module_was_added(
    frozen_module: Any, fit_module: Any, tmp_path: Any
) -> None:
    class WithTeacher(frozen_module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.Linear(4, 4).requires_grad_(False)
            self.strict_loading = False

    fit_module(frozen_module(), ADAMW, max_epochs=2).save_checkpoint(tmp_path / "old.ckpt")
    made = fit_module(WithTeacher(), ADAMW, path=tmp_path / "old.ckpt")
    assert [row.frozen for row in group_table(made.optimizers[0])] == [2]


def test_finetuning_run_resumes_a_checkpoint_with_frozen_parameters(
    pl: Any, frozen_module: Any, fit_module: Any, tmp_path: Any
) -> None:
    class Freezing(pl.callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.backbone)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 3:
                self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=0.01)

    fit_module(frozen_module(thaws=False), ADAMW, max_epochs=2).save_checkpoint(tmp_path / "old.ckpt")
    module = frozen_module(thaws=False)
    made = fit_module(module, ADAMW, callbacks=[Freezing()], path=tmp_path / "old.ckpt", max_epochs=5)
    assert [len(group["params"]) for group in made.optimizers[0].param_groups] == [2, 4]
    assert module.moved()


# ------------------------------------------------------------------------------------------ held by no optimizer


def test_warning_names_trainable_parameters_that_no_optimizer_holds(frozen_module: Any, fit_module: Any) -> None:
    class Growing(frozen_module):
        def on_train_epoch_start(self) -> None:
            if self.trainer.current_epoch == 1:
                self.added = nn.Linear(1, 1)
                self.target = copy.deepcopy(self.layer)  # receives no gradient
            if self.trainer.current_epoch == 3:
                self.layer.weight = nn.Parameter(self.layer.weight.detach().clone())

        def loss(self, batch: Any) -> torch.Tensor:
            return super().loss(batch) + (self.added(batch[1]).mean() if hasattr(self, "added") else 0.0)

    with unheld_warnings() as said:
        fit_module(Growing(thaws=False), SGD, max_epochs=5)
    assert len(said) == 2
    assert "no optimizer of the trainer holds added.weight, added.bias, which " in said[0]
    assert "layer.weight" in said[1]


def test_warning_names_an_unfrozen_parameter_that_no_optimizer_selects(frozen_module: Any, fit_module: Any) -> None:
    parts = [{**SGD, "match": "layer.weight"}, {**SGD, "match": "layer.bias"}]
    with unheld_warnings() as said:
        fit_module(frozen_module(), {"combine": parts})
    assert len(said) == 1
    assert "backbone.0.weight" in said[0]


def test_warning_names_a_parameter_unfrozen_within_an_epoch(frozen_module: Any, fit_module: Any) -> None:
    class Late(frozen_module):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                self.thaw()

    parts = [{**SGD, "match": "layer.weight"}, {**SGD, "match": "layer.bias"}]
    with unheld_warnings() as said:
        fit_module(Late(thaws=False), {"combine": parts}, max_epochs=1)
    assert len(said) == 1


@pytest.mark.parametrize("extends", [True, False], ids=["extended group", "appended group"])
def test_warning_names_parameters_that_an_optimizer_holds_twice(
    extends: bool, frozen_module: Any, fit_module: Any
) -> None:
    class Direct(frozen_module):
        def on_train_epoch_start(self) -> None:
            if self.trainer.current_epoch == 1:
                self.thaw()
                groups = self.trainer.optimizers[0].param_groups
                if extends:
                    groups[0]["params"].extend(self.backbone.parameters())
                else:
                    groups.append({**groups[0], "params": list(self.backbone.parameters())})

    with pytest.warns(UserWarning, match=r"backbone\.0\.weight.*: an optimizer holds the parameter twice"):
        fit_module(Direct(), SGD)


def test_no_warning_about_parameters_that_the_modules_own_optimizer_leaves_out(
    frozen_module: Any, fit_module: Any
) -> None:
    class Own(frozen_module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([self.layer.weight], lr=0.1)

    with unheld_warnings() as said:
        fit_module(Own(), None, {"name": "exponential_lr", "gamma": 0.5}, max_epochs=1)
    assert said == []


def test_module_may_have_an_attribute_named_optimizers(frozen_module: Any, fit_module: Any) -> None:
    module = frozen_module()
    module.optimizers = {"lr": 1}
    fit_module(module, SGD)
    assert module.moved()


# ------------------------------------------------------------------------------------------ groups that are added


def test_group_added_by_the_module_gets_the_rules_and_its_own_options(frozen_module: Any, fit_module: Any) -> None:
    class Adding(frozen_module):
        def on_train_epoch_start(self) -> None:
            if self.trainer.current_epoch == 1:
                self.thaw()
                optimizer = self.trainer.optimizers[0]
                optimizer.add_param_group({"params": self.backbone[0].parameters(), "lr": 0.01})
                optimizer.add_param_group({"params": self.backbone[1].parameters(), "weight_decay": 0.25})

    module = Adding()
    made = fit_module(module, ADAMW, param_groups="no_decay")
    rows = {row.group: row for row in group_table(made.optimizers[0], module)}
    assert {name: (row.parameters, row.lr, row.weight_decay) for name, row in rows.items()} == {
        "default": (("layer.weight",), 0.1, 0.5),
        "no_decay": (("layer.bias",), 0.1, 0.0),
        "backbone.0 + no_decay": (("backbone.0.bias",), 0.01, 0.0),
        "backbone.0": (("backbone.0.weight",), 0.01, 0.5),
        "backbone.1": (("backbone.1.weight", "backbone.1.bias"), 0.1, 0.25),
    }
    assert module.moved()


def test_group_that_is_rejected_leaves_the_groups_unchanged(frozen_module: Any) -> None:
    import optplug

    module = frozen_module()
    optimizer = optplug.configure_optimizers(module, ADAMW, param_groups="no_decay")["optimizer"]
    before = [list(map(id, group["params"])) for group in optimizer.param_groups]
    for options in ({"lr": -1.0}, {"weight_decy": 0.5}):
        with pytest.raises(ValueError, match=r"learning rate|weight_decay"):
            optimizer.add_param_group({"params": list(module.backbone.parameters()), **options})
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [module.layer.weight, module.backbone[0].weight]})
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == before


FINETUNED: dict[str, tuple[Any, Any]] = {
    "no_decay": (ADAMW, "no_decay"),
    "layer_decay": (ADAMW, ["no_decay", {"preset": "layer_decay", "decay": 0.5, "layers": ["backbone.{}.*", "*"]}]),
    "lr_mult": (ADAMW, [{"match": "backbone.*", "lr_mult": 0.5}, {"match": "backbone.1.*", "weight_decay": 0.0}]),
}
EXPONENTIAL = {"name": "exponential_lr", "gamma": 0.5, "interval": "step"}


@pytest.mark.parametrize("name", FINETUNED)
@pytest.mark.parametrize("scheduler", [None, EXPONENTIAL], ids=["constant", "exponential"])
def test_groups_of_backbone_finetuning_get_the_rules_and_follow_its_rate(
    pl: Any, frozen_module: Any, fit_module: Any, name: str, scheduler: Any, tmp_path: Any
) -> None:
    optimizer, param_groups = FINETUNED[name]

    class Recording(frozen_module):
        def __init__(self) -> None:
            super().__init__(thaws=False)
            self.backbone.requires_grad_(True)
            self.rates: list[Any] = []

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            rows = group_table(self.trainer.optimizers[0], self)
            lrs = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
            pairs = zip(rows, lrs, strict=False)
            self.rates.append({p: (lr, row.weight_decay) for row, lr in pairs for p in row.parameters})

    def finetuning() -> Any:
        return pl.callbacks.BackboneFinetuning(1, lambda_func=lambda epoch: 1.5, should_align=False)

    def run(**options: Any) -> Any:
        module = Recording()
        made = fit_module(module, optimizer, scheduler, param_groups=param_groups, callbacks=[finetuning()], **options)
        return module, made

    module, made = run(max_epochs=4)
    assert module.moved()
    for rates in module.rates[-1:]:
        assert rates["backbone.0.weight"][1] == 0.5
        decays = [rates[f"backbone.{p}"][1] for p in ("0.bias", "1.weight", "1.bias")]
        assert decays == ([0.5, 0.0, 0.0] if name == "lr_mult" else [0.0, 0.0, 0.0])
    epochs = len(module.rates) // 4
    for epoch in range(1, 4):
        rates = module.rates[epoch * epochs]
        ratio = rates["backbone.0.weight"][0] / rates["backbone.1.weight"][0]
        assert ratio == pytest.approx(0.5 if name == "layer_decay" else 1.0)
        head = module.rates[epochs]["layer.weight"][0] * 0.1
        assert rates["backbone.1.bias"][0] == pytest.approx(head * 1.5 ** (epoch - 1))
    names = [group["name"] for group in made.optimizers[0].param_groups]
    assert len(set(names)) == len(names)

    path = tmp_path / "stage1.ckpt"
    run(max_epochs=3)[1].save_checkpoint(path)
    resumed, _ = run(max_epochs=4, path=path)
    assert resumed.rates == module.rates[-len(resumed.rates) :]


def test_combine_with_backbone_finetuning_is_rejected_at_the_start(
    pl: Any, frozen_module: Any, fit_module: Any
) -> None:
    module = frozen_module()
    with pytest.raises(WiringError, match=r"combine cannot be used with BackboneFinetuning: .* requires_grad_\(True\)"):
        fit_module(module, {"combine": PARTS}, callbacks=[pl.callbacks.BackboneFinetuning(1)])


# ------------------------------------------------------------------------------------------ lazy parameters


LAZY: dict[str, tuple[Any, Any]] = {
    "sgd": (SGD, None),
    "adamw, no_decay": (ADAMW, "no_decay"),
    "lbfgs": ("lbfgs", None),
    "combine": ({"combine": [{**SGD, "match": "layer.*"}, {"name": "adam", "match": "lazy.*"}]}, None),
    "third-party": ("torch_adagrad_like", None),
}


@pytest.mark.parametrize("sanity", [0, 1])
@pytest.mark.parametrize("name", LAZY)
def test_lazy_parameters_are_trained(
    name: str, sanity: int, scripted_module: Any, optplug_lightning: Any, trainer: Any, register_optimizers: Any
) -> None:
    register_optimizers(OptimizerSpec("torch_adagrad_like", torch.optim.RMSprop))
    optimizer, param_groups = LAZY[name]

    class Lazy(scripted_module):
        def __init__(self) -> None:
            super().__init__(val={"val_loss": [1.0]})
            self.lazy = nn.LazyLinear(4)
            self.first: Any = None

        def loss(self, batch: Any) -> torch.Tensor:
            result = nn.functional.mse_loss(self.layer(self.lazy(batch[0])), batch[1])
            if self.first is None:
                self.first = self.lazy.weight.detach().clone()
            return result

    module = Lazy()
    callback = optplug_lightning.ConfigureOptimizers(optimizer, param_groups=param_groups)
    made = trainer(callbacks=[callback], max_epochs=2, num_sanity_val_steps=sanity)
    made.fit(module)
    assert not torch.equal(module.first, module.lazy.weight)
    assert sum(row.elements for row in group_table(made.optimizers[0], module)) == sum(
        p.numel() for p in module.parameters()
    )
