"""`Combined`, used by torch, its schedulers and GradScaler, and Lightning like any other optimizer."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import optplug
from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    HyperparameterError,
    ParameterError,
)
from optplug.optim.combined import Combined
from optplug.schedulers.warmup import Warmup

SGD, Adam, LBFGS = (optplug.get_optimizer(name) for name in ("sgd", "adam", "lbfgs"))

PAIRS: dict[str, tuple[Any, Any]] = {
    "torch": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.Adam(p, 0.01)),
    "optplug": (lambda p: SGD(p, 0.1, momentum=0.9), lambda p: Adam(p, 0.01)),
    "both": (lambda p: SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.Adam(p, 0.01)),
    "adagrad": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.Adagrad(p, 0.05)),
}


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))


def make_members(net: nn.Sequential, pair: str = "both") -> list[torch.optim.Optimizer]:
    return [make(layer.parameters()) for make, layer in zip(PAIRS[pair], net, strict=True)]


def backward(net: nn.Module, t: int, scale: Any = lambda loss: loss) -> torch.Tensor:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(t))
    loss = net(x).square().mean()
    scale(loss).backward()
    return loss


def train(net: nn.Module, optimizers: Any, steps: range, *schedulers: Any) -> None:
    for t in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        backward(net, t)
        for each in (*optimizers, *schedulers):
            each.step()


def assert_equal_params(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


def assert_groups_and_state_shared(optimizer: Any) -> None:
    member_groups = [group for member in optimizer.members for group in member.param_groups]
    assert len(member_groups) == len(optimizer.param_groups)
    assert {id(group) for group in member_groups} == {id(group) for group in optimizer.param_groups}
    assert all(member.state is optimizer.state for member in optimizer.members)
    assert {id(p) for p in optimizer.state} <= {id(p) for group in member_groups for p in group["params"]}


each_pair = pytest.mark.parametrize("pair", PAIRS)


# ---------------------------------------------------------------- stepping


@each_pair
def test_step_steps_each_member(pair):
    net, other = make_network(), make_network()
    optimizer, separate = Combined(make_members(net, pair)), make_members(other, pair)
    train(net, [optimizer], range(5))
    train(other, separate, range(5))
    assert_equal_params(net, other)
    assert_groups_and_state_shared(optimizer)
    assert len(optimizer.state) == 4


def test_closure_is_evaluated_once_before_the_members_step_with_gradients_enabled():
    net = make_network()
    optimizer, before, losses = Combined(make_members(net)), copy.deepcopy(net), []

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        assert_equal_params(net, before)
        losses.append(backward(net, 0))
        return losses[-1]

    with torch.no_grad():
        assert optimizer.step(closure) is losses[0]
    assert len(losses) == 1
    assert not any(torch.equal(p, q) for p, q in zip(net.parameters(), before.parameters(), strict=True))
    assert optimizer.step() is None


def test_hooks_of_combination_and_members_run_once_per_step():
    optimizer, log = Combined(make_members(make_network())), []
    for hooked in (optimizer, *optimizer.members):
        hooked.register_step_pre_hook(lambda o, *_: log.append(("before", type(o).__name__)))
        hooked.register_step_post_hook(lambda o, *_: log.append(("after", type(o).__name__)))
    optimizer.step()
    assert log == [
        ("before", "Combined"),
        ("before", "SGD"),
        ("after", "SGD"),
        ("before", "Adam"),
        ("after", "Adam"),
        ("after", "Combined"),
    ]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_clears_the_gradients_of_all_members(set_to_none):
    net = make_network()
    backward(net, 0)
    Combined(make_members(net)).zero_grad(set_to_none)
    assert all(p.grad is None if set_to_none else not p.grad.any() for p in net.parameters())


# ---------------------------------------------------------------- groups, state, defaults


def test_groups_and_state_are_shared_with_the_members():
    net = make_network()
    optimizer = Combined(make_members(net))
    assert_groups_and_state_shared(optimizer)
    optimizer.param_groups[1]["lr"] = 0.0
    assert optimizer.members[1].param_groups[0]["lr"] == 0.0
    before = copy.deepcopy(net[1])
    train(net, [optimizer], range(1))
    assert_equal_params(net[1], before)
    for p, state in optimizer.state.items():  # Lightning moves states between devices like this
        optimizer.state[p] = {key: value.clone() for key, value in state.items()}
    assert optimizer.members[1].state[net[1].weight] is optimizer.state[net[1].weight]
    optimizer.state = copy.copy(optimizer.state)
    assert_groups_and_state_shared(optimizer)


def test_changes_of_a_member_change_the_combined_optimizer():
    net, extra = make_network(), nn.Parameter(torch.ones(2))
    optimizer = Combined(make_members(net))
    train(net, [optimizer], range(2))
    alone = Combined(make_members(make_network()))
    alone.load_state_dict(optimizer.state_dict())
    for i, layer in enumerate(net):  # after a member loads a state dict, its state is not the shared one
        member = optimizer.members[i]
        member.state = type(member.state)(dict, {p: member.state[p] for p in layer.parameters()})
        saved = member.state_dict()
        saved["state"][0] = {key: value + 1 for key, value in saved["state"][0].items()}
        member.load_state_dict(saved)
        assert len(optimizer.state) == 4
        assert_groups_and_state_shared(optimizer)
        for key, value in optimizer.state[layer.weight].items():
            assert torch.equal(value, alone.state[alone.members[i].param_groups[0]["params"][0]][key] + 1)
    optimizer.members[0].add_param_group({"params": [extra]})
    assert optimizer.param_groups[2] is optimizer.members[0].param_groups[1]


def test_every_group_gets_a_unique_name():
    a, b, c, d, e = (nn.Parameter(torch.ones(1)) for _ in range(5))
    optimizer = Combined(
        [
            torch.optim.SparseAdam([{"params": [a]}, {"params": [b]}]),
            SGD([{"params": [c], "name": "decay"}]),
            SGD([{"params": [d], "name": "decay"}, {"params": [e], "name": "sparse_adam"}]),
        ]
    )
    names = [group["name"] for group in optimizer.param_groups]
    assert names == ["sparse_adam_2", "sparse_adam_3", "decay", "decay_2", "sparse_adam"]


def test_defaults_contain_the_keys_that_all_members_have():
    optimizer = Combined(make_members(make_network(), "torch"))
    assert optimizer.defaults["lr"] == 0.1
    assert not {"momentum", "betas"} & set(optimizer.defaults)
    with pytest.raises(ValueError, match="must support momentum or beta1"):
        torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.1], total_steps=5)


class RequiresClosure(torch.optim.SGD):
    def step(self, closure):
        return super().step(closure)


class OptionalClosureLBFGS(torch.optim.LBFGS):
    def step(self, closure=None):
        return super().step(closure)


class DeclaresClosure(torch.optim.SGD):
    capabilities = frozenset({"closure"})


def one_param() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2, 3))]


@pytest.mark.parametrize("cls", [torch.optim.LBFGS, LBFGS, OptionalClosureLBFGS, RequiresClosure, DeclaresClosure])
def test_member_that_needs_a_closure_raises(cls):
    with pytest.raises(ConfigError, match=rf"^{cls.__name__} cannot be combined: .* train with {cls.__name__} alone"):
        Combined([Adam(one_param()), cls(one_param())])


def test_member_whose_step_was_patched_by_a_scheduler_is_accepted():
    member = torch.optim.SGD(one_param(), lr=1.0)
    torch.optim.lr_scheduler.StepLR(member, 1)
    Combined([member]).step()


def test_invalid_members_raise():
    p = one_param()
    sgd = torch.optim.SGD(p)
    with pytest.raises(ConfigError, match="at least one optimizer, got none"):
        Combined([])
    for wrong in (["adam"], [nn.Linear(1, 1)], 3):
        with pytest.raises(ConfigTypeError, match="Combined takes a list of optimizers, got an element "):
            Combined(wrong)
    with pytest.raises(ParameterError, match=r"SGD and Adam both have a parameter of shape \(2, 3\)"):
        Combined([sgd, Adam(p)])
    with pytest.raises(ParameterError, match=r"SGD and SGD both"):
        Combined([sgd, sgd])
    with pytest.raises(ConfigError, match="cannot be a member of Combined"):
        Combined([Combined([sgd]), Adam(one_param())])


# ---------------------------------------------------------------- adding groups


def test_added_group_goes_to_the_named_member_and_last_in_order():
    net, added = make_network(), [one_param(), one_param()]
    optimizer = Combined(make_members(net))
    given = {"params": added[0], "member": 0, "momentum": 0.5}
    optimizer.add_param_group(given)
    optimizer.add_param_group({"params": added[1], "member": "Adam", "lr": 3.0})
    assert given == {"params": added[0], "member": 0, "momentum": 0.5}
    assert [group["name"] for group in optimizer.param_groups] == ["sgd", "adam", "sgd_2", "adam_2"]
    assert [group["params"] for group in optimizer.param_groups[2:]] == added
    assert optimizer.param_groups[2] is optimizer.members[0].param_groups[1]
    assert optimizer.param_groups[2]["momentum"] == 0.5
    assert [group.get("member") for group in optimizer.param_groups] == [None, None, 0, "Adam"]
    assert optimizer.param_groups[3] is optimizer.members[1].param_groups[1]
    for p in (added[0][0], added[1][0]):
        p.grad = torch.ones_like(p)
    optimizer.step()
    fresh = Combined(make_members(make_network()))
    for i in (0, 1):
        fresh.add_param_group({"params": one_param(), "member": i})
    saved = optimizer.state_dict()
    fresh.load_state_dict(saved)
    assert_groups_and_state_shared(fresh)
    assert fresh.param_groups[3]["lr"] == 3.0
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1], [2, 3], [4], [5]]
    assert "exp_avg" in fresh.state[fresh.param_groups[3]["params"][0]]
    assert "momentum_buffer" in fresh.state[fresh.param_groups[2]["params"][0]]
    for duplicate in (copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))):
        assert [group["name"] for group in duplicate.param_groups] == ["sgd", "adam", "sgd_2", "adam_2"]
        assert_groups_and_state_shared(duplicate)


@pytest.mark.parametrize(
    ("key", "got"),
    [
        ({}, "got None"),
        ({"member": 3}, "got 3"),
        ({"member": -1}, "got -1"),
        ({"member": True}, "got True"),
        ({"member": "adam"}, "got 'adam'; did you mean 'Adam'?"),
        ({"member": "SGD"}, "got 'SGD'"),
    ],
)
def test_added_group_without_a_valid_member_raises(key, got):
    optimizer = Combined([torch.optim.SGD(one_param()), Adam(one_param()), SGD(one_param())])
    with pytest.raises(
        ConfigError, match=r"the key 'member': .* allowed: 0 \(SGD\), 1 \(Adam\), 2 \(SGD\); "
    ) as caught:
        optimizer.add_param_group({"params": one_param(), **key})
    assert str(caught.value).endswith(got)
    assert len(optimizer.param_groups) == 3


def test_rejected_group_is_not_added():
    net = make_network()
    optimizer = Combined(make_members(net))
    with pytest.raises(ParameterError, match=r"SGD and Adam both have a parameter of shape \(1, 3\)"):
        optimizer.add_param_group({"params": net[1].weight, "member": 0})
    with pytest.raises(HyperparameterError, match="SGD has no option 'momentun'"):
        optimizer.add_param_group({"params": one_param(), "member": 0, "momentun": 1})
    assert_groups_and_state_shared(optimizer)
    assert len(optimizer.param_groups) == 2


def test_param_groups_can_be_assigned_as_finetuning_callbacks_do_on_resume():
    optimizer, extra = Combined(make_members(make_network())), one_param()
    new = [dict(group) for group in optimizer.param_groups]
    optimizer.param_groups = [*new, {**new[0], "params": extra, "member": 0}]
    assert_groups_and_state_shared(optimizer)
    assert [group["params"] for group in optimizer.members[0].param_groups] == [new[0]["params"], extra]
    assert [group["name"] for group in optimizer.param_groups] == ["sgd", "adam", "sgd_2"]
    for wrong, message in ((new, "has 3 parameter groups, got 2"), ([*new, *new], "needs the key 'member'")):
        with pytest.raises(ConfigError, match=message):
            optimizer.param_groups = wrong
        assert_groups_and_state_shared(optimizer)
        assert len(optimizer.param_groups) == 3


# ---------------------------------------------------------------- state dicts and copies


def save_and_load(saved: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@each_pair
def test_resumed_training_equals_uninterrupted_training(pair):
    net = make_network()
    optimizer = Combined(make_members(net, pair))
    train(net, [optimizer], range(3))
    saved = save_and_load(optimizer.state_dict())
    assert set(saved) == {"state", "param_groups"}
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1], [2, 3]]
    assert sorted(saved["state"]) == [0, 1, 2, 3]
    other = copy.deepcopy(net)
    resumed = Combined(make_members(other, pair))
    resumed.load_state_dict(saved)
    assert_groups_and_state_shared(resumed)
    train(net, [optimizer], range(3, 6))
    train(other, [resumed], range(3, 6))
    assert_equal_params(net, other)
    assert_groups_and_state_shared(resumed)


@each_pair
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copy_continues_like_the_original(pair, duplicate):
    net = make_network()
    optimizer = Combined(make_members(net, pair))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # it patches step; the copy must not have the patch
    train(net, [optimizer], range(3))
    other, twin = duplicate((net, optimizer))
    assert_groups_and_state_shared(twin)
    assert_groups_and_state_shared(optimizer)
    assert not {id(group) for group in twin.param_groups} & {id(group) for group in optimizer.param_groups}
    assert list(twin.members[0].state) == list(other.parameters())[: len(twin.members[0].state)]
    train(net, [optimizer], range(3, 5))
    train(other, [twin], range(3, 5))
    assert_equal_params(net, other)
    twin.register_step_post_hook(lambda *_: None)
    twin.load_state_dict(optimizer.state_dict())


def test_state_dict_with_another_number_of_groups_raises():
    optimizer = Combined(make_members(make_network()))
    with pytest.raises(ConfigError, match=r"^the state dict has 1 parameter groups; Combined has 2: sgd, adam$"):
        optimizer.load_state_dict(SGD(one_param()).state_dict())


def test_members_load_with_their_own_method_and_all_or_none_param():
    net = make_network().bfloat16()
    make = lambda net: Combined(  # noqa: E731
        [torch.optim.SGD(net[0].parameters(), 0.1, momentum=0.9), Adam(net[1].parameters(), state_dtype=torch.float32)]
    )
    optimizer = make(net)
    for p in net.parameters():
        p.grad = torch.full_like(p, 1 / 3)
    optimizer.step()
    resumed = make(copy.deepcopy(net))
    resumed.param_groups[1]["foreach"] = True
    resumed.load_state_dict(optimizer.state_dict())
    p, q = net[1].weight, resumed.param_groups[1]["params"][0]
    assert resumed.state[q]["exp_avg"].dtype == torch.float32  # torch would make it bfloat16
    assert torch.equal(resumed.state[q]["exp_avg"], optimizer.state[p]["exp_avg"])
    assert resumed.param_groups[1]["foreach"] is True
    wrong = copy.deepcopy(optimizer.state_dict())
    wrong["param_groups"][0]["lr"] = 7.0
    wrong["state"][0]["momentum_buffer"] += 1
    del wrong["state"][2]["exp_avg"]
    before = copy.deepcopy(resumed.state_dict())
    with pytest.raises(HyperparameterError, match="this is the state of another optimizer"):
        resumed.load_state_dict(wrong)
    assert_groups_and_state_shared(resumed)
    after = resumed.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert torch.equal(after["state"][0]["momentum_buffer"], before["state"][0]["momentum_buffer"])


def test_state_dict_hooks_get_the_state_dict_of_all_members():
    optimizer, log = Combined(make_members(make_network())), []
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "extra": 1})
    saved = optimizer.state_dict()
    assert saved["extra"] == 1

    def halve(_: Any, loaded: Any) -> Any:
        log.append("before")
        return {**loaded, "param_groups": [{**group, "lr": group["lr"] / 2} for group in loaded["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.register_load_state_dict_pre_hook(lambda *_: None)
    optimizer.register_load_state_dict_post_hook(lambda o: log.append(o.param_groups[0]["lr"]))
    optimizer.load_state_dict(saved)
    assert log == ["before", 0.05]
    assert saved["param_groups"][0]["lr"] == 0.1


def test_loading_a_state_dict_without_names_keeps_the_names():
    optimizer = Combined([SGD([{"params": one_param(), "name": "body"}]), torch.optim.Adam(one_param())])
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["name"]
    optimizer.load_state_dict(saved)
    assert [group["name"] for group in optimizer.param_groups] == ["body", "adam"]
    saved["param_groups"][0]["name"] = saved["param_groups"][1]["name"] = "same"
    optimizer.load_state_dict(saved)
    assert [group["name"] for group in optimizer.param_groups] == ["same", "same_2"]


# ---------------------------------------------------------------- schedulers, scaler, modes, reports


SCHEDULERS: dict[str, Any] = {
    "torch's StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "torch's OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=9, cycle_momentum=False),
    "step_lr": lambda o: optplug.create_scheduler("step_lr", o, step_size=2, gamma=0.5),
    "warmup": lambda o: Warmup(optplug.create_scheduler("cosine_annealing_lr", o, T_max=6), 3, 0.1),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("pair", ["torch", "optplug"])
def test_scheduler_schedules_all_members(name, pair):
    net, other = make_network(), make_network()
    optimizer, separate = Combined(make_members(net, pair)), make_members(other, pair)
    train(net, [optimizer], range(6), SCHEDULERS[name](optimizer))
    train(other, separate, range(6), *map(SCHEDULERS[name], separate))
    assert_equal_params(net, other)
    assert [g["lr"] for g in optimizer.param_groups] == [member.param_groups[0]["lr"] for member in separate]


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_unscales_gradients_and_skips_non_finite_ones(fused):
    net, other = make_network(), make_network()
    make = lambda net: [  # noqa: E731
        torch.optim.SGD(net[0].parameters(), 0.1, momentum=0.9, fused=fused),
        Adam(net[1].parameters(), 0.01, fused=fused),
    ]
    optimizer, separate, scaler = Combined(make(net)), make(other), torch.amp.GradScaler("cpu", init_scale=8.0)
    for t in range(3):
        optimizer.zero_grad()
        backward(net, t, scaler.scale)
        if t == 1:
            net[1].bias.grad.fill_(torch.inf)
        if t == 2:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if t == 1:
            assert scaler.get_scale() == 4.0
            assert_equal_params(net, other)
            continue
        train(other, separate, range(t, t + 1))
        assert_equal_params(net, other)


class WithModes(torch.optim.SGD):
    mode = ""

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"


class OnlyEval(torch.optim.SGD):
    def eval(self) -> None:
        pytest.fail("eval() without train() is not a mode")


COPIES: dict[str, Any] = {
    "itself": lambda o: o,
    "copy": copy.deepcopy,
    "pickle": lambda o: pickle.loads(pickle.dumps(o)),
}


@pytest.mark.parametrize("how", COPIES)
def test_train_and_eval_are_called_on_members_that_have_both(how):
    original = Combined([Adam(one_param()), WithModes(one_param()), OnlyEval(one_param()), WithModes(one_param())])
    optimizer = COPIES[how](original)
    for mode in ("eval", "train"):
        getattr(optimizer, mode)()
        assert [getattr(member, "mode", None) for member in optimizer.members] == [None, mode, None, mode]
    assert (original.members[1].mode == "train") == (optimizer is original)


@pytest.mark.parametrize("how", COPIES)
def test_train_and_eval_do_not_exist_if_no_member_has_both(how):
    optimizer = COPIES[how](Combined([Adam(one_param()), OnlyEval(one_param())]))
    assert not hasattr(optimizer, "train")
    assert not hasattr(optimizer, "eval")


def test_engine_report_uses_group_indices_of_the_combination():
    net, extra = make_network(), one_param()
    optimizer = Combined([torch.optim.SGD(one_param()), *make_members(net, "optplug")])
    optimizer.add_param_group({"params": extra, "member": 1})
    for ran in (False, True):
        reports = optimizer.engine_report()
        assert [(report.group, report.elements, report.ran) for report in reports] == [
            (1, 15, ran),
            (3, 6, ran),
            (2, 4, ran),
        ]
        backward(net, 0)
        extra[0].grad = torch.ones(2, 3)
        optimizer.step()


USES: dict[str, Any] = {
    "steps": lambda net, o: train(net, [o], range(2)),
    "state dict": lambda net, o: o.load_state_dict(o.state_dict()),
    "scheduler": lambda net, o: torch.optim.lr_scheduler.StepLR(o, 1),
    "copies": lambda net, o: (copy.deepcopy(o), pickle.dumps(o)),
    "groups": lambda net, o: (
        o.add_param_group({"params": one_param(), "member": 0}) if isinstance(o, Combined) else None
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "make", [lambda net: torch.optim.SGD(net.parameters()), lambda net: Combined(make_members(net))]
)
def test_dropped_optimizer_is_freed_without_garbage_collection(make, use, gc_disabled):
    net = make_network()
    optimizer = make(net)
    train(net, [optimizer], range(1))
    USES[use](net, optimizer)
    refs = [weakref.ref(each) for each in (optimizer, net[0].weight, *getattr(optimizer, "members", ()))]
    del optimizer, net
    assert [ref() for ref in refs] == [None] * len(refs)


# ---------------------------------------------------------------- Lightning


@pytest.fixture
def combining_module(scripted_module: type, request: pytest.FixtureRequest) -> type:
    """A module of two layers and two optimizers."""

    class CombiningModule(scripted_module):
        def __init__(self, pair: str, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.pair, self.layer = pair, make_network()

        def configure_optimizers(self) -> Any:
            optimizer = Combined(make_members(self.layer, self.pair))
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    return CombiningModule


@each_pair
@pytest.mark.parametrize("automatic", [True, False])
def test_fit_steps_all_members_and_counts_one_step_per_batch(combining_module, trainer, pair, automatic):
    module, fit = combining_module(pair, automatic=automatic), trainer()
    module.on_train_epoch_end = lambda: None if automatic else module.lr_schedulers().step()
    fit.fit(module)
    assert fit.global_step == 12
    net = make_network()
    separate = make_members(net, pair)
    schedulers = [torch.optim.lr_scheduler.StepLR(member, 1, 0.5) for member in separate]
    for _ in range(3):
        for x, y in module.train_dataloader():
            for member in separate:
                member.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            for member in separate:
                member.step()
        for scheduler in schedulers:
            scheduler.step()
    assert_equal_params(module.layer, net)


def test_resumed_fit_equals_uninterrupted_fit(combining_module, trainer, tmp_path):
    whole, half, rest = (combining_module("both") for _ in range(3))
    trainer().fit(whole)
    first = trainer(max_epochs=1)
    first.fit(half)
    first.save_checkpoint(tmp_path / "half.ckpt")
    second = trainer()
    second.fit(rest, ckpt_path=tmp_path / "half.ckpt")
    assert second.global_step == 12
    assert_equal_params(whole, rest)
    assert_groups_and_state_shared(second.optimizers[0])


def test_wrapper_of_lightning_reads_and_writes_the_combination(pl):
    net = make_network()
    optimizer = Combined(make_members(net))
    wrapped = pl.core.optimizer.LightningOptimizer(optimizer)
    assert isinstance(wrapped, Combined)
    assert type(wrapped).__name__ == "LightningCombined"
    assert not hasattr(wrapped, "train")
    train(net, [optimizer], range(1))
    assert wrapped.state is optimizer.state
    assert all(a is b for a, b in zip(wrapped.param_groups, optimizer.param_groups, strict=True))
    wrapped.zero_grad()
    assert net[0].weight.grad is None
    saved = wrapped.state_dict()
    saved["param_groups"][0]["lr"] = 0.7
    wrapped.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.7
    wrapped.add_param_group({"params": one_param(), "member": 0})
    assert [group["name"] for group in optimizer.param_groups] == ["sgd", "adam", "sgd_2"]
    assert len(wrapped.engine_report()) == 2
    assert_groups_and_state_shared(optimizer)
