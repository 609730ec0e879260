"""Several optimizers: in manual optimization, or combined into one; each with its own schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optplug
from optplug.config.param_groups import group_table
from optplug.errors import ConfigError, WiringError
from support import ADAM, BATCHES_PER_EPOCH, PLATEAU, RISING, SGD, plateau_summary, printed_lines, rounded

COSINE = "cosine_annealing_lr"
TWO_OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "sgd", "lr": 0.1, "match": "layer.weight", "scheduler": {"name": "exponential_lr", "gamma": 0.5}},
    {
        "name": "adam",
        "lr": 0.01,
        "match": "layer.bias",
        "scheduler": {"name": COSINE, "T_max": "auto", "interval": "step", "frequency": 2},
        "param_groups": [{"type": "Linear", "name": "biases", "weight_decay": 0.0}],
    },
]


def parameters_by_group(module: nn.Module, optimizer: Any) -> dict[str, set[str]]:
    return {row.group: set(row.parameters) for row in group_table(optimizer, module)}


def test_two_optimizers_in_automatic_optimization_raise_before_training(
    fit: Any, scripted_module: type, self_configured_module: type
) -> None:
    message = r"^optimizer: automatic optimization steps one optimizer, but 2 are configured: set "
    message += (
        r"self.automatic_optimization = False in \w+.__init__ and step each in training_step, or combine them into one"
    )
    module = scripted_module()
    with pytest.raises(WiringError, match=message):
        fit(TWO_OPTIMIZERS, module=module)
    assert module.lrs == []
    with pytest.raises(WiringError, match=message):
        self_configured_module({"optimizer": TWO_OPTIMIZERS}).configure_optimizers()


@pytest.mark.parametrize("self_configured", [False, True], ids=["callback", "self-configured"])
def test_two_optimizers_train_in_manual_optimization(
    pl: Any, fit: Any, scripted_module: type, trainer: Any, self_configured: bool
) -> None:
    class Manual(scripted_module):
        def __init__(self) -> None:
            super().__init__(automatic=False)
            self.second: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, second = self.optimizers()
            self.lrs.append(first.param_groups[0]["lr"])
            self.second.append(second.param_groups[0]["lr"])
            loss = self.loss(batch)
            self.manual_backward(loss)
            for optimizer in (first, second):
                optimizer.step()
                optimizer.zero_grad()

    if self_configured:
        module = type(
            "SelfConfigured",
            (Manual,),
            {"configure_optimizers": lambda self: optplug.configure_optimizers(self, TWO_OPTIMIZERS)},
        )()
        fitted = trainer()
        fitted.fit(module)
    else:
        fitted, module = fit(TWO_OPTIMIZERS, module=Manual())
    assert [type(o).__name__ for o in fitted.optimizers] == ["SGD", "Adam"]
    assert [parameters_by_group(module, o) for o in fitted.optimizers] == [
        {"0": {"layer.weight"}, "(elsewhere)": {"layer.bias"}},
        {"biases": {"layer.bias"}, "(elsewhere)": {"layer.weight"}},
    ]
    assert rounded(module.lrs[::BATCHES_PER_EPOCH]) == [0.1, 0.05, 0.025]
    assert (
        fitted.lr_scheduler_configs[1].scheduler.T_max == 6
    )  # one scheduler step for every second of 12 optimizer steps
    assert rounded(module.second) == rounded(
        0.01 * (1 + torch.cos(torch.tensor(torch.pi * (step // 2) / 6, dtype=torch.float64))) / 2 for step in range(12)
    )


def test_combined_optimizer_trains_in_automatic_optimization(fit: Any, scripted_module: type) -> None:
    entries = [{key: value for key, value in entry.items() if key != "scheduler"} for entry in TWO_OPTIMIZERS]
    fitted, module = fit({"combine": entries}, {"name": "exponential_lr", "gamma": 0.5})
    assert fitted.global_step == 3 * BATCHES_PER_EPOCH
    assert len(fitted.optimizers) == 1
    assert [group["lr"] for group in fitted.optimizers[0].param_groups] == [0.1 / 8, 0.01 / 8]

    expected = scripted_module()
    torch.manual_seed(0)
    reference = [torch.optim.SGD([expected.layer.weight], lr=0.1), torch.optim.Adam([expected.layer.bias], lr=0.01)]
    for epoch in range(3):
        for x, y in expected.train_dataloader():
            loss = nn.functional.mse_loss(expected.layer(x), y)
            loss.backward()
            for optimizer in reference:
                optimizer.step()
                optimizer.zero_grad()
        for optimizer, lr in zip(reference, (0.1, 0.01), strict=True):
            optimizer.param_groups[0]["lr"] = lr * 0.5 ** (epoch + 1)
    for p, q in zip(module.layer.parameters(), expected.layer.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [{"name": "sgd", "match": "layer.*"}, {"name": "adam", "match": "*.bias"}],
            r"^optimizer: optimizer.combine\[0\] and optimizer.combine\[1\] both select layer.bias: a "
            r"parameter must have exactly one",
        ),
        (
            [{"name": "sgd", "match": "layer.weight"}, {"name": "adam", "regex": "weight"}],
            "no optimizer selects layer.bias: select them too, or freeze them",
        ),
        (
            [{"name": "sgd", "match": "layer.wieght"}, {"name": "adam", "match": "*.bias"}],
            r"optimizer.combine\[0\].match: 'layer.wieght' matches no parameter of \w+; did you mean "
            r"'layer.weight', 'layer.bias'\?",
        ),
        (
            [{"name": "sgd", "match": "*"}, {"name": "adam"}],
            r"^optimizer.combine\[1\]: needs one of match, regex, type",
        ),
    ],
)
def test_parameter_with_two_optimizers_or_none_raises(fit: Any, entries: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit({"combine": entries})


def test_resume_continues_step_counts_of_each_optimizer(fit: Any, scripted_module: type, tmp_path: Path) -> None:
    class AlternatingSteps(scripted_module):
        """Steps the second optimizer only in every second batch."""

        def __init__(self) -> None:
            super().__init__(automatic=False)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, second = self.optimizers()
            self.manual_backward(self.loss(batch))
            first.step()
            if batch_idx % 2:
                second.step()
            self.lrs.append([o.param_groups[0]["lr"] for o in (first, second)])

    halving = {"name": "exponential_lr", "gamma": 0.5, "interval": "step", "frequency": 3}
    two = [
        {"name": "sgd", "lr": 1.0, "match": "*.weight", "scheduler": halving},
        {"name": "sgd", "lr": 1.0, "match": "*.bias", "scheduler": halving},
    ]
    _, whole = fit(two, module=AlternatingSteps(), max_epochs=4)
    assert [first for first, _ in whole.lrs] == [0.5 ** (step // 3) for step in range(16)]
    assert [second for _, second in whole.lrs] == [0.5 ** (step // 2 // 3) for step in range(16)]
    fitted, _ = fit(two, module=AlternatingSteps(), max_epochs=2)
    fitted.save_checkpoint(tmp_path / "half.ckpt")
    _, rest = fit(two, module=AlternatingSteps(), max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert rest.lrs == whole.lrs[8:]


# --------------------------------------------------------------------------------------------------- Plateau schedulers


def test_each_optimizer_has_its_own_plateau(fit_plateau: Any, two_optimizer_module: type, capsys: Any) -> None:
    val = {"val_loss": [1, 2, 3, 4, 5, 6], "val_acc": [0.5, 0.6, 0.4, 0.7, 0.3, 0.2]}
    plateaus = ({**PLATEAU, "monitor": "val_loss"}, {**PLATEAU, "patience": 1, "factor": 0.1, "monitor": "val_acc"})
    expected = []
    for plateau, optimizer in zip(plateaus, (SGD, ADAM), strict=True):
        expected.append(fit_plateau(val, plateau, optimizer=optimizer, max_epochs=7)[1].lrs)
    capsys.readouterr()
    two = [
        {**SGD, "match": "*.weight", "scheduler": plateaus[0]},
        {**ADAM, "match": "*.bias", "scheduler": plateaus[1]},
    ]
    module = two_optimizer_module(val=val)
    fit_plateau(None, None, optimizer=two, module=module, max_epochs=7)
    assert [list(lrs) for lrs in zip(*module.lrs, strict=True)] == expected
    assert expected[0][-1] == 0.5**5
    assert expected[1][-1] == 0.1
    source = "from the configuration"
    assert [line for line in printed_lines(capsys) if line.startswith("plateau_")] == [
        f"plateau_0: 7 validations seen, 6 cuts (epochs 1, 2, 3, 4, 5, 6), monitor val_loss (min) {source}",
        f"plateau_1: 7 validations seen, 1 cut (epoch 5), monitor val_acc (max) {source}",
    ]


def test_plateau_of_the_second_optimizer_does_not_change_the_first(
    fit_plateau: Any, two_optimizer_module: type, capsys: Any
) -> None:
    module = two_optimizer_module(val=RISING)
    two = [{**SGD, "match": "*.weight"}, {**SGD, "match": "*.bias", "scheduler": PLATEAU}]
    fit_plateau(None, None, optimizer=two, module=module)
    assert module.lrs == [[1.0, 1.0]] * 8 + [[1.0, 0.5]] * 4
    assert plateau_summary(capsys).startswith(
        "plateau: 3 validations seen, 2 cuts (epochs 1, 2), monitor val_loss (min) from "
    )
