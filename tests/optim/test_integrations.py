"""Use with torch.compile, torch's schedulers and averaged models, GradScaler, Lightning Fabric, processes, threads."""

from __future__ import annotations

import concurrent.futures
import copy
import math
import multiprocessing
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.optim import lr_scheduler, swa_utils

from optplug.engines import cpu_kernel, foreach
from optplug.rules import trace
from optplug.testing.checks import assert_close, assert_equal, state_tensors
from optplug.testing.trajectory import OptimizerUnderTest, Trajectory
from warnings_of_others import is_of_others

pytestmark = pytest.mark.usefixtures("single_thread")


class ClassificationTask:
    """A small classification problem: data, a model, and its loss.

    Args:
        sparse: whether the model has sparse gradients.
        bias: whether the model has vectors too.
        dtype: dtype of the model.
    """

    def __init__(self, *, sparse: bool, bias: bool, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.y = torch.randint(0, 4, (16,), generator=generator)
        self.model: nn.Module
        if sparse:
            self.model = nn.Embedding(12, 4, sparse=True, dtype=dtype)
            self.x = torch.randint(0, 12, (16,), generator=generator)
        else:
            self.model = nn.Sequential(nn.Linear(6, 5, bias=bias), nn.ReLU(), nn.Linear(5, 4, bias=bias)).to(dtype)
            self.x = torch.randn(16, 6, generator=generator).to(dtype)
        self.params = list(self.model.parameters())
        self.initial = [p.detach().clone() for p in self.params]

    def loss(self, model: nn.Module | None = None) -> Tensor:
        logits = (model or self.model)(self.x)
        return nn.functional.cross_entropy(logits.float() if logits.dtype is torch.bfloat16 else logits, self.y)


@pytest.fixture
def make_task(tested_optimizers: Any) -> Callable[..., ClassificationTask]:
    """Makes a task whose gradients have the layout that an optimizer supports."""

    def make(name: str, dtype: torch.dtype = torch.float32) -> ClassificationTask:
        capabilities = tested_optimizers[name].capabilities
        return ClassificationTask(
            sparse="sparse_only" in capabilities, bias="matrix_only" not in capabilities, dtype=dtype
        )

    return make


def train_step(optimizer: Any, task: ClassificationTask) -> None:
    """Take one step with a closure, which every optimizer accepts."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task.loss()
        loss.backward()
        return loss

    optimizer.step(closure)


# -------------------------------------------------------------------------------------------- torch.compile


@pytest.fixture
def reset_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("compiled_part", ["step", "forward, backward and step", "step with a tensor as lr"])
@pytest.mark.optimizers("all")
def test_compiled_training_step_gives_equal_numbers_and_is_compiled_once(
    name, compiled_part, tested_optimizers, make_run, make_task, reset_compiler
):
    needs_closure = "closure" in tested_optimizers[name].capabilities
    compiles_backward = compiled_part.startswith("forward")

    def train(compiled: bool) -> tuple[list[Tensor], list[int]]:
        task = make_task(name)
        lr = torch.tensor(0.1) if compiled_part.endswith("lr") else 0.1
        optimizer = make_run(name, task.params, lr=lr).optimizer
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)

        def backward() -> Tensor:
            optimizer.zero_grad()
            loss = task.loss()
            loss.backward()
            return loss

        def take_step() -> None:
            if needs_closure:
                optimizer.step(backward)
            elif compiles_backward:
                backward()
                optimizer.step()
            else:
                optimizer.step()

        step, frames = torch.compile(take_step, backend="eager") if compiled else take_step, []
        for _ in range(20):
            if not compiles_backward and not needs_closure:
                backward()
            step()
            scheduler.step()
            frames.append(counters["frames"]["total"])
        return task.params, frames

    plain, _ = train(False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled, frames = train(True)
    assert [str(w.message) for w in caught if not is_of_others(str(w.message))] == []
    assert_equal("compiled and plain", compiled, plain)
    assert frames[0] > 0
    assert frames[2] == frames[-1], f"frames compiled after each step: {frames}"


# ------------------------------------------------------------------- schedulers, averaged models, GradScaler

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=12, cycle_momentum=False),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, 5),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.02, anneal_epochs=4),
}


@pytest.mark.parametrize("scheduler_name", SCHEDULERS)
@pytest.mark.optimizers("torch")
def test_schedulers_and_averaged_models_work_like_with_torch(name, scheduler_name, make_run, make_task):
    results = []
    for of in ("optplug", "torch"):
        task = make_task(name, torch.float64)
        optimizer = make_run(name, task.params, of=of).optimizer
        scheduler = SCHEDULERS[scheduler_name](optimizer)
        average, lrs = swa_utils.AveragedModel(task.model), []
        for _ in range(10):
            train_step(optimizer, task)
            scheduler.step()
            average.update_parameters(task.model)
            lrs.append(optimizer.param_groups[0]["lr"])
        results.append((list(average.module.parameters()), task, lrs))
    (ours, _, our_lrs), (theirs, task, their_lrs) = results
    assert our_lrs == their_lrs
    moved = max(float((p - q).detach().abs().max()) for p, q in zip(theirs, task.initial, strict=True))
    assert_close("the average, ours and torch's", ours, theirs, moved, 1e-9)


@pytest.mark.optimizers("dense")
def test_grad_scaler_skips_steps_with_non_finite_gradients(name, torch_classes, make_run, make_task):
    results = []
    for of in ("optplug", *(["torch"] if name in torch_classes else [])):
        task = make_task(name)
        optimizer = make_run(name, task.params, of=of).optimizer
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        scales = []
        for factor in (1.0, 2.0, math.inf, 1.0, math.nan, 3.0):
            optimizer.zero_grad()
            scaler.scale(task.loss() * factor).backward()
            params, states = copy.deepcopy(([p.detach() for p in task.params], state_tensors(optimizer)))
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            if not math.isfinite(factor):
                assert_equal("parameters after a skipped step", task.params, params)
                assert_equal("states after a skipped step", state_tensors(optimizer), states)
        results.append((task, scales))
    (ours, our_scales), (theirs, their_scales) = results[0], results[-1]
    assert our_scales == their_scales
    assert_close("ours and torch's", ours.params, theirs.params, 1.0, 1e-5)


# ----------------------------------------------------------------------------------------- Lightning Fabric


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.optimizers("all")
def test_fabric_trains_like_a_plain_loop(name, precision, tested_optimizers, make_run, make_task, tmp_path):
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    clips_gradients = not tested_optimizers[name].capabilities & {"closure", "sparse_only"}

    plain = make_task(name, dtype)
    plain_optimizer = make_run(name, plain.params).optimizer

    def plain_closure() -> Tensor:
        plain_optimizer.zero_grad()
        loss = plain.loss()
        loss.backward()
        if clips_gradients:
            nn.utils.clip_grad_norm_(plain.params, 0.1)
        return loss

    for _ in range(8):
        plain_optimizer.step(plain_closure)

    def set_up() -> Any:
        task = make_task(name)
        task.x = task.x.to(dtype) if task.x.is_floating_point() else task.x
        for p, q in zip(task.params, plain.initial, strict=True):
            p.data.copy_(q)
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        model, optimizer = fabric.setup(task.model, make_run(name, task.params).optimizer)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = task.loss(model)
            fabric.backward(loss)
            if clips_gradients:
                fabric.clip_gradients(model, optimizer, max_norm=0.1)
            return loss

        return fabric, {"model": model, "optimizer": optimizer}, closure

    fabric, objects, closure = set_up()
    for _ in range(4):
        objects["optimizer"].step(closure)
    fabric.save(tmp_path / "half.ckpt", objects)
    fabric, objects, closure = set_up()
    fabric.load(tmp_path / "half.ckpt", objects)
    for _ in range(4):
        objects["optimizer"].step(closure)
    assert_equal("Fabric and the plain loop", list(objects["model"].parameters()), plain.params)


@pytest.mark.optimizers("all")
def test_optimizer_used_with_fabric_is_freed_without_garbage_collection(name, make_run, make_task, gc_disabled):
    task = make_task(name)
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(task.model, make_run(name, task.params).optimizer)
    train_step(optimizer, task)
    dropped = weakref.ref(optimizer.optimizer)
    del model, optimizer, fabric
    assert dropped() is None


# ------------------------------------------------------------------------------------ processes and threads


def continue_in_process(pickled: bytes) -> bytes:
    """In another process: take five more steps with each of the pickled optimizers, and return the parameters."""
    params = {}
    for name, optimizer in pickle.loads(pickled).items():
        run = Trajectory(OptimizerUnderTest.of(name), {})
        run.optimizer, run.params = optimizer, optimizer.param_groups[0]["params"]
        run.run_steps(5)
        params[name] = [p.detach().numpy() for p in run.params]
    return pickle.dumps(params)


def test_pickled_optimizers_continue_in_a_spawned_process(tested_optimizers, make_run):
    pickled = pickle.dumps({name: make_run(name).run_steps(0, 5).optimizer for name in tested_optimizers})
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        arrived = pickle.loads(pool.submit(continue_in_process, pickled).result())
    for name in tested_optimizers:
        continued = [torch.from_numpy(a) for a in arrived[name]]
        uninterrupted = [p.detach() for p in make_run(name).run_steps().params]
        assert_equal(f"{name} in another process", continued, uninterrupted)


def test_different_optimizers_may_step_in_threads_at_the_same_time(tested_optimizers, make_run):
    keys = [(name, engine) for name, subject in tested_optimizers.items() for engine in subject.engines or (None,)]
    expected = {key: make_run(key[0], engine=key[1]).run_steps().params for key in keys}
    cached = (trace.rule_signature, trace.trace, foreach.source, foreach._compile_step, cpu_kernel.compiled_kernel)
    for function in cached:
        function.cache_clear()  # so that the threads fill the caches at the same time
    jobs = keys * 3
    barrier = threading.Barrier(8)

    def work(share: int) -> list[tuple[Any, list[Tensor]]]:
        barrier.wait()
        return [(key, make_run(key[0], engine=key[1]).run_steps().params) for key in jobs[share::8]]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        done = [pair for part in pool.map(work, range(8)) for pair in part]
    assert len(done) == len(jobs)
    for key, params in done:
        assert_equal(f"{key} in a thread", params, expected[key])
