"""Whether a module has a `configure_optimizers` of its own, and whose is called."""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from optplug.errors import WiringError
from optplug.lightning.configure import own_configure_optimizers

EXPONENTIAL = {"name": "exponential_lr", "gamma": 0.5}


def sgd(module: Any) -> Any:
    return torch.optim.SGD(module.parameters(), lr=8.0)


def boring(pl: Any, scripted: type) -> Any:
    demos = importlib.import_module(f"{pl.__name__}.demos.boring_classes")
    return type("Boring", (demos.BoringModel,), {})()


def mixin(pl: Any, scripted: type) -> Any:
    return type("Mixed", (type("Mixin", (), {"configure_optimizers": sgd}), scripted), {})()


def decorated(pl: Any, scripted: type) -> Any:
    def decorate(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(function)
        def call(module: Any) -> Any:
            return function(module)

        return call

    return type("Decorated", (scripted,), {"configure_optimizers": decorate(sgd)})()


def from_static_function(pl: Any, scripted: type) -> Any:
    module = type("Static", (scripted,), {"configure_optimizers": staticmethod(lambda: sgd(module))})()
    return module


def patched_by_lightning_cli(pl: Any, scripted: type) -> Any:
    cli = importlib.import_module(f"{pl.__name__}.cli")
    module = scripted()
    sets_hook = cli.LightningCLI.configure_optimizers
    hook = functools.update_wrapper(functools.partial(sets_hook, optimizer=sgd(module)), sets_hook)
    module.configure_optimizers = types.MethodType(hook, module)
    return module


def bound_on_the_instance(pl: Any, scripted: type) -> Any:
    module = scripted()
    module.configure_optimizers = types.MethodType(sgd, module)
    return module


def function_on_the_instance(pl: Any, scripted: type) -> Any:
    module = scripted()
    module.configure_optimizers = lambda: sgd(module)
    return module


def none(pl: Any, scripted: type) -> Any:
    return scripted()


def lightnings_hook_assigned(pl: Any, scripted: type) -> Any:
    parent = type("Parent", (scripted,), {"configure_optimizers": sgd})
    return type("Child", (parent,), {"configure_optimizers": pl.LightningModule.configure_optimizers})()


def lightnings_hook_bound(pl: Any, scripted: type) -> Any:
    module = scripted()
    module.configure_optimizers = types.MethodType(pl.LightningModule.configure_optimizers, module)
    return module


def lightnings_hook_decorated(pl: Any, scripted: type) -> Any:
    inherited = pl.LightningModule.configure_optimizers

    @functools.wraps(inherited)
    def call(module: Any) -> Any:
        return inherited(module)

    return type("Decorated", (scripted,), {"configure_optimizers": call})()


WITH_OWN = [
    boring,
    mixin,
    decorated,
    from_static_function,
    patched_by_lightning_cli,
    bound_on_the_instance,
    function_on_the_instance,
]
WITHOUT_OWN = [none, lightnings_hook_assigned, lightnings_hook_bound, lightnings_hook_decorated]


def named(functions: list[Callable[..., Any]]) -> Any:
    return pytest.mark.parametrize("make", functions, ids=lambda function: function.__name__)


@pytest.mark.both_import_names
@named(WITH_OWN)
def test_own_hook_and_an_optimizer_raise(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any, make: Any
) -> None:
    with pytest.raises(WiringError, match="defines configure_optimizers, and the configuration has an optimizer too"):
        trainer(callbacks=quiet_callback("adam")).fit(make(pl, scripted_module))


@named(WITH_OWN)
def test_schedule_is_added_to_the_optimizer_of_the_own_hook(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any, make: Any
) -> None:
    module = make(pl, scripted_module)
    before = dict(vars(module))
    fitted = trainer(callbacks=quiet_callback(None, EXPONENTIAL, override=True), max_epochs=2, limit_val_batches=0)
    fitted.fit(module)
    (optimizer,) = fitted.optimizers
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["initial_lr"] / 4
    assert vars(module).get("configure_optimizers") == before.get("configure_optimizers")


@named(WITH_OWN)
def test_override_replaces_the_own_hook_for_one_fit(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any, make: Any
) -> None:
    module = make(pl, scripted_module)
    overridden = trainer(callbacks=quiet_callback("adam", override=True), max_epochs=1, limit_val_batches=0)
    overridden.fit(module)
    assert type(overridden.optimizers[0]).__name__ == "Adam"
    native = trainer(max_epochs=1, limit_val_batches=0)
    native.fit(module)
    assert type(native.optimizers[0]) is torch.optim.SGD


def test_own_hook_is_restored_after_an_error(
    scripted_module: type, trainer: Any, quiet_callback: Any, frequency_recorder: type
) -> None:
    module = bound_on_the_instance(None, scripted_module)
    own = module.configure_optimizers
    callbacks = [quiet_callback("adam", override=True), frequency_recorder(stop=True)]
    with pytest.raises(frequency_recorder.StopFit):
        trainer(callbacks=callbacks).fit(module)
    assert module.configure_optimizers == own


@pytest.mark.both_import_names
@named(WITHOUT_OWN)
def test_hook_of_lightning_is_no_own_hook(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any, make: Any
) -> None:
    module = make(pl, scripted_module)
    fitted = trainer(callbacks=quiet_callback("adam"), max_epochs=1)
    fitted.fit(module)
    assert type(fitted.optimizers[0]).__name__ == "Adam"
    with pytest.raises(WiringError, match="defines no configure_optimizers"):
        trainer(callbacks=quiet_callback(None, EXPONENTIAL)).fit(module)


def test_module_without_the_hook_has_none() -> None:
    assert own_configure_optimizers(torch.nn.Linear(1, 1)) is None
