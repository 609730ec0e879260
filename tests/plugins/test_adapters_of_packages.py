"""Adapters of packages with optimizers or schedules: what they register, and that it trains as without optplug."""

from __future__ import annotations

import importlib
import io
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optplug
from optplug import OptimizerSpec
from optplug.config.form import BASE_KEY
from optplug.errors import ConfigError
from optplug.registry import Plugin, Registration
from optplug.registry.signature import base_argument, configurable_arguments, declared_cases
from optplug_adapters.packages import PRECEDENCE, exported_names, precedence

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "third_parties.md").read_text()

CLASSES_IN = {
    "lion_pytorch": ("lion_pytorch.lion_pytorch", "lion_pytorch.cautious_lion", "lion_pytorch.foreach"),
    "prodigyopt": ("prodigyopt", "prodigyopt.prodigy_reference"),
    "schedulefree": ("schedulefree",),
    "dadaptation": ("dadaptation", "dadaptation.experimental"),
    "optimi": ("optimi",),
    "heavyball": ("heavyball",),
    "bitsandbytes": ("bitsandbytes.optim",),
    "torchao": ("torchao.optim",),
}
"""By package, the modules that export its optimizers."""

BASE_CLASSES = ("Optimizer", "PSGDBase", "SOAPBase")

SAMPLES = {
    "lion_pytorch": ("lion", "cautious_lion", "foreach_lion"),
    "prodigyopt": ("prodigy", "prodigy_reference"),
    "schedulefree": ("schedule_free_adamw", "schedule_free_radam_closure", "schedule_free_adamw_reference"),
    "dadaptation": ("dadapt_adam", "dadapt_sgd", "dadapt_adan_ip"),
    "optimi": ("adamw", "stable_adamw"),
    "heavyball": ("adamw", "heavy_soap", "msam_laprop", "sf_adamw"),
    "bitsandbytes": ("adam8bit", "adamw32bit", "ademamix", "lars", "pytorch_lars", "sgd8bit"),
    "torchao": ("adam8bit", "adamw4bit", "adam_fp8", "adamw"),
}
"""By package, the optimizers that are trained."""

STEPS = 6

pytestmark = [
    pytest.mark.filterwarnings("ignore:Learning rate changed between steps"),  # heavyball, with any schedule
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def needs(package: str) -> Any:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


def of_installed(names: dict[str, tuple[str, ...]]) -> list[Any]:
    """Parameters (package, name), with a skip mark if the package is not installed."""
    return [
        pytest.param(package, name, id=f"{package}-{name}", marks=needs(package))
        for package, found in names.items()
        for name in found
    ]


PACKAGES = [pytest.param(package, marks=needs(package)) for package in CLASSES_IN]


def specs_of(package: str, kind: str = "optimizer") -> list[Any]:
    return list(getattr(importlib.import_module(f"optplug_adapters.{package}"), f"optplug_{kind}s")())


def registrations_of(package: str, kind: str = "optimizer") -> list[Registration]:
    """The registrations that `register_optimizers` and `register_schedulers` make of the specs of a package."""
    return [Registration(spec, Plugin("third-party", "third-party", "1")) for spec in specs_of(package, kind)]


@pytest.fixture
def adapt(register_optimizers: Any) -> Any:
    """A function that registers the optimizers of a package; its names alone then mean these."""
    return lambda package: register_optimizers(*specs_of(package))


@pytest.fixture(autouse=True)
def without_compiler() -> Iterator[None]:
    """Run heavyball and torchao without compilation, which takes seconds for each function."""
    with torch.compiler.set_stance("force_eager"):
        yield


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 1))


def loss_of(net: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(step))
    return (net(x) - x[:, :1].sin()).square().mean()


