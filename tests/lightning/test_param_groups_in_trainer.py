"""Parameter groups of a LightningModule: presets, models built in `configure_model`, and sharded models."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optplug
from optplug.config.param_groups import group_table
from optplug.lightning.checkpoint_metadata import group_tables
from support import QUIET_NO_SANITY, first_party, needs_fsdp2_on_cpu

ADAM = {"name": "adam", "lr": 0.1}

pytestmark = [
    # pytest's own command line is in sys.argv, and LightningCLI warns about arguments in both places.
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended"),
    # Forked processes warn that their parent has threads, which cannot be avoided with ddp_fork.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def parameters_by_group(module: nn.Module, optimizer: Any) -> dict[str, set[str]]:
    return {row.group: set(row.parameters) for row in group_table(optimizer, module)}


def build(module: nn.Module, optimizer: Any, groups: Any) -> Any:
    return optplug.configure_optimizers(module, optimizer, param_groups=groups)["optimizer"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList(nn.ModuleDict({"norm": nn.LayerNorm(4), "mlp": nn.Linear(4, 4)}) for _ in range(2))
        self.head = nn.Linear(4, 2)


@pytest.fixture
def late_module(scripted_module: type) -> type:
    """The class of a module that creates its layer in `configure_model`."""

    class Late(scripted_module):
        def __init__(self) -> None:
            super().__init__()
            del self.layer
            self.layer = None

        def configure_model(self) -> None:
            if self.layer is None:
                torch.manual_seed(0)
                self.layer = nn.Linear(4, 1)

    return Late


# ---------------------------------------------------------------------------------------------------- Presets and rules


def test_no_decay_selects_norms_biases_and_embeddings() -> None:
    module = Net()
    optimizer = build(module, {"name": "adamw", "weight_decay": 0.1}, "no_decay")
    decayed = {"blocks.0.mlp.weight", "blocks.1.mlp.weight", "head.weight"}
    everything = {name for name, _ in module.named_parameters()}
    assert parameters_by_group(module, optimizer) == {"default": decayed, "no_decay": everything - decayed}
    assert {g["name"]: g["weight_decay"] for g in optimizer.param_groups} == {"default": 0.1, "no_decay": 0.0}


def test_layer_decay_and_multipliers_combine() -> None:
    module = Net()
    rules = [
        {"preset": "layer_decay", "decay": 0.5, "layers": ["embed.*", "blocks.{}.*", "head.*"]},
        "no_decay",
        {"regex": r"^head\.(weight|bias)$", "name": "head", "lr_mult": 10, "wd_mult": 2},
    ]
    optimizer = build(module, {"name": "adamw", "lr": 0.8, "weight_decay": 0.1}, rules)
    rows = {row.group: (set(row.parameters), row.lr, row.weight_decay) for row in group_table(optimizer, module)}
    assert rows == {
        "embed.* + no_decay": ({"embed.weight"}, 0.1, 0.0),
        "blocks.0.* + no_decay": ({f"blocks.0.{n}" for n in ("norm.weight", "norm.bias", "mlp.bias")}, 0.2, 0.0),
        "blocks.0.*": ({"blocks.0.mlp.weight"}, 0.2, 0.1),
        "blocks.1.* + no_decay": ({f"blocks.1.{n}" for n in ("norm.weight", "norm.bias", "mlp.bias")}, 0.4, 0.0),
        "blocks.1.*": ({"blocks.1.mlp.weight"}, 0.4, 0.1),
        "head.* + head": ({"head.weight"}, 8.0, 0.2),
        "head.* + no_decay + head": ({"head.bias"}, 8.0, 0.0),
    }


@pytest.mark.parametrize("name", first_party("optimizer"))
def test_each_parameter_is_in_one_group_with_supported_options(name: str) -> None:
    module = Net()
    module.head.requires_grad_(False)
    optimizer = build(module, name, "no_decay")
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    names = [group["name"] for group in optimizer.param_groups]
    assert len(set(names)) == len(names)
    has_weight_decay = "weight_decay" in optimizer.defaults
    assert all(("weight_decay" in group) == has_weight_decay for group in optimizer.param_groups)
    # The fallback of Muon has the vectors and the last layer: no weight is in a group of Muon without weight decay.
    assert len(names) == (3 if name == "muon" else 1 + has_weight_decay)


# -------------------------------------------------------------------------------------- Models built in configure_model


def test_command_line_groups_parameters_created_in_configure_model(optplug_lightning: Any, late_module: type) -> None:
    args = [
        "--seed_everything=1",
        f"--trainer={json.dumps(QUIET_NO_SANITY)}",
        "--optimizer",
        "sgd",
        "--optimizer.lr",
        "0.1",
        "--param_groups",
        "no_decay",
    ]
    cli = optplug_lightning.OptplugCLI(late_module, run=False, args=args, save_config_callback=None)
    cli.trainer.fit(cli.model)
    (optimizer,) = cli.trainer.optimizers
    assert parameters_by_group(cli.model, optimizer) == {"default": {"layer.weight"}, "no_decay": {"layer.bias"}}
    torch.manual_seed(0)
    assert not torch.equal(cli.model.layer.weight, nn.Linear(4, 1).weight)


@pytest.mark.timeout(90)
def test_two_processes_group_parameters_created_in_configure_model(
    optplug_lightning: Any, late_module: type, trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    class Recording(late_module):
        def on_train_end(self) -> None:
            result = {"groups": [row.group for row in group_table(self.trainer.optimizers[0], self)]}
            result["weights"] = [p.tolist() for p in self.parameters()]
            (tmp_path / f"{self.global_rank}.json").write_text(json.dumps(result))

    callback = optplug_lightning.ConfigureOptimizers(ADAM, param_groups="no_decay", verbose=False)
    trainer(devices=2, strategy="ddp_fork", callbacks=callback).fit(Recording())
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["groups"] == ["default", "no_decay"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def train_sharded(pl: Any, optplug_lightning: Any, scripted_module: type, rank: int, port: int, folder: Path) -> None:
    """Train in one of two FSDP2 processes, and write the result or the traceback to a file."""
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    code = 1
    try:
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        result: dict[str, Any] = {}

        class Sharded(scripted_module):
            def on_train_end(self) -> None:
                (optimizer,) = self.trainer.optimizers
                result["groups"] = {
                    row["group"]: row["parameters"] for row in group_tables(self.trainer, callback.fit_state)[0]
                }
                result["sharded"] = all(isinstance(p, DTensor) for g in optimizer.param_groups for p in g["params"])
                # Not the module's parameters: FSDP leaves them unsharded after a validation.
                result["weights"] = [p.full_tensor().tolist() for g in optimizer.param_groups for p in g["params"]]

            def configure_model(self) -> None:
                mesh = self.device_mesh["data_parallel"]
                fully_shard(self.layer, mesh=mesh)
                fully_shard(self, mesh=mesh)

        strategy = pl.strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        callback = optplug_lightning.ConfigureOptimizers(ADAM, param_groups="no_decay", verbose=False)
        fitted = pl.Trainer(
            **{**QUIET_NO_SANITY, "devices": 2},
            strategy=strategy,
            callbacks=callback,
            use_distributed_sampler=False,
        )
        fitted.fit(Sharded())
        (folder / f"{rank}.json").write_text(json.dumps(result))
        code = 0
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


@needs_fsdp2_on_cpu
@pytest.mark.timeout(120)
def test_fsdp2_shards_are_grouped_by_name(
    pl: Any, optplug_lightning: Any, fit: Any, scripted_module: type, tmp_path: Path
) -> None:
    import torch.distributed.fsdp  # forked processes inherit the import

    context, port = multiprocessing.get_context("fork"), free_port()
    children = [
        context.Process(target=train_sharded, args=(pl, optplug_lightning, scripted_module, rank, port, tmp_path))
        for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        if child.is_alive():
            child.kill()
    failures = [path.read_text() for path in sorted(tmp_path.glob("*.txt"))]
    assert failures == []
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["sharded"]
    assert first["groups"] == {"default": ["layer.weight"], "no_decay": ["layer.bias"]}
    _, whole = fit(ADAM, param_groups="no_decay")
    for weights, expected in zip(first["weights"], whole.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(weights), expected.detach())
