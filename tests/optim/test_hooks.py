"""Hooks: before and after the step, and before and after saving and loading a state dict."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture
def global_hook_log() -> Iterator[list[Any]]:
    """The log of two global hooks, one before and one after each step."""
    log: list[Any] = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, args, kwargs: log.append(("global pre", type(o).__name__))),
        register_optimizer_step_post_hook(lambda o, args, kwargs: log.append(("global post", type(o).__name__))),
    ]
    yield log
    for handle in handles:
        handle.remove()


@pytest.mark.optimizers("torch")
def test_step_hooks_run_once_and_in_the_order_of_torch(name, tested_optimizers, make_run, global_hook_log):
    logs = []
    for of in ("optplug", "torch"):
        run = make_run(name, of=of)
        run.set_gradients(3)
        handles = [
            register(lambda o, args, kwargs, what=what: global_hook_log.append((what, type(o).__name__, len(args))))
            for register in (run.optimizer.register_step_pre_hook, run.optimizer.register_step_post_hook)
            for what in (f"first {register.__name__}", f"second {register.__name__}")
        ]

        def closure() -> torch.Tensor:
            global_hook_log.append("closure")
            return torch.tensor(1.0)

        run.optimizer.step(closure)
        handles[0].remove()
        run.optimizer.step(closure=closure)
        logs.append(list(global_hook_log))
        global_hook_log.clear()
    assert logs[0] == logs[1]
    assert logs[0].count(("global pre", tested_optimizers[name].cls.__name__)) == 2
    assert logs[0][1][0] == "first register_step_pre_hook"


@pytest.mark.optimizers("all")
def test_step_pre_hook_may_replace_the_arguments(name, make_run):
    run = make_run(name)
    run.set_gradients(3)
    seen = []
    run.optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: torch.tensor(7.0)), {}))
    run.optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(args[1]()))
    assert run.optimizer.step(lambda: torch.tensor(1.0)) == 7.0
    assert seen == [torch.tensor(7.0)]
    run.optimizer.register_step_pre_hook(lambda o, args, kwargs: "nonsense")
    with pytest.raises(RuntimeError, match=r"must return None or a tuple of \(new_args, new_kwargs\)"):
        run.optimizer.step(lambda: torch.tensor(1.0))


@pytest.mark.optimizers("torch")
def test_state_dict_hooks_run_in_the_order_of_torch_and_may_replace_the_state_dict(name, make_run):
    def save_and_load_twice(of: str) -> tuple[list[str], Any, float]:
        run, log = make_run(name, of=of).run_steps(0, 2), []
        optimizer = run.optimizer

        def logged(what: str, hook: Callable[..., Any] = lambda *_: None) -> Callable[..., Any]:
            return lambda *args: (log.append(what), hook(*args))[1]

        def add_key(optimizer: Any, saved: dict[str, Any]) -> dict[str, Any]:
            return {**saved, "extra": 1}

        def replace_lr(optimizer: Any, saved: dict[str, Any]) -> dict[str, Any]:
            saved = copy.deepcopy(saved)
            saved["param_groups"][0]["lr"] = 0.0625
            return saved

        def log_loaded(optimizer: Any) -> None:
            has_states = sorted(map(len, optimizer.state.values()))[-1] > 0
            log.append(f"lr {optimizer.param_groups[0]['lr']}, states {has_states}")

        optimizer.register_state_dict_pre_hook(logged("save pre"))
        optimizer.register_state_dict_pre_hook(logged("save pre, first"), prepend=True)
        optimizer.register_state_dict_post_hook(logged("save post", add_key))
        optimizer.register_state_dict_post_hook(logged("save post, first"), prepend=True)
        optimizer.register_load_state_dict_pre_hook(logged("load pre", replace_lr))
        optimizer.register_load_state_dict_pre_hook(logged("load pre, first"), prepend=True)
        optimizer.register_load_state_dict_post_hook(logged("load post"))
        optimizer.register_load_state_dict_post_hook(log_loaded, prepend=True)
        handle = optimizer.register_load_state_dict_post_hook(logged("removed"))
        handle.remove()
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        optimizer.load_state_dict(saved)
        return log, saved["extra"], optimizer.param_groups[0]["lr"]

    ours, theirs = save_and_load_twice("optplug"), save_and_load_twice("torch")
    assert ours == theirs
    assert ours[1:] == (1, 0.0625)


@pytest.mark.optimizers("all")
def test_copies_of_an_optimizer_have_no_hooks(name, make_run):
    optimizer = make_run(name).run_steps(0, 2).optimizer
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("pre"))  # a lambda, which pickle would not accept
    optimizer.register_step_post_hook(lambda *_: called.append("post"))
    optimizer.register_state_dict_post_hook(lambda *_: called.append("save"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: called.append("load"))
    optimizer.zero_grad()
    for duplicate in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        duplicate.load_state_dict(duplicate.state_dict())
        duplicate.step(lambda: torch.tensor(1.0))
    assert called == []
