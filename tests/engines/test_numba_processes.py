"""Engine `numba` in other processes, its import, a missing Numba, and training with Lightning."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import optplug
from optplug.engines import threads
from optplug.testing.checks import assert_close, assert_equal
from optplug.testing.trajectory import seeded_randn

pytest.importorskip("numba", reason="engine numba is in the extra optplug[cpu]")
from optplug.engines.cpu_kernel import CHUNK_SIZE

Adam, SGD = (optplug.get_optimizer(name) for name in ("adam", "sgd"))


def engines_of(optimizer: Any) -> set[str]:
    return {report.engine for report in optimizer.engine_report()}


# ------------------------------------------------------------------------------------------ processes


def run_in_fork(act: Callable[[], bytes]) -> bytes:
    """Return the result of `act` in a forked child process. The child is killed if it hangs."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        try:
            result = act()
            while result:
                result = result[os.write(write, result) :]
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        received = pipe.read()
    os.waitpid(child, 0)
    return received


ignore_fork_warning = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class ThreadedOptimizer:
    """An optimizer whose engine uses several threads, while torch uses one.

    torch's own threads would hang after a fork, so the tensors are too small for them.
    """

    def __init__(self) -> None:
        self.params = [seeded_randn((CHUNK_SIZE,), i).float().requires_grad_() for i in range(4)]
        self.optimizer = Adam(self.params, lr=0.1, engine="numba")
        for i, p in enumerate(self.params):
            p.grad = seeded_randn((CHUNK_SIZE,), 10 + i).float()

    def step(self) -> bytes:
        self.optimizer.step()
        return b"".join(p.detach().numpy().tobytes() for p in self.params)


@ignore_fork_warning
def test_forked_child_steps_like_its_parent(three_threads):
    once = ThreadedOptimizer().step()
    assert run_in_fork(ThreadedOptimizer().step) == once, "fork before the first step"
    optimizer = ThreadedOptimizer()
    optimizer.step()
    in_children = [run_in_fork(optimizer.step) for _ in range(2)]
    assert in_children == [optimizer.step()] * 2
    assert run_in_fork(lambda: run_in_fork(optimizer.step)) == optimizer.step(), "a child of the child"


@ignore_fork_warning
def test_child_forked_while_threads_are_active_steps(three_threads):
    stop, optimizer = threading.Event(), ThreadedOptimizer()
    expected = ThreadedOptimizer().step()

    def busy() -> None:
        while not stop.is_set():
            optimizer.step()

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        fresh = ThreadedOptimizer()
        assert [run_in_fork(fresh.step) for _ in range(5)] == [expected] * 5
    finally:
        stop.set()
        thread.join()


@ignore_fork_warning
def test_forked_child_starts_its_own_threads(three_threads):
    ThreadedOptimizer().step()  # starts the threads of the parent

    def synchronize() -> bytes:
        gate = threading.Barrier(2)
        threads.run_in_threads(lambda: gate.wait(10), 1)
        return b"met"

    assert run_in_fork(synchronize) == b"met"


class OptimizerDataset(Dataset):
    """Item i is the parameter after i + 1 steps, computed in the process that requests it."""

    def __init__(self) -> None:
        self.optimizer = ThreadedOptimizer()

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        torch.set_num_threads(2)  # a worker starts with one thread
        self.optimizer.step()
        return self.optimizer.params[0].detach().clone()


@ignore_fork_warning
def test_optimizer_steps_in_forked_data_loader_worker(three_threads):
    parent = OptimizerDataset()
    parent[0]
    loader = DataLoader(parent, batch_size=None, num_workers=1, multiprocessing_context="fork")
    there = list(loader)
    assert_equal("in a worker and here", there, [parent[0], parent[1]])