def train(net: nn.Module, optimizer: Any, steps: range, *, closure: bool = False) -> list[torch.Tensor]:
    """Train in a plain loop; return the weights in eval mode."""
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in steps:

        def evaluate(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(net, step)
            loss.backward()
            return loss

        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    return [p.detach().clone() for p in net.parameters()]


def saved_and_loaded(value: Any, map_location: Any = None) -> Any:
    saved = io.BytesIO()
    torch.save(value, saved)
    saved.seek(0)
    return torch.load(saved, weights_only=True, map_location=map_location)


# ---------------------------------------------------------------- what is registered


def test_adapters_import_neither_the_packages_nor_torch():
    packages = [*CLASSES_IN, "transformers"]
    program = (
        "import importlib, sys\n"
        f"for package in {packages}:\n"
        "    module = importlib.import_module(f'optplug_adapters.{package}')\n"
        "    for kind in ('optimizers', 'schedulers'):\n"
        "        print(len(getattr(module, f'optplug_{kind}', list)()))\n"
        f"loaded = sorted({{'torch', *{packages}}} & set(sys.modules))\n"
        "assert not loaded, loaded"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert sum(map(int, ran.stdout.split())) >= 11 + 3 + 2  # schedulefree, lion_pytorch and prodigyopt are installed


@pytest.mark.parametrize("package", CLASSES_IN)
def test_package_that_is_not_installed_registers_nothing(package, monkeypatch):
    monkeypatch.setattr("optplug_adapters.packages.find_spec", lambda name: None)
    assert specs_of(package) == []


def test_class_whose_file_the_installed_version_lacks_is_not_registered():
    assert exported_names("optplug", "no_such_file.py") == ()
    assert "lookup_key" in (exported_names("optplug", "registry/specs.py") or ())


@pytest.mark.parametrize("package", PACKAGES)
def test_targets_exist_and_cases_have_the_required_arguments(package, adapt):
    adapt(package)
    for registration in registrations_of(package):
        registration.load()
        registration.load_build()
        arguments = configurable_arguments(registration)
        required = {name for name, p in arguments.items() if p.default is p.empty}
        for case in declared_cases(registration):
            known = {*arguments, *([BASE_KEY] if base_argument(registration) else [])}
            assert required <= case.keys() <= known, registration.name
        assert registration.spec.precedence == precedence(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_all_optimizers_of_the_installed_version_are_registered(package):
    exported = {
        f"{module}:{name}"
        for module in CLASSES_IN[package]
        for name, value in vars(importlib.import_module(module)).items()
        if isinstance(value, type) and hasattr(value, "step") and name not in BASE_CLASSES
    }
    targets = {str(registration.spec.target) for registration in registrations_of(package)}
    # The targets of some wrappers are classes of optplug with the name of the class in the package.
    names = {target.rpartition(":")[2] for target in targets}
    classes = {target.replace("lion_pytorch.lion_pytorch:", "lion_pytorch:") for target in exported}
    assert {target for target in classes if target not in targets and target.rpartition(":")[2] not in names} == set()


def test_documented_packages_are_in_the_order_of_precedence():
    table = PAGE.partition("## Packages")[2].partition("##")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(PRECEDENCE)


def test_optimizers_that_cannot_be_used_are_documented():
    table = PAGE.partition("## What cannot be used")[2].partition("##")[0]
    documented = set(re.findall(r"`([\w-]+:\w+)`", table)) - {"bitsandbytes:ademamix", "torchao:cpu_offload_optimizer"}
    unusable = {
        f"{package.replace('_', '-')}:{spec.name}"
        for package in PRECEDENCE
        for kind in ("optimizer", "scheduler")
        if hasattr(importlib.import_module(f"optplug_adapters.{package}"), f"optplug_{kind}s")
        for spec in specs_of(package, kind)
        if getattr(spec, "unsupported", "")
    }
    installed = {package.replace("_", "-") for package in PRECEDENCE if find_spec(package)}
    assert unusable == {name for name in documented if name.partition(":")[0] in installed}


# ---------------------------------------------------------------- optimizers


@pytest.mark.parametrize(("package", "name"), of_installed(SAMPLES))
def test_trains_as_natively_and_continues_from_its_state(package, name, adapt):
    adapt(package)
    (registration,) = [each for each in registrations_of(package) if each.name == name]
    closure, case = "closure" in registration.spec.capabilities, declared_cases(registration)[0]

    native = network()
    expected = train(native, registration.load()(native.parameters(), **case), range(STEPS), closure=closure)
    net = network()
    optimizer = optplug.create_optimizer(name, net, **case)
    assert all(map(torch.equal, train(net, optimizer, range(STEPS), closure=closure), expected))
    assert not torch.equal(expected[0], network()[0].weight)

    net = network()
    optimizer = optplug.create_optimizer(name, net, **case)
    train(net, optimizer, range(3), closure=closure)
    # Lightning loads checkpoints with a function as map_location.
    weights, state = saved_and_loaded((net.state_dict(), optimizer.state_dict()), lambda storage, _: storage)
    net = network()
    net.load_state_dict(weights)
    optimizer = optplug.create_optimizer(name, net, **case)
    optimizer.load_state_dict(state)
    continued = train(net, optimizer, range(3, STEPS), closure=closure)
    for weight, other in zip(continued, expected, strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=5e-7 if hasattr(optimizer, "eval") else 0)


@pytest.mark.parametrize(
    ("package", "name"),
    of_installed(
        {
            "schedulefree": ("schedule_free_sgd", "schedule_free_adamw_closure"),
            "dadaptation": ("dadapt_lion",),
            "optimi": ("ranger",),
            "heavyball": ("nadam",),
            "bitsandbytes": ("adamw8bit",),
            "torchao": ("adamw8bit",),
        }
    ),
)
def test_resumed_training_in_lightning_equals_the_uninterrupted_one(
    package, name, adapt, fit, scripted_module, tmp_path
):
    adapt(package)
    tolerance = 5e-7 if name == "schedule_free_sgd" else 0
    check_resume({"name": name, "lr": 0.05}, fit, scripted_module, tmp_path, tolerance)


WITH_OBJECTS: dict[str, dict[str, Any]] = {
    "adashift": {"keep_num": 3},
    "conda": {"update_proj_gap": 3},
    "scalable_shampoo": {"start_preconditioning_step": 1, "preconditioning_compute_steps": 3},
    "scion": {},
    "scion_light": {},
}
"""Optimizers of pytorch_optimizer whose states contain objects, with arguments."""


@needs("pytorch_optimizer")
@pytest.mark.parametrize("name", WITH_OBJECTS)
def test_training_resumes_where_the_state_of_the_package_contains_objects(name, adapt, fit, scripted_module, tmp_path):
    adapt("pytorch_optimizer")
    check_resume({"name": name, "lr": 0.01, **WITH_OBJECTS[name]}, fit, scripted_module, tmp_path)


@needs("pytorch_optimizer")
@pytest.mark.parametrize("name", ["conda", "galore", "fira"])
def test_state_of_the_package_is_loaded_and_other_objects_are_not(name, adapt):
    adapt("pytorch_optimizer")
    (registration,) = [each for each in registrations_of("pytorch_optimizer") if each.name == name]
    options = {"rank": 2, "update_proj_gap": 3, "scale": 1.0, "projection_type": "std"}

    def groups(net: nn.Module) -> list[dict[str, Any]]:
        matrices, others = ([p for p in net.parameters() if (p.ndim == 2) == flag] for flag in (True, False))
        return [{"params": matrices, **({} if name == "conda" else options)}, {"params": others}]

    native, net = network(), network()
    theirs, ours = registration.load()(groups(native)), optplug.create_optimizer(name, groups(net))
    train(native, theirs, range(2))
    train(net, ours, range(2))
    assert type(theirs.state_dict()["state"][0]["projector"]).__name__ == "GaLoreProjector"
    loaded = saved_and_loaded(ours.state_dict())
    ours.load_state_dict(deepcopy(theirs.state_dict()))
    torch.manual_seed(1)  # for random projections
    expected = train(native, theirs, range(2, 4))
    torch.manual_seed(1)
    torch.testing.assert_close(train(net, ours, range(2, 4)), expected, rtol=0, atol=0)
    loaded["state"][0]["projector"]["class of pytorch_optimizer"] = "subprocess:Popen"
    ours.load_state_dict(loaded)
    with pytest.raises(ValueError, match="contains an object of 'subprocess:Popen'"):
        train(net, ours, range(1))


def check_resume(config: dict[str, Any], fit: Any, scripted_module: Any, folder: Path, tolerance: float = 0.0) -> None:
    """Check that a training resumed from a checkpoint of Lightning ends with the weights of the uninterrupted one."""
    schedule = {"name": "step_lr", "step_size": 5, "interval": "step"}

    class Module(scripted_module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = network()

        def loss(self, batch: Any) -> torch.Tensor:
            return loss_of(self.layer, self.trainer.global_step)

    _, whole = fit(config, schedule, module=Module(), max_epochs=2)
    first, _ = fit(config, schedule, module=Module(), max_epochs=1)
    first.save_checkpoint(folder / "first.ckpt")
    _, resumed = fit(config, schedule, module=Module(), max_epochs=2, ckpt_path=folder / "first.ckpt")
    for weight, other in zip(resumed.layer.parameters(), whole.layer.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=tolerance)
    assert not torch.equal(whole.layer[0].weight, network()[0].weight)


# ---------------------------------------------------------------- wrappers of other optimizers


@needs("schedulefree")
@pytest.mark.parametrize("variant", ["", "Reference"])
def test_schedule_free_wrapper_trains_as_natively_and_is_an_optimizer_of_torch(variant, adapt, register_optimizers):
    import schedulefree

    adapt("schedulefree")
    register_optimizers(OptimizerSpec("torch_sgd", torch.optim.SGD))
    native = network()
    base = torch.optim.SGD(native.parameters(), lr=0.01, weight_decay=0.1)
    expected = train(native, getattr(schedulefree, f"ScheduleFreeWrapper{variant}")(base, momentum=0.8), range(STEPS))
    net = network()
    name = f"schedule_free_wrapper_{variant}".rstrip("_")
    optimizer = optplug.create_optimizer(
        name, net, momentum=0.8, base={"name": "torch_sgd", "lr": 0.01, "weight_decay": 0.1}
    )
    assert all(map(torch.equal, train(net, optimizer, range(STEPS)), expected))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    calls: list[Any] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    train(net, optimizer, range(1))
    scheduler.step()
    assert (calls, optimizer.param_groups[0]["lr"]) == ([1], 0.005)


@needs("heavyball")
def test_sam_of_heavyball_trains_as_natively_and_has_the_groups_of_its_base(adapt):
    import heavyball

    adapt("heavyball")
    native = network()
    parameters = list(native.parameters())
    sam = heavyball.SAMWrapper(parameters, heavyball.RMSprop(parameters, lr=0.01), ball=0.05)
    sam.train = sam.eval = lambda: None  # those of heavyball fail for an optimizer without modes
    expected = train(native, sam, range(STEPS), closure=True)
    net = network()
    optimizer = optplug.create_optimizer("sam_wrapper", net, ball=0.05, base={"name": "rmsprop", "lr": 0.01})
    assert all(map(torch.equal, train(net, optimizer, range(STEPS), closure=True), expected))
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["ball"]) == (0.01, 0.05)
    with pytest.raises(
        ConfigError, match=r"base must be an optimizer of heavyball, such as heavyball:adamw, got .*Adagrad"
    ):
        optplug.create_optimizer("sam_wrapper", net, base="adagrad")


# ---------------------------------------------------------------- what is refused, and special cases


@needs("bitsandbytes")
def test_optimizer_with_a_faulty_state_is_refused(adapt):
    adapt("bitsandbytes")
    with pytest.raises(
        ConfigError, match=r"ademamix32bit .* cannot be used: its state has room for one of its two mom"
    ):
        optplug.create_optimizer("ademamix32bit", network())


@needs("torchao")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")
def test_offloading_without_gpu_is_refused(adapt):
    adapt("torchao")
    with pytest.raises(
        ConfigError, match=r"^optimizer: cpu_offload_optimizer of torchao needs a GPU: without one, give"
    ):
        optplug.create_optimizer("cpu_offload_optimizer", network(), base="adagrad")


@needs("torchao")
def test_quantized_optimizer_loads_a_state_dict_of_torchao(adapt):
    from torchao.optim import AdamW8bit

    adapt("torchao")
    native, net = network(), network()
    theirs, ours = AdamW8bit(native.parameters()), optplug.create_optimizer("adamw8bit", net)
    train(native, theirs, range(2))
    train(net, ours, range(2))
    ours.load_state_dict(saved_and_loaded(theirs.state_dict()))
    assert type(ours.state[net[0].weight]["exp_avg"]) is type(theirs.state[native[0].weight]["exp_avg"])
    assert all(map(torch.equal, train(net, ours, range(2, 4)), train(native, theirs, range(2, 4))))


@needs("heavyball")
def test_options_that_heavyball_reads_from_keywords_are_accepted(adapt):
    adapt("heavyball")
    net = network()
    train(net, optplug.create_optimizer("nadam", net, consume_grad=False), range(1))
    assert net[0].weight.grad is not None
    with pytest.raises(ConfigError, match=r"nadam has no option 'consume_grads'; did you mean 'consume_grad'"):
        optplug.create_optimizer("nadam", net, consume_grads=False)
    with pytest.raises(ConfigError, match="adamw has no option 'fns'"):  # an argument of the base class
        optplug.create_optimizer("adamw", net, fns=None)


@needs("heavyball")
def test_default_rank_of_psgd_lra_is_computed_for_parameter_groups(adapt):
    adapt("heavyball")
    net = network()
    groups = [{"params": [net[0].weight]}, {"params": net[0].bias}]
    assert optplug.create_optimizer("psgd_lra", groups).param_groups[1]["rank"] == round(math.log2(64 * 65))
    optimizer = optplug.create_optimizer("psgd_lra", net, param_groups="no_decay")
    train(net, optimizer, range(2))


@needs("lion_pytorch")
def test_value_that_an_assertion_refuses_is_reported_with_its_location(adapt):
    adapt("lion_pytorch")
    with pytest.raises(
        ConfigError, match=r"^optimizer.cautious_factor: cautious_lion rejected .*: AssertionError"
    ) as caught:
        optplug.configure_optimizers(network(), {"name": "cautious_lion", "cautious_factor": 2.0})
    assert caught.value.loc == ("optimizer", "cautious_factor")


@needs("bitsandbytes")
def test_missing_momentum_is_reported(adapt):
    adapt("bitsandbytes")
    with pytest.raises(ConfigError, match=r"^optimizer: sgd rejected .*: SGD without momentum is not supported!"):
        optplug.configure_optimizers(network(), {"name": "sgd", "lr": 1.0})


# ---------------------------------------------------------------- schedules


@needs("transformers")
@pytest.mark.parametrize("name", [spec.name for spec in specs_of("transformers", "scheduler")])
def test_schedule_of_transformers_has_their_learning_rates(name, register_schedulers):
    register_schedulers(*specs_of("transformers", "scheduler"))
    (registration,) = [each for each in registrations_of("transformers", "scheduler") if each.name == name]
    assert registration.spec.interval == ("epoch" if name == "greedy_lr" else "step")
    for case in declared_cases(registration):
        optimizers = [torch.optim.SGD([torch.zeros(1)], lr=0.5) for _ in range(3)]
        theirs = registration.load()(optimizers[0], **case)
        ours = optplug.create_scheduler(name, optimizers[1], **case)
        resumed = optplug.create_scheduler(name, optimizers[2], **case)
        assert isinstance(ours, torch.optim.lr_scheduler.LRScheduler)
        metric = [1.0] if name == "greedy_lr" else []
        for step in range(20):
            if step == 9:
                optimizers[2].load_state_dict(optimizers[1].state_dict())
                resumed.load_state_dict(ours.state_dict())
            for optimizer, scheduler in zip(optimizers, (theirs, ours, *([resumed] if step > 8 else [])), strict=False):
                optimizer.step()
                scheduler.step(*metric)
            assert ours.get_last_lr() == theirs.get_last_lr()
        assert resumed.get_last_lr() == theirs.get_last_lr()


@needs("transformers")
def test_length_of_a_schedule_of_transformers_is_that_of_the_training(register_schedulers, fit):
    register_schedulers(*specs_of("transformers", "scheduler"))
    config = {"name": "cosine_with_warmup", "num_warmup_steps": {"ratio": 0.25}, "num_training_steps": "auto"}
    trainer, _ = fit({"name": "sgd", "lr": 1.0}, config)  # three epochs with four batches
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.last_epoch == 12
    assert [scheduler.lr_lambdas[0](step) for step in (0, 3, 12)] == [0.0, 1.0, 0.0]
