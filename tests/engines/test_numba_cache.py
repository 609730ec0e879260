"""Engine `numba`: what it caches between steps is invalidated when tensors, states or groups change."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optplug
from optplug.testing.checks import assert_close, max_difference
from optplug.testing.trajectory import seeded_randn

pytest.importorskip("numba", reason="engine numba is in the extra optplug[cpu]")
from optplug.engines.cpu_kernel import CHUNK_SIZE

Adam, SGD = (optplug.get_optimizer(name) for name in ("adam", "sgd"))


def away_from_zero(shape: tuple[int, ...], seed: int) -> Tensor:
    """Random values of either sign, with magnitudes between 0.5 and 1.5."""
    t = seeded_randn(shape, seed)
    return t.sign() * (0.5 + t.abs() % 1)


def engines_of(optimizer: Any) -> set[str]:
    return {report.engine for report in optimizer.engine_report()}


# ------------------------------------------------------------------------------------------ changes between steps


class Training:
    """Parameters and an optimizer that are changed between steps, in the same way for any engine."""

    def __init__(self, engine: str, dtype: torch.dtype = torch.float64) -> None:
        self.params = [
            away_from_zero(s, i).to(dtype).requires_grad_() for i, s in enumerate(((4, 4), (5,), (2, 3, 4, 4)))
        ]
        self.optimizer = Adam(self.params, lr=0.1, amsgrad=True, weight_decay=0.1, engine=engine)
        self.keep_alive: list[Any] = []  # so that addresses are not reused
        self.without_gradient: set[int] = set()

    def run_steps(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            for i, p in enumerate(self.params):
                g = torch.empty_like(p).copy_(away_from_zero(tuple(p.shape), 10 * step + i))
                if step % 2 and p.grad is not None and p.grad.dtype == p.dtype and p.grad.stride() == p.stride():
                    p.grad.copy_(g)  # the gradient keeps its address
                else:
                    self.keep_alive.append(p.grad)
                    p.grad = g.detach()
                if i in self.without_gradient:
                    p.grad = None
            self.optimizer.step()

    def parameter_states(self) -> Iterator[dict[str, Tensor]]:
        for p in self.params:
            self.keep_alive.append(dict(self.optimizer.state[p]))
            yield self.optimizer.state[p]

    def parameters_and_states(self) -> list[Tensor]:
        return [
            t.detach()
            for p in self.params
            for t in (p, *(v for _, v in sorted(self.optimizer.state.get(p, {}).items())))
        ]


def change_data(change: Callable[[Tensor], Tensor], *which: int) -> Callable[[Training], None]:
    def apply(t: Training) -> None:
        for i in which or range(3):
            t.keep_alive.append(t.params[i].data)
            t.params[i].data = change(t.params[i].data)
            t.params[i].grad = None

    return apply


def change_states(change: Callable[[dict[str, Tensor], str], Any]) -> Callable[[Training], None]:
    def apply(t: Training) -> None:
        for state in t.parameter_states():
            for key in list(state):
                change(state, key)

    return apply


def replace_parameter(t: Training) -> None:
    a, b = t.params[0], away_from_zero((4, 4), 7).requires_grad_()
    t.optimizer.param_groups[0]["params"][0] = t.params[0] = b
    t.optimizer.state[b] = t.optimizer.state.pop(a)
    t.keep_alive.append(a)


def duplicate_with(duplicate: Callable[[Any], Any]) -> Callable[[Training], None]:
    def apply(t: Training) -> None:
        t.keep_alive.append((t.optimizer, t.params))
        t.optimizer, t.params = duplicate((t.optimizer, t.params))

    return apply


def reallocate_storage(t: Training) -> None:
    """Free and refill the storage of parameters, as FSDP does."""
    for p in t.params:
        value, storage = p.detach().clone(), p.untyped_storage()
        size = storage.nbytes()
        storage.resize_(0)
        t.keep_alive.append(torch.ones(size))
        storage.resize_(size)
        p.data.copy_(value)


def swap_states(t: Training) -> None:
    one, other = (t.optimizer.state[t.params[0]][key] for key in ("exp_avg_sq", "max_exp_avg_sq"))
    one.data, other.data = other.data, one.data


def append_parameter(t: Training) -> None:
    t.params.append(away_from_zero((4, 4), 9).requires_grad_())
    t.optimizer.param_groups[0]["params"].append(t.params[-1])


def move_to_new_group(t: Training) -> None:
    group = t.optimizer.param_groups[0]
    moved = group["params"].pop(1)
    t.optimizer.add_param_group({"params": [moved, *(new := [away_from_zero((7,), 3).requires_grad_()])], "lr": 0.05})
    t.params += new


CHANGES: dict[str, Callable[[Training], Any]] = {
    "no change": lambda t: None,
    "new data": change_data(Tensor.clone),
    "new data of one parameter": change_data(Tensor.clone, 1),
    "shared memory": change_data(Tensor.share_memory_),
    "transposed in place": change_data(Tensor.t, 0),
    "part of a larger storage": change_data(lambda t: torch.cat([t.flatten(), t.flatten()])[: t.numel()].view(t.shape)),
    "strided": change_data(lambda t: torch.stack([t, t], -1)[..., 0], 0),
    "channels_last": change_data(lambda t: t.to(memory_format=torch.channels_last), 2),
    "set_": lambda t: t.params[1].data.set_(t.params[1].detach().clone()),
    "reallocated storage": reallocate_storage,
    "half": change_data(Tensor.half),
    "half of one parameter": change_data(Tensor.half, 0),
    "new states": change_states(lambda state, key: state.update({key: state[key].clone()})),
    "new data of states": change_states(lambda state, key: setattr(state[key], "data", state[key].data.clone())),
    "states in float32": change_states(lambda state, key: state.update({key: state[key].float()})),
    "one parameter's states in float32": lambda t: t.optimizer.state[t.params[1]].update(
        {key: t.optimizer.state[t.params[1]][key].float() for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")}
    ),
    "one state in float32": lambda t: t.optimizer.state[t.params[2]].update(
        exp_avg=t.optimizer.state[t.params[2]]["exp_avg"].float()
    ),
    "new state dictionaries": lambda t: [t.optimizer.state.update({p: dict(t.optimizer.state[p])}) for p in t.params],
    "state with another memory order": lambda t: t.optimizer.state[t.params[0]].update(
        exp_avg=t.optimizer.state[t.params[0]]["exp_avg"].t().contiguous().t()
    ),
    "swapped states": swap_states,
    "changed step count": lambda t: t.optimizer.state[t.params[1]].update(step=torch.tensor(40.0)),
    "removed state": lambda t: t.optimizer.state.pop(t.params[1]),
    "states in shared memory": lambda t: t.optimizer.share_memory(),
    "loaded state dict": lambda t: t.optimizer.load_state_dict(copy.deepcopy(t.optimizer.state_dict())),
    "deepcopy": duplicate_with(copy.deepcopy),
    "pickle": duplicate_with(lambda pair: pickle.loads(pickle.dumps(pair))),
    "replaced parameter": replace_parameter,
    "reversed parameters": lambda t: t.optimizer.param_groups[0]["params"].reverse(),
    "new parameter list": lambda t: t.optimizer.param_groups[0].update(params=[*t.params]),
    "removed parameter": lambda t: t.optimizer.param_groups[0]["params"].pop(1),
    "appended parameter": append_parameter,
    "new parameter group": move_to_new_group,
    "missing gradient": lambda t: t.without_gradient.add(1),
    "changed hyperparameters": lambda t: t.optimizer.param_groups[0].update(lr=0.02, betas=(0.5, 0.75), eps=0.1),
    "changed rule variant": lambda t: t.optimizer.param_groups[0].update(
        amsgrad=False, maximize=True, weight_decay=0.0
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_between_steps_has_the_same_effect_as_in_loop(change):
    results = []
    for engine in ("auto", "loop"):
        t = Training(engine)
        t.run_steps(0, 3)
        assert engines_of(t.optimizer) == {"numba" if engine == "auto" else "loop"}
        CHANGES[change](t)
        t.run_steps(3, 7)
        assert engine == "loop" or "numba" in engines_of(t.optimizer)
        results.append(t.parameters_and_states())
    assert [a.dtype for a in results[0]] == [b.dtype for b in results[1]]
    for a, b in zip(*results, strict=True):
        limit = {torch.float16: 3e-2, torch.float32: 1e-5}.get(
            a.dtype, 1e-11 if not change.startswith("half") else 3e-2
        )
        limit = 1e-5 if "float32" in change else limit
        assert max_difference([a], [b]) <= limit * max(1.0, float(b.abs().max()))


def test_parameters_that_overlap_after_a_change_use_loop():
    results = []
    for engine in ("auto", "loop"):
        t = Training(engine)
        t.run_steps(0, 3)
        t.params[1].data = t.params[0].data.flatten()[3:8]  # same shape and strides as before
        t.run_steps(3, 5)
        if engine == "auto":
            assert {r.engine: r.tensors for r in t.optimizer.engine_report()} == {"loop": 2, "numba": 1}
        results.append(t.parameters_and_states())
    assert_close("auto and loop", *results, 1.0, 1e-12)


def test_dtype_change_at_the_same_address_is_detected():
    results = []
    for engine in ("numba", "loop"):
        t = Training(engine, torch.float16)
        t.run_steps(0, 3)
        for p in t.params:
            bits, p.data = p.data.clone(), p.data.view(torch.bfloat16)
            p.data.copy_(bits)
            p.grad = None
        t.run_steps(3, 6)
        results.append(t.params)
    assert max_difference(*results) <= 0.05


def test_module_may_be_converted_between_steps():
    results = []
    for engine in ("auto", "loop"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 2)).double()
        optimizer = Adam(model.parameters(), lr=0.05, engine=engine)
        for change in ({}, {"memory_format": torch.channels_last}, {"dtype": torch.float32}, {"dtype": torch.float64}):
            model.to(**change)
            dtype = next(model.parameters()).dtype
            for step in range(2):
                optimizer.zero_grad()
                model(away_from_zero((5, 2, 3, 3), step).to(dtype)).square().sum().backward()
                optimizer.step()
        results.append(list(model.parameters()))
    assert max_difference(*results) <= 1e-5


def test_parameters_with_different_step_counts_share_a_bucket(three_threads):
    results = []
    for engine in ("numba", "loop"):
        params = [
            away_from_zero(s, i).requires_grad_()
            for i, s in enumerate(((5,), (2 * CHUNK_SIZE + 1,), (3, 4), (), (CHUNK_SIZE,)))
        ]
        optimizer = Adam([{"params": params[:4]}, {"params": params[4:], "lr": 0.02}], lr=0.1, engine=engine)
        for step in range(12):
            for i, p in enumerate(params):
                late = step < 2 * i or (i == 2 and step % 3 == 0)
                p.grad = None if late else away_from_zero(tuple(p.shape), 10 * step + i)
            optimizer.step()
        assert [optimizer.state[p]["step"].item() for p in params] == [12, 10, 6, 6, 4]
        assert [report.tensors for report in optimizer.engine_report()] == [4, 1]
        results.append(params)
    assert_close("numba and loop", *results, 1.0, 1e-13)


def test_step_counts_that_differ_temporarily_do_not_affect_later_steps():
    results = []
    for engine in ("numba", "loop"):
        t = Training(engine)
        for start, count in ((0, 0.0), (3, 40.0), (5, 5.0)):
            if start:
                t.optimizer.state[t.params[1]]["step"].fill_(count)
            t.run_steps(start, start + 2 + (start == 0))
        results.append(t.parameters_and_states())
    assert_close("numba and loop", *results, 1.0, 1e-11)


def test_sparse_gradients_of_parameters_with_different_step_counts():
    results = []
    for engine in ("numba", "loop"):
        params = [away_from_zero((6, 3), i).requires_grad_() for i in range(3)]
        optimizer = optplug.get_optimizer("sparse_adam")(params, lr=0.1, engine=engine)
        for step in range(6):
            for i, p in enumerate(params):
                g = away_from_zero((6, 3), 10 * step + i) * (torch.arange(6) % (i + 2) == 0)[:, None]
                p.grad = None if step < i else g.to_sparse(1)
            optimizer.step()
        results.append(params)
    assert_close("numba and loop", *results, 1.0, 1e-13)


def test_optimizer_keeps_no_reference_to_gradients_and_removed_states():
    p = torch.ones(5, requires_grad=True)
    optimizer = Adam([p], engine="numba")
    for _ in range(3):
        p.grad = torch.ones(5)
        optimizer.step()
    gradient, state = weakref.ref(p.grad), weakref.ref(optimizer.state[p]["exp_avg"])
    p.grad = None
    del optimizer.state[p]
    assert (gradient(), state()) == (None, None)


# ------------------------------------------------------------------------------------------ version counters


@pytest.mark.parametrize("sparse", [False, True])
def test_version_counters_increase_for_written_tensors_only(sparse):
    p = away_from_zero((5, 3), 1).requires_grad_()
    optimizer = optplug.get_optimizer("adagrad")([p], lr_decay=0.1, engine="numba")
    for _ in range(3):
        g = torch.ones(5, 3, dtype=torch.float64)
        p.grad = g.to_sparse(1) if sparse else g
        watched = [p, *([optimizer.state[p]["sum"]] if p in optimizer.state else [])]
        before, of_g = [t._version for t in watched], p.grad._version
        optimizer.step()
        assert all(t._version > version for t, version in zip(watched, before, strict=True))
        assert p.grad._version == of_g
    assert len(watched) == 2
    momentum = SGD([p], momentum=0.9, lr=0.0, engine="numba")
    p.grad = torch.ones_like(p)
    momentum.step()
    assert momentum.state[p]["momentum_buffer"]._version > 0


def test_backward_detects_parameter_modified_by_step():
    p = away_from_zero((5,), 1).requires_grad_()
    optimizer = SGD([p], lr=0.1, engine="numba")
    loss = (p**2).sum()
    p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
