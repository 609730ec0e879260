"""Engine `numba` between steps: what others do to tensors and groups, forks, Lightning, and where Numba is missing."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import optplug
from optplug import RuleOptimizer
from optplug.engines import threads
from optplug.testing.checks import close, distance, equal
from optplug.testing.subjects import noise

pytest.importorskip("numba", reason="engine numba is in the extra optplug[cpu]")
from optplug.engines import numba
from optplug.engines.numba import CHUNK

Adam, SGD = (optplug.get_optimizer(name) for name in ("adam", "sgd"))


@pytest.fixture
def eager_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Helper threads from two blocks on rather than from sixty-four, and three of them."""
    monkeypatch.setattr(numba, "WORTH_A_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def moderate(shape: tuple[int, ...], seed: int) -> Tensor:
    """Between 0.5 and 1.5, of either sign."""
    t = noise(shape, seed)
    return t.sign() * (0.5 + t.abs() % 1)


def states(optimizer: RuleOptimizer, p: Tensor) -> dict[str, Tensor]:
    """The element-wise states of a parameter."""
    kept = optimizer.state.get(p, {})
    return {s.name: kept[s.name] for s in optimizer.states if not s.scalar and s.name in kept}


def engines_of(optimizer: Any) -> set[str]:
    return {report.engine for report in optimizer.engine_report()}


# ------------------------------------------------------------------------------------------ behind its back


class Training:
    """Parameters that somebody meddles with while they are trained, alike on any engine."""

    def __init__(self, engine: str, dtype: torch.dtype = torch.float64) -> None:
        self.params = [moderate(s, i).to(dtype).requires_grad_() for i, s in enumerate(((4, 4), (5,), (2, 3, 4, 4)))]
        self.optimizer = Adam(self.params, lr=0.1, amsgrad=True, weight_decay=0.1, engine=engine)
        self.past: list[Any] = []  # what stays alive keeps its address
        self.absent: set[int] = set()

    def go(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            for i, p in enumerate(self.params):
                g = torch.empty_like(p).copy_(moderate(tuple(p.shape), 10 * step + i))
                if step % 2 and p.grad is not None and p.grad.dtype == p.dtype and p.grad.stride() == p.stride():
                    p.grad.copy_(g)  # where it was
                else:
                    self.past.append(p.grad)
                    p.grad = g.detach()
                if i in self.absent:
                    p.grad = None
            self.optimizer.step()

    def kept(self) -> Iterator[dict[str, Tensor]]:
        for p in self.params:
            self.past.append(dict(self.optimizer.state[p]))
            yield self.optimizer.state[p]

    def everything(self) -> list[Tensor]:
        return [
            t.detach()
            for p in self.params
            for t in (p, *(v for _, v in sorted(self.optimizer.state.get(p, {}).items())))
        ]


def on_data(change: Callable[[Tensor], Tensor], *which: int) -> Callable[[Training], None]:
    def meddle(t: Training) -> None:
        for i in which or range(3):
            t.past.append(t.params[i].data)
            t.params[i].data = change(t.params[i].data)
            t.params[i].grad = None

    return meddle


def on_states(change: Callable[[dict[str, Tensor], str], Any]) -> Callable[[Training], None]:
    def meddle(t: Training) -> None:
        for state in t.kept():
            for key in list(state):
                change(state, key)

    return meddle


def exchanged(t: Training) -> None:
    a, b = t.params[0], moderate((4, 4), 7).requires_grad_()
    t.optimizer.param_groups[0]["params"][0] = t.params[0] = b
    t.optimizer.state[b] = t.optimizer.state.pop(a)
    t.past.append(a)


def copied(duplicate: Callable[[Any], Any]) -> Callable[[Training], None]:
    def meddle(t: Training) -> None:
        t.past.append((t.optimizer, t.params))
        t.optimizer, t.params = duplicate((t.optimizer, t.params))

    return meddle


def allocated_anew(t: Training) -> None:
    """As FSDP frees and fills parameters."""
    for p in t.params:
        value, storage = p.detach().clone(), p.untyped_storage()
        size = storage.nbytes()
        storage.resize_(0)
        t.past.append(torch.ones(size))
        storage.resize_(size)
        p.data.copy_(value)


def swapped(t: Training) -> None:
    one, other = (t.optimizer.state[t.params[0]][key] for key in ("exp_avg_sq", "max_exp_avg_sq"))
    one.data, other.data = other.data, one.data


def grown(t: Training) -> None:
    t.params.append(moderate((4, 4), 9).requires_grad_())
    t.optimizer.param_groups[0]["params"].append(t.params[-1])


def regrouped(t: Training) -> None:
    group = t.optimizer.param_groups[0]
    moved = group["params"].pop(1)
    t.optimizer.add_param_group({"params": [moved, *(new := [moderate((7,), 3).requires_grad_()])], "lr": 0.05})
    t.params += new


MEDDLING: dict[str, Callable[[Training], Any]] = {
    "nothing": lambda t: None,
    "other data": on_data(Tensor.clone),
    "other data for one": on_data(Tensor.clone, 1),
    "shared memory": on_data(Tensor.share_memory_),
    "transposed where it was": on_data(Tensor.t, 0),
    "parts of one storage": on_data(lambda t: torch.cat([t.flatten(), t.flatten()])[: t.numel()].view(t.shape)),
    "strided": on_data(lambda t: torch.stack([t, t], -1)[..., 0], 0),
    "channels_last": on_data(lambda t: t.to(memory_format=torch.channels_last), 2),
    "set_": lambda t: t.params[1].data.set_(t.params[1].detach().clone()),
    "storage freed and filled": allocated_anew,
    "half": on_data(Tensor.half),
    "half for one": on_data(Tensor.half, 0),
    "other states": on_states(lambda state, key: state.update({key: state[key].clone()})),
    "other states' data": on_states(lambda state, key: setattr(state[key], "data", state[key].data.clone())),
    "states in float32": on_states(lambda state, key: state.update({key: state[key].float()})),
    "one parameter's states in float32": lambda t: t.optimizer.state[t.params[1]].update(
        {key: t.optimizer.state[t.params[1]][key].float() for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")}
    ),
    "one state in float32": lambda t: t.optimizer.state[t.params[2]].update(
        exp_avg=t.optimizer.state[t.params[2]]["exp_avg"].float()
    ),
    "other dictionaries": lambda t: [t.optimizer.state.update({p: dict(t.optimizer.state[p])}) for p in t.params],
    "a state of another order": lambda t: t.optimizer.state[t.params[0]].update(
        exp_avg=t.optimizer.state[t.params[0]]["exp_avg"].t().contiguous().t()
    ),
    "swapped states": swapped,
    "a step count": lambda t: t.optimizer.state[t.params[1]].update(step=torch.tensor(40.0)),
    "no state": lambda t: t.optimizer.state.pop(t.params[1]),
    "states in shared memory": lambda t: t.optimizer.share_memory(),
    "loaded": lambda t: t.optimizer.load_state_dict(copy.deepcopy(t.optimizer.state_dict())),
    "deepcopy": copied(copy.deepcopy),
    "pickle": copied(lambda pair: pickle.loads(pickle.dumps(pair))),
    "another parameter": exchanged,
    "reversed": lambda t: t.optimizer.param_groups[0]["params"].reverse(),
    "another list": lambda t: t.optimizer.param_groups[0].update(params=[*t.params]),
    "one parameter less": lambda t: t.optimizer.param_groups[0]["params"].pop(1),
    "one parameter more": grown,
    "another group": regrouped,
    "no gradient": lambda t: t.absent.add(1),
    "other numbers": lambda t: t.optimizer.param_groups[0].update(lr=0.02, betas=(0.5, 0.75), eps=0.1),
    "another rule": lambda t: t.optimizer.param_groups[0].update(amsgrad=False, maximize=True, weight_decay=0.0),
}


@pytest.mark.parametrize("meddling", MEDDLING)
def test_what_is_done_between_steps_counts_as_in_the_loop(meddling):
    ends = []
    for engine in ("auto", "loop"):
        t = Training(engine)
        t.go(0, 3)
        assert engines_of(t.optimizer) == {"numba" if engine == "auto" else "loop"}
        MEDDLING[meddling](t)
        t.go(3, 7)
        assert engine == "loop" or "numba" in engines_of(t.optimizer)
        ends.append(t.everything())
    assert [a.dtype for a in ends[0]] == [b.dtype for b in ends[1]]
    for a, b in zip(*ends, strict=True):
        limit = {torch.float16: 3e-2, torch.float32: 1e-5}.get(a.dtype, 1e-11 if meddling[:4] != "half" else 3e-2)
        limit = 1e-5 if "float32" in meddling else limit
        assert distance([a], [b]) <= limit * max(1.0, float(b.abs().max()))


def test_parameters_may_come_to_overlap():
    ends = []
    for engine in ("auto", "loop"):
        t = Training(engine)
        t.go(0, 3)
        t.params[1].data = t.params[0].data.flatten()[3:8]  # of the shape and strides it had
        t.go(3, 5)
        if engine == "auto":
            assert {r.engine: r.tensors for r in t.optimizer.engine_report()} == {"loop": 2, "numba": 1}
        ends.append(t.everything())
    close("auto and loop", *ends, 1.0, 1e-12)


def test_the_same_address_may_come_to_hold_another_dtype():
    ends = []
    for engine in ("numba", "loop"):
        t = Training(engine, torch.float16)
        t.go(0, 3)
        for p in t.params:
            bits, p.data = p.data.clone(), p.data.view(torch.bfloat16)
            p.data.copy_(bits)
            p.grad = None
        t.go(3, 6)
        ends.append(t.params)
    assert distance(*ends) <= 0.05


def test_a_module_is_trained_on_through_conversions():
    ends = []
    for engine in ("auto", "loop"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 2)).double()
        optimizer = Adam(model.parameters(), lr=0.05, engine=engine)
        for change in ({}, {"memory_format": torch.channels_last}, {"dtype": torch.float32}, {"dtype": torch.float64}):
            model.to(**change)
            dtype = next(model.parameters()).dtype
            for step in range(2):
                optimizer.zero_grad()
                model(moderate((5, 2, 3, 3), step).to(dtype)).square().sum().backward()
                optimizer.step()
        ends.append(list(model.parameters()))
    assert distance(*ends) <= 1e-5


def unfrozen(scripted: type, engine: str) -> Any:
    class Unfreezing(scripted):
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

    return Unfreezing()


def test_a_group_added_through_lightnings_wrapper_and_a_second_fit_with_the_same_optimizer(scripted, trainer):
    ends = []
    for engine in ("numba", "loop"):
        module = unfrozen(scripted, engine)
        started = [p.detach().clone() for p in module.parameters()]
        trainer().fit(module)
        trainer().fit(module)
        assert [len(group["params"]) for group in module.optimizer.param_groups] == [2, 2]
        assert engines_of(module.optimizer) == {engine}
        assert all(not torch.equal(p, q) for p, q in zip(module.parameters(), started, strict=True))
        ends.append(list(module.parameters()))
    close("numba and loop", *ends, 1.0, 1e-5)


def test_parameters_that_started_at_different_steps_share_a_bucket(eager_threads):
    ends = []
    for engine in ("numba", "loop"):
        params = [moderate(s, i).requires_grad_() for i, s in enumerate(((5,), (2 * CHUNK + 1,), (3, 4), (), (CHUNK,)))]
        optimizer = Adam([{"params": params[:4]}, {"params": params[4:], "lr": 0.02}], lr=0.1, engine=engine)
        for step in range(12):
            for i, p in enumerate(params):
                late = step < 2 * i or (i == 2 and step % 3 == 0)
                p.grad = None if late else moderate(tuple(p.shape), 10 * step + i)
            optimizer.step()
        assert [optimizer.state[p]["step"].item() for p in params] == [12, 10, 6, 6, 4]
        assert [report.tensors for report in optimizer.engine_report()] == [4, 1]
        ends.append(params)
    close("numba and loop", *ends, 1.0, 1e-13)


def test_sparse_gradients_of_parameters_at_different_steps():
    ends = []
    for engine in ("numba", "loop"):
        params = [moderate((6, 3), i).requires_grad_() for i in range(3)]
        optimizer = optplug.get_optimizer("sparse_adam")(params, lr=0.1, engine=engine)
        for step in range(6):
            for i, p in enumerate(params):
                g = moderate((6, 3), 10 * step + i) * (torch.arange(6) % (i + 2) == 0)[:, None]
                p.grad = None if step < i else g.to_sparse(1)
            optimizer.step()
        ends.append(params)
    close("numba and loop", *ends, 1.0, 1e-13)


def test_an_optimizer_that_has_stepped_keeps_nothing_alive():
    p = torch.ones(5, requires_grad=True)
    optimizer = Adam([p], engine="numba")
    for _ in range(3):
        p.grad = torch.ones(5)
        optimizer.step()
    gradient, state = weakref.ref(p.grad), weakref.ref(optimizer.state[p]["exp_avg"])
    p.grad = None
    del optimizer.state[p]
    assert (gradient(), state()) == (None, None)


# ------------------------------------------------------------------------------------------ autograd's view of it


@pytest.mark.parametrize("sparse", [False, True])
def test_versions_rise_of_what_was_written_and_of_nothing_else(sparse):
    p = moderate((5, 3), 1).requires_grad_()
    optimizer = optplug.get_optimizer("adagrad")([p], lr_decay=0.1, engine="numba")
    for _ in range(3):
        g = torch.ones(5, 3, dtype=torch.float64)
        p.grad = g.to_sparse(1) if sparse else g
        watched = [p, *states(optimizer, p).values()]
        before, of_g = [t._version for t in watched], p.grad._version
        optimizer.step()
        assert all(t._version > version for t, version in zip(watched, before, strict=True))
        assert p.grad._version == of_g
    assert len(watched) == 2
    momentum = SGD([p], momentum=0.9, lr=0.0, engine="numba")
    p.grad = torch.ones_like(p)
    momentum.step()
    assert momentum.state[p]["momentum_buffer"]._version > 0


def test_what_was_saved_for_backward_is_noticed_to_be_stale():
    p = moderate((5,), 1).requires_grad_()
    optimizer = SGD([p], lr=0.1, engine="numba")
    loss = (p**2).sum()
    p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ------------------------------------------------------------------------------------------ processes


def in_a_fork(act: Callable[[], bytes]) -> bytes:
    """What a forked child returns; the child is killed when it hangs."""
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


forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class Stepping:
    """An optimizer with work for threads, whose tensors are too small for torch's own: those hang after a fork."""

    def __init__(self) -> None:
        self.params = [moderate((CHUNK,), i).float().requires_grad_() for i in range(4)]
        self.optimizer = Adam(self.params, lr=0.1, engine="numba")
        for i, p in enumerate(self.params):
            p.grad = moderate((CHUNK,), 10 + i).float()

    def step(self) -> bytes:
        self.optimizer.step()
        return b"".join(p.detach().numpy().tobytes() for p in self.params)


@forks
def test_a_forked_child_steps_at_once_and_like_its_parent(eager_threads):
    once = Stepping().step()
    assert in_a_fork(Stepping().step) == once, "before this optimizer's first step"
    made = Stepping()
    made.step()
    there = [in_a_fork(made.step) for _ in range(2)]
    assert there == [made.step()] * 2
    assert in_a_fork(lambda: in_a_fork(made.step)) == made.step(), "a child's child"


@forks
def test_a_child_forked_while_threads_work_steps(eager_threads):
    stop, made = threading.Event(), Stepping()
    expected = Stepping().step()

    def busy() -> None:
        while not stop.is_set():
            made.step()

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        fresh = Stepping()
        assert [in_a_fork(fresh.step) for _ in range(5)] == [expected] * 5
    finally:
        stop.set()
        thread.join()


@forks
def test_a_forked_child_has_threads_of_its_own(eager_threads):
    Stepping().step()  # the parent's are there

    def meet() -> bytes:
        gate = threading.Barrier(2)
        threads.together(lambda: gate.wait(10), 1)
        return b"met"

    assert in_a_fork(meet) == b"met"


class Steps(Dataset):
    """Its items are parameters after one step, two and so on, made where they are asked for."""

    def __init__(self) -> None:
        self.made = Stepping()

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        torch.set_num_threads(2)  # a worker starts with one
        self.made.step()
        return self.made.params[0].detach().clone()


@forks
def test_an_optimizer_steps_in_a_forked_worker_of_a_data_loader(eager_threads):
    parent = Steps()
    parent[0]
    loader = DataLoader(parent, batch_size=None, num_workers=1, multiprocessing_context="fork")
    there = list(loader)
    equal("in a worker and here", there, [parent[0], parent[1]])


@forks
@pytest.mark.timeout(90)
def test_two_processes_forked_after_a_step_train_alike(scripted, trainer, tmp_path, monkeypatch, eager_threads):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Stepping().step()  # the compiler and the threads are there before the fork

    class Ranked(scripted):
        engine = "numba"

        def configure_optimizers(self):
            return Adam(self.parameters(), lr=0.1, engine=self.engine)

        def on_train_end(self):
            torch.save([p.detach() for p in self.parameters()], tmp_path / f"{self.engine}{self.global_rank}")

    ends = {}
    for engine in ("numba", "loop"):
        Ranked.engine = engine
        trainer(devices=2, strategy="ddp_fork", use_distributed_sampler=False).fit(Ranked())
        ends[engine] = [torch.load(tmp_path / f"{engine}{rank}") for rank in range(2)]
    equal("the ranks", *ends["numba"])
    close("numba and loop", ends["numba"][0], ends["loop"][0], 1.0, 1e-6)


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


USE = """
import sys, torch, optplug
p = torch.ones(3, requires_grad=True)
def step(**options):
    optimizer = optplug.create_optimizer("adam", [p], **options)
    p.grad = torch.ones(3)
    optimizer.step()
    return str(optimizer.engine_report()[0])
"""


def test_numba_is_imported_where_it_is_used_and_none_of_its_threading_layers():
    told = python(
        USE + "loaded = lambda: 'numba' in sys.modules or 'llvmlite' in sys.modules\n"
        "optplug.list_optimizers(), optplug.list_schedulers()\n"
        "step(engine='loop'), step(engine='foreach'), step(foreach=True), step(foreach=False)\n"
        "print(loaded())\n"
        "p = torch.ones(10 ** 6, requires_grad=True); p.grad = torch.ones_like(p)\n"
        "torch.set_num_threads(3)\n"
        "optplug.create_optimizer('adam', [p]).step()\n"
        "print(loaded(), 'numba.np.ufunc.parallel' in sys.modules and sys.modules['numba.np.ufunc.parallel']."
        "_is_initialized, sorted(m for m in sys.modules if 'ufunc' in m and 'pool' in m))"
    )
    assert told.split("\n")[:2] == ["False", "True False []"]


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
            "this version of numba does not serve: ImportError: cannot import name 'JITCPUCodegen'",
        ),
    ],
    ids=["absent", "broken", "another version"],
)
def test_without_numba_auto_takes_foreach_and_says_why(block, reason):
    told = python(
        USE + block + "\nfor _ in range(2): print(step())\n"
        "try: step(engine='numba')\nexcept optplug.errors.EngineError as e: print(e)\nprint(step(engine='foreach'))"
    ).splitlines()
    assert told[0] == told[1]
    assert told[0].startswith(f"group 0: foreach (auto: {reason}")
    assert told[0].endswith(" bytes each")
    assert told[2].startswith(f"engine 'numba' cannot take a parameter: {reason}")
    assert told[2].endswith("; use engine='auto'")
    assert "foreach" in told[3]


# ------------------------------------------------------------------------------------------ scaling and clipping


@pytest.mark.parametrize("clip", ["norm", "value"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_lightning_clips_and_scales_under_auto(pl, scripted, trainer, precision, clip):
    """Lightning takes 16-mixed for the CPU only as a plugin."""

    class Clipped(scripted):
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