@ignore_fork_warning
@pytest.mark.timeout(90)
def test_two_processes_forked_after_a_step_train_equally(
    scripted_module, trainer, tmp_path, monkeypatch, three_threads
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ThreadedOptimizer().step()  # loads the compiler and starts threads before the fork

    class SavesParametersPerRank(scripted_module):
        engine = "numba"

        def configure_optimizers(self):
            return Adam(self.parameters(), lr=0.1, engine=self.engine)

        def on_train_end(self):
            torch.save([p.detach() for p in self.parameters()], tmp_path / f"{self.engine}{self.global_rank}")

    results = {}
    for engine in ("numba", "loop"):
        SavesParametersPerRank.engine = engine
        trainer(devices=2, strategy="ddp_fork", use_distributed_sampler=False).fit(SavesParametersPerRank())
        results[engine] = [torch.load(tmp_path / f"{engine}{rank}") for rank in range(2)]
    assert_equal("the ranks", *results["numba"])
    assert_close("numba and loop", results["numba"][0], results["loop"][0], 1.0, 1e-6)


def run_python(code: str) -> str:
    """The output of a new interpreter."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


STEP_CODE = """
import sys, torch, optplug
p = torch.ones(3, requires_grad=True)
def step(**options):
    optimizer = optplug.create_optimizer("adam", [p], **options)
    p.grad = torch.ones(3)
    optimizer.step()
    return str(optimizer.engine_report()[0])
"""


def test_numba_is_imported_on_first_use_without_its_threading_layers():
    output = run_python(
        STEP_CODE + "loaded = lambda: 'numba' in sys.modules or 'llvmlite' in sys.modules\n"
        "optplug.list_optimizers(), optplug.list_schedulers()\n"
        "step(engine='loop'), step(engine='foreach'), step(foreach=True), step(foreach=False)\n"
        "print(loaded())\n"
        "p = torch.ones(10 ** 6, requires_grad=True); p.grad = torch.ones_like(p)\n"
        "torch.set_num_threads(3)\n"
        "optplug.create_optimizer('adam', [p]).step()\n"
        "print(loaded(), 'numba.np.ufunc.parallel' in sys.modules and sys.modules['numba.np.ufunc.parallel']."
        "_is_initialized, sorted(m for m in sys.modules if 'ufunc' in m and 'pool' in m))"
    )
    assert output.split("\n")[:2] == ["False", "True False []"]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("sys.modules['numba'] = None", "numba is not installed (pip install 'optplug[cpu]')"),
        (
            "import importlib.abc\n"
            "class Broken(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path, target=None):\n"
            "        if name == 'numba': raise ImportError('Numba needs another NumPy')\n"
            "sys.meta_path.insert(0, Broken())",
            "numba cannot be imported: Numba needs another NumPy",
        ),
        (
            "import numba.core.codegen; del numba.core.codegen.JITCPUCodegen",
            "this version of numba is not supported: ImportError: cannot import name 'JITCPUCodegen'",
        ),
    ],
    ids=["missing", "broken", "incompatible version"],
)
def test_auto_falls_back_to_foreach_without_numba(block, reason):
    output = run_python(
        STEP_CODE + block + "\nfor _ in range(2): print(step())\n"
        "try: step(engine='numba')\nexcept optplug.errors.EngineError as e: print(e)\nprint(step(engine='foreach'))"
    ).splitlines()
    assert output[0] == output[1]
    assert output[0].startswith(f"group 0: foreach (auto: {reason}")
    assert output[0].endswith(" bytes each")
    assert output[2].startswith(f"engine 'numba' cannot take a parameter: {reason}")
    assert output[2].endswith("; use engine='auto'")
    assert "foreach" in output[3]


# ------------------------------------------------------------------------------------------ Lightning


def module_with_late_group(scripted_module: type, engine: str) -> Any:
    class LateGroup(scripted_module):
        optimizer: Any = None

        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Linear(4, 1)

        def loss(self, batch):
            x, y = batch
            return nn.functional.mse_loss(self.layer(x) + self.more(x), y)

        def configure_optimizers(self):
            self.optimizer = self.optimizer or Adam(self.layer.parameters(), lr=0.1, engine=engine)
            return self.optimizer

        def on_train_epoch_start(self):
            if len(self.optimizer.param_groups) == 1 and self.current_epoch == 1:
                self.optimizers().add_param_group({"params": list(self.more.parameters()), "lr": 0.05})

    return LateGroup()


def test_group_added_through_lightning_wrapper_and_second_fit(scripted_module, trainer):
    results = []
    for engine in ("numba", "loop"):
        module = module_with_late_group(scripted_module, engine)
        started = [p.detach().clone() for p in module.parameters()]
        trainer().fit(module)
        trainer().fit(module)
        assert [len(group["params"]) for group in module.optimizer.param_groups] == [2, 2]
        assert engines_of(module.optimizer) == {engine}
        assert all(not torch.equal(p, q) for p, q in zip(module.parameters(), started, strict=True))
        results.append(list(module.parameters()))
    assert_close("numba and loop", *results, 1.0, 1e-5)


@pytest.mark.parametrize("clip", ["norm", "value"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_lightning_gradient_clipping_and_scaling_under_auto(pl, scripted_module, trainer, precision, clip):
    """Lightning accepts 16-mixed on the CPU only as a plugin."""

    class Clipped(scripted_module):
        def configure_optimizers(self):
            return SGD(self.parameters(), lr=1.0)

    module = Clipped()
    before = [p.detach().clone() for p in module.parameters()]
    arguments: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        arguments = {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}
    run = trainer(max_steps=1, gradient_clip_val=0.01, gradient_clip_algorithm=clip, **arguments)
    run.fit(module)
    moved = torch.cat([(p - q).detach().flatten() for p, q in zip(module.parameters(), before, strict=True)])
    size = moved.norm() if clip == "norm" else moved.abs().max()
    assert float(size) == pytest.approx(0.01, rel=1e-3)
    assert engines_of(run.optimizers[0]) == {"numba"}
    assert not getattr(run.optimizers[0], "_step_supports_amp_scaling", False)
