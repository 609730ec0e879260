"""`RuleOptimizer`: checks, parameter groups, hooks, AMP, state, engines, unusual tensors."""

from __future__ import annotations

import copy
import io
import math
import re
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from optplug import RuleOptimizer, State, get_optimizer
from optplug.errors import (
    EngineError,
    HyperparameterError,
    HyperparameterTypeError,
    OptplugError,
    ParameterError,
    RecordingError,
    RuleError,
    SparseGradientError,
)
from optplug.optim import dispatch

TORCH = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
SGD, Adam, AdamW = (get_optimizer(name) for name in TORCH)
ENGINES = ("loop", "foreach", "numba")


def parameter(*values: float, grad: float | None = 1.0, dtype=torch.float32) -> torch.Tensor:
    p = torch.tensor(values or (1.0, -2.0), dtype=dtype, requires_grad=True)
    p.grad = None if grad is None else torch.full_like(p, grad)
    return p


# ------------------------------------------------------------------------------------ the constructor's checks

INVALID_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"lr": -1.0}),
    ("sgd", {"lr": torch.tensor([1.0, 2.0])}),
    ("sgd", {"momentum": -0.1}),
    ("sgd", {"weight_decay": -0.1}),
    ("sgd", {"nesterov": True}),
    ("sgd", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
    ("sgd", {"fused": True, "foreach": True}),
    ("sgd", {"fused": True, "differentiable": True}),
    ("adam", {"lr": -1.0}),
    ("adam", {"lr": torch.tensor([1.0, 2.0])}),
    ("adam", {"lr": torch.tensor(0.1), "foreach": True}),
    ("adam", {"betas": (torch.tensor(0.9), torch.tensor(0.99)), "foreach": True}),
    ("adam", {"betas": (1.0, 0.9)}),
    ("adam", {"betas": (0.9, -0.1)}),
    ("adam", {"betas": (torch.tensor(0.9), 0.99)}),
    ("adam", {"eps": -1e-8}),
    ("adam", {"weight_decay": -0.1}),
    ("adamw", {"weight_decay": -0.1}),
    ("adam", {"fused": True, "foreach": True}),
    ("adam", {"fused": True, "differentiable": True}),
]


@pytest.mark.parametrize(("name", "options"), INVALID_OPTIONS, ids=str)
def test_invalid_options_raise_with_the_type_and_message_of_torch(name, options):
    with pytest.raises(OptplugError) as ours:
        get_optimizer(name)([parameter()], **options)
    with pytest.raises((ValueError, RuntimeError)) as theirs:
        TORCH[name]([parameter()], **options)
    assert isinstance(ours.value, theirs.type)
    assert str(ours.value).startswith(str(theirs.value))


def test_tensor_lr_with_foreach_is_accepted_where_torch_accepts_it():
    p = parameter()
    SGD([p], lr=torch.tensor(0.5), foreach=True).step()
    assert p.tolist() == [0.5, -2.5]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": "1e-3"}, HyperparameterTypeError,
         "Adam: lr must be a number, got '1e-3' (str); write 0.001"),
        ({"lr": "fast"}, HyperparameterTypeError, "Adam: lr must be a number, got 'fast' (str)"),
        ({"lr": "nan"}, HyperparameterTypeError, "Adam: lr must be a number, got 'nan' (str)"),
        ({"lr": None}, HyperparameterTypeError, "Adam: lr must be a number, got None (NoneType)"),
        ({"lr": True}, HyperparameterTypeError, "Adam: lr must be a number, got True (bool)"),
        ({"lr": math.inf}, HyperparameterError, "Invalid learning rate: inf (Adam: lr must be finite)"),
        ({"lr": -1}, HyperparameterError, "Invalid learning rate: -1 (Adam: lr must be at least 0)"),
        ({"betas": (0.9, 0.99, 0.999)}, HyperparameterError, "Adam: betas must be 2 numbers, got (0.9, 0.99, 0.999)"),
        ({"betas": 0.9}, HyperparameterTypeError, "Adam: betas must be 2 numbers, got 0.9"),
        ({"betas": ("0.9", 0.99)}, HyperparameterTypeError,
         "Adam: betas[0] must be a number, got '0.9' (str); write 0.9"),
        ({"amsgrad": 1}, HyperparameterTypeError, "Adam: amsgrad must be True or False, got 1 (int)"),
        ({"foreach": "yes"}, HyperparameterTypeError, "Adam: foreach must be True, False or None, got 'yes'"),
        ({"state_dtype": torch.int8}, HyperparameterTypeError,
         "state_dtype must be a floating-point torch.dtype or None, got torch.int8"),
        ({"engine": "forech"}, EngineError,
         "no engine named 'forech'; did you mean 'foreach'?"),
        ({"engine": "triton"}, EngineError,
         "engine 'triton' is not part of this version; there are auto, loop, foreach, numba"),
        ({"engine": "loop", "foreach": True}, EngineError, "foreach=True contradicts engine='loop'"),
        ({"engine": "foreach", "foreach": False}, EngineError, "foreach=False contradicts engine='foreach'"),
        ({"engine": "foreach", "differentiable": True}, EngineError,
         "_foreach ops don't support autograd: differentiable=True needs engine 'loop' (or 'auto')"),
    ],
)  # fmt: skip
def test_invalid_options_raise_with_exact_message(options, error, message):
    with pytest.raises(error) as caught:
        Adam([parameter()], **options)
    assert str(caught.value) == message


def test_hyperparameters_are_checked_before_parameters():
    with pytest.raises(HyperparameterError, match="Invalid learning rate"):
        SGD([], lr=-1.0)
    with pytest.raises(ValueError, match="empty parameter list"):
        SGD([], lr=1.0)


def test_unknown_option_of_a_group_raises_with_the_nearest_option():
    optimizer = SGD([parameter()])
    message = "SGD has no option 'weigth_decay'; did you mean 'weight_decay', 'decoupled_weight_decay'?"
    for add_group in (
        lambda: SGD([{"params": [parameter()], "weigth_decay": 0.1}]),
        lambda: optimizer.add_param_group({"params": [parameter()], "weigth_decay": 0.1}),
    ):
        with pytest.raises(HyperparameterError) as caught:
            add_group()
        assert str(caught.value) == message
    assert len(optimizer.param_groups) == 1


def test_group_keys_of_torch_and_lightning_are_allowed():
    keys = ("name", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
    optimizer = SGD([{"params": [parameter()], **dict.fromkeys(keys, 0.1)}])
    assert all(optimizer.param_groups[0][key] == 0.1 for key in keys)


def test_group_keys_of_a_scheduler_that_cycles_momentum_are_saved_and_loaded():
    optimizer = SGD([parameter()], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    Adam([parameter()]).load_state_dict(Adam([parameter()]).state_dict())
    restored = SGD([parameter()], momentum=0.9)
    restored.load_state_dict(optimizer.state_dict())
    assert restored.param_groups[0]["max_lr"] == optimizer.param_groups[0]["max_lr"]


# ------------------------------------------------------------------------------------ parameters and groups


def test_generators_lists_for_betas_and_named_parameters_are_accepted():
    model = nn.Linear(2, 3)
    assert len(SGD(p for p in model.parameters()).param_groups[0]["params"]) == 2
    assert Adam(model.parameters(), betas=[0.8, 0.9]).param_groups[0]["betas"] == (0.8, 0.9)
    assert Adam([{"params": list(model.parameters()), "betas": [0.8, 0.9]}]).param_groups[0]["betas"] == (0.8, 0.9)
    named = Adam(model.named_parameters())
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    restored = Adam(nn.Linear(2, 3).named_parameters())
    restored.load_state_dict(named.state_dict())
    assert restored.param_groups[0]["param_names"] == ["weight", "bias"]


@pytest.mark.parametrize("engine", ENGINES)
def test_options_of_a_group_apply_to_that_group_only(engine):
    params = [parameter() for _ in range(4)]
    optimizer = Adam(
        [
            {"params": params[:1]},
            {"params": params[1:2], "lr": 0.0},
            {"params": params[2:3], "amsgrad": True, "maximize": True, "betas": (0.5, 0.5)},
            {"params": params[3:], "lr": torch.tensor(0.5)},
        ],
        lr=0.1,
        engine=engine,
    )
    optimizer.step()
    assert [p.detach()[0].item() for p in params] == pytest.approx([0.9, 1.0, 1.1, 0.5])
    assert ["max_exp_avg_sq" in optimizer.state[p] for p in params] == [False, False, True, False]
    assert [report.group for report in optimizer.engine_report()] == [0, 1, 2, 3]


@pytest.mark.parametrize("engine", ENGINES)
def test_group_may_mix_dtypes_and_shapes(engine):
    params = [parameter(dtype=d) for d in (torch.float64, torch.float32, torch.bfloat16, torch.float32)]
    z = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    z.grad = torch.full_like(z, 1j)
    optimizer = SGD([*params, z], lr=0.5, engine=engine)
    optimizer.step()
    assert all(p.tolist() == [0.5, -2.5] for p in params)
    assert z.tolist() == [1 - 0.5j, 1 - 0.5j]
    assert [report.tensors for report in optimizer.engine_report()] == [1, 2, 1, 1]


@pytest.mark.parametrize("engine", ENGINES)
def test_negated_and_conjugated_tensors_step_like_resolved_ones(engine):
    engine = "auto" if engine == "numba" else engine  # numba itself raises for them: tests/engines/test_numba.py

    def steps(p, g):
        p = nn.Parameter(p)
        optimizer = Adam([p], lr=0.1, engine=engine)
        for _ in range(3):
            p.grad = g
            optimizer.step()
        return p.detach().resolve_conj().resolve_neg()

    z = torch.tensor([1 + 2j, -3 + 0.5j])
    negated = z.conj().imag
    assert negated.is_neg()
    plain = negated.clone()
    conjugated = z.conj()
    resolved = conjugated.resolve_conj()
    same = torch.equal if engine != "auto" else torch.allclose  # with "auto" another engine steps the resolved ones
    assert same(steps(z.clone().conj().imag, plain), steps(plain.clone(), plain))
    assert same(steps(plain.clone(), negated), steps(plain.clone(), plain))
    assert same(steps(z.clone().conj(), resolved), steps(resolved.clone(), resolved))
    assert same(steps(resolved.clone(), conjugated), steps(resolved.clone(), resolved))


def test_unsupported_sparse_gradient_raises_like_torch_with_a_remedy():
    p = torch.zeros(3, 2, requires_grad=True)
    p.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (3, 2), check_invariants=True)
    with pytest.raises(SparseGradientError) as ours:
        Adam([p]).step()
    with pytest.raises(RuntimeError) as theirs:
        torch.optim.Adam([p]).step()
    assert str(ours.value) == str(theirs.value)
    with pytest.raises(SparseGradientError, match=r"^RMSprop does not support sparse gradients$"):
        get_optimizer("rmsprop")([p]).step()


class Wrapped(torch.Tensor):
    """A tensor subclass."""


def test_tensor_subclass_is_stepped_by_engine_loop():
    plain, wrapped = parameter(), torch.tensor([1.0, -2.0]).as_subclass(Wrapped).requires_grad_()
    wrapped.grad = torch.ones(2).as_subclass(Wrapped)
    optimizer = Adam([plain, wrapped], lr=0.1)
    optimizer.step()
    assert [str(report) for report in optimizer.engine_report()] == [
        "group 0: numba (auto: one fused kernel), 1 tensor, 2 float32 elements on cpu, 28 bytes each",
        "group 0: loop (auto: Wrapped is not a plain tensor), 1 tensor, 2 float32 elements on cpu",
    ]
    torch.testing.assert_close(wrapped.detach().as_subclass(torch.Tensor), plain.detach())
    assert type(optimizer.state[wrapped]["exp_avg"]) is Wrapped
    with pytest.raises(EngineError) as caught:
        Adam([wrapped], engine="foreach").step()
    assert (
        str(caught.value)
        == "engine 'foreach' cannot take a parameter: Wrapped is not a plain tensor; use engine='auto'"
    )


# ------------------------------------------------------------------------------------ hooks


def test_step_hooks_run_before_and_after_the_step():
    p, log = parameter(), []
    optimizer = SGD([p], lr=1.0)
    optimizer.register_step_pre_hook(lambda o, args, kwargs: log.append(("pre", p[0].item())))
    optimizer.register_step_post_hook(lambda o, args, kwargs: log.append(("post", p[0].item())))
    optimizer.step()
    assert log == [("pre", 1.0), ("post", 0.0)]


def test_load_pre_hook_may_replace_the_state_dict_and_post_hook_gets_the_final_state():
    p = parameter()
    source = Adam([p], lr=0.1)
    source.step()
    saved = copy.deepcopy(source.state_dict())
    saved["state"][0]["step"] = 41  # as in old state dicts
    target, seen = Adam([parameter()], state_dtype=torch.float64), []

    def replace(optimizer, state_dict):
        state_dict = copy.deepcopy(state_dict)
        state_dict["state"][0]["exp_avg"] += 1.0
        state_dict["param_groups"][0]["lr"] = 0.7
        return state_dict

    def check_final_state(optimizer):
        state = optimizer.state[optimizer.param_groups[0]["params"][0]]
        seen.append(
            (optimizer.param_groups[0]["lr"], state["step"].item(), state["exp_avg"].dtype, state["step"].dtype)
        )
        state["exp_avg"].zero_()

    target.register_load_state_dict_pre_hook(replace)
    target.register_load_state_dict_post_hook(check_final_state)
    target.load_state_dict(saved)
    assert seen == [(0.7, 41.0, torch.float64, torch.float32)]
    (state,) = target.state.values()
    assert state["exp_avg"].tolist() == [0.0, 0.0]  # as the post-hook left it
    assert saved["state"][0]["exp_avg"].tolist() == pytest.approx([0.1, 0.1])


def test_state_dict_hooks_run_before_and_after_saving():
    optimizer = Adam([parameter()])
    seen = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, state_dict: state_dict | {"extra": 1})
    assert optimizer.state_dict()["extra"] == 1
    assert seen == ["pre"]


def test_failed_load_leaves_no_hooks_registered():
    optimizer = Adam([parameter()])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    assert not optimizer._optimizer_load_state_dict_post_hooks


# ------------------------------------------------------------------------------------ AMP


def test_only_fused_sets_step_supports_amp_scaling():
    for options, expected in (
        ({}, False),
        ({"fused": True}, True),
        ({"fused": False}, False),
        ({"foreach": True}, False),
    ):
        assert getattr(Adam([parameter()], **options), "_step_supports_amp_scaling", False) is expected
    fused = Adam([parameter()], fused=True)
    assert copy.deepcopy(fused)._step_supports_amp_scaling


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("name", TORCH)
def test_grad_scaler_works_like_with_torch(name, fused):
    def train(cls):
        p = torch.tensor([1.0, -2.0], requires_grad=True)
        optimizer = cls([p], lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        seen = []
        for factor in (1.0, 2.0, math.inf, 0.5, math.nan, 3.0):
            optimizer.zero_grad()
            scaler.scale((p * p * factor).sum()).backward()
            scaler.step(optimizer)
            seen.append((p.detach().clone(), p.grad.clone(), scaler.get_scale()))
            scaler.update()
        return seen

    for (p, g, scale), (q, h, other) in zip(train(get_optimizer(name)), train(TORCH[name]), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=0)
        assert scale == other
        if bool(h.isfinite().all()):  # unscaled in place
            torch.testing.assert_close(g, h, rtol=1e-6, atol=0)


def test_gradients_can_be_clipped_under_a_grad_scaler_without_fused():
    p = torch.tensor([3.0, 4.0], requires_grad=True)
    optimizer, scaler = SGD([p], lr=1.0), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((p * p).sum() / 2).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_([p], 1.0)
    scaler.step(optimizer)
    torch.testing.assert_close(p.detach(), torch.tensor([2.4, 3.2]), atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------ differentiable, capturable


def differentiable_sgd(lr, weights, grads, buffer, **options):
    p = weights.clone()
    optimizer = SGD([p], lr=lr, momentum=0.9, differentiable=True, **options)
    p.grad = grads
    optimizer.state[p]["momentum_buffer"] = buffer.clone()
    optimizer.step()
    return p, optimizer.state[p]["momentum_buffer"]


def differentiable_adam(lr, weights, grads, exp_avg, exp_avg_sq, **options):
    p = weights.clone()
    optimizer = Adam([p], lr=lr, differentiable=True, **options)
    p.grad = grads
    optimizer.state[p].update(
        step=torch.tensor(10.0, dtype=torch.float64),
        exp_avg=exp_avg.clone(),
        exp_avg_sq=exp_avg_sq.clone(),
        max_exp_avg_sq=exp_avg_sq.clone(),
    )
    optimizer.step()
    return p, optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]


@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"weight_decay": 0.1, "maximize": True}], ids=str)
def test_gradients_of_a_differentiable_step_of_sgd_are_correct(options):
    generator = torch.Generator().manual_seed(0)
    w, g, b = (torch.rand(3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3))
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: differentiable_sgd(*args, **options), (lr, w, g, b))


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"weight_decay": 0.1}], ids=str)
def test_gradients_of_a_differentiable_step_of_adam_are_correct(options):
    generator = torch.Generator().manual_seed(0)
    w, g, m, v = (torch.rand(3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(4))
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: differentiable_adam(*args, **options), (lr, w, g, m, v))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_capturable_keeps_scalars_as_tensors_and_reports_it(shape, monkeypatch):
    monkeypatch.setattr(dispatch, "CAPTURABLE_DEVICES", ("cpu",))
    params, plain = [parameter(), parameter(3.0)], [parameter(), parameter(3.0)]
    params.append(torch.tensor(2.0, requires_grad=True))
    plain.append(torch.tensor(2.0, requires_grad=True))
    lr = torch.full(shape, 0.1)
    optimizer, other = Adam(params, lr=lr, capturable=True, weight_decay=0.1), Adam(plain, lr=0.1, weight_decay=0.1)
    for _ in range(5):
        for p in (*params, *plain):
            p.grad = torch.ones_like(p)
        optimizer.step()
        other.step()
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q)
    assert {report.reason for report in optimizer.engine_report()} == {"auto: capturable=True keeps scalars as tensors"}
    with pytest.raises(EngineError) as caught:
        Adam([parameter()], capturable=True, engine="foreach").step()
    assert str(caught.value) == "capturable=True needs engine 'loop' (or 'auto'), not 'foreach'"


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad", "sgd"])
def test_fused_on_meta_parameters_raises_like_torch(name):
    classes = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad}
    messages = []
    for cls in (get_optimizer(name), classes.get(name, torch.optim.SGD)):
        module = torch.nn.Linear(3, 1, device="meta")
        optimizer = cls(module.parameters(), lr=0.1, fused=True)
        for p in module.parameters():
            p.grad = torch.empty_like(p)
        with pytest.raises(RuntimeError) as caught:
            optimizer.step()
        messages.append(str(caught.value))
        optimizer.zero_grad(set_to_none=True)
        optimizer.step()
    assert messages[0].startswith(messages[1].partition("[")[0])


def test_capturable_on_the_cpu_raises_like_torch():
    messages = []
    for cls in (Adam, torch.optim.Adam):
        p = parameter()
        p.grad = torch.ones_like(p)
        with pytest.raises(AssertionError) as caught:
            cls([p], capturable=True).step()
        assert torch.equal(p.detach(), parameter().detach())
        messages.append(str(caught.value))
    assert isinstance(RecordingError(""), EngineError)
    start = messages[1].partition("[")[0]
    assert start.startswith("If capturable=True")
    assert messages[0].startswith(start)


# ------------------------------------------------------------------------------------ changes between steps


@pytest.mark.parametrize("engine", ENGINES)
def test_replaced_data_of_parameters_and_replaced_states_are_used(engine):
    def train(replace_tensors: bool):
        params = [parameter(), parameter(5.0)]
        optimizer = Adam(params, lr=0.1, engine=engine)
        for step in range(6):
            for p in params:
                p.grad = torch.full_like(p, 0.5 + step)
            if replace_tensors and step == 3:
                for p in params:
                    p.data = p.data.clone()
                    for name, value in optimizer.state[p].items():
                        optimizer.state[p][name] = value.clone()
            if replace_tensors and step == 4:
                optimizer.state[params[0]]["step"].data = optimizer.state[params[0]]["step"].data.clone()
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer.step()
        return params, [optimizer.state[p]["step"].item() for p in params]

    (a, steps), (b, _) = train(True), train(False)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert steps == [6.0, 6.0]


def test_step_counts_are_views_of_one_vector_and_changes_are_detected():
    params = [parameter() for _ in range(3)]
    optimizer = Adam(params, engine="foreach")
    optimizer.step()
    steps = [optimizer.state[p]["step"] for p in params]
    assert len({t.untyped_storage().data_ptr() for t in steps}) == 1
    assert [(t.shape, t.dtype, t.item()) for t in steps] == [(torch.Size([]), torch.float32, 1.0)] * 3

    def step_counts_after_step():
        optimizer.step()
        return [optimizer.state[p]["step"].item() for p in params]

    steps[0].fill_(10.0)  # changed in place
    assert step_counts_after_step() == [11.0, 2.0, 2.0]
    steps[2].data = torch.tensor(30.0)  # its data replaced
    assert step_counts_after_step() == [12.0, 3.0, 31.0]
    optimizer.state[params[1]]["step"] = torch.tensor(20.0)  # replaced
    assert step_counts_after_step() == [13.0, 21.0, 32.0]
    del optimizer.state[params[1]]
    assert step_counts_after_step() == [14.0, 1.0, 33.0]


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_and_groups_may_be_added_and_removed_between_steps(engine):
    params = [parameter() for _ in range(3)]
    optimizer = Adam(params[:2], lr=0.1, engine=engine)
    optimizer.step()
    params[0].grad = None
    optimizer.step()
    optimizer.add_param_group({"params": params[2:], "lr": 0.2})
    params[0].grad = torch.ones(2)
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [2.0, 3.0, 1.0]
    assert params[2].tolist() == pytest.approx([0.8, -2.2])


@pytest.mark.parametrize("engine", ENGINES)
def test_dtype_of_a_module_may_change_between_steps(engine):
    model = nn.Linear(4, 2)
    optimizer = Adam(model.parameters(), lr=0.1, engine=engine)
    for dtype in (torch.float32, torch.float16, torch.float64):
        model.to(dtype)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert all(p.dtype == dtype and bool(p.isfinite().all()) for p in model.parameters())
    assert {state["exp_avg"].dtype for state in optimizer.state.values()} == {torch.float32}
    assert {state["step"].item() for state in optimizer.state.values()} == {3.0}


def test_engine_is_copied_but_not_loaded_from_a_checkpoint():
    for engine in ("auto", *ENGINES):
        optimizer = Adam([parameter()], engine=engine, state_dtype=torch.float64)
        duplicate = copy.deepcopy(optimizer)
        assert (duplicate.engine, duplicate.state_dtype) == (engine, torch.float64)
    file = io.BytesIO()
    torch.save(Adam([parameter()], foreach=True, capturable=True, engine="foreach").state_dict(), file)
    file.seek(0)
    loaded = Adam([parameter()], engine="loop")
    loaded.load_state_dict(torch.load(file, weights_only=True))
    group = loaded.param_groups[0]
    assert (loaded.engine, group["foreach"], group["capturable"]) == ("loop", None, False)
    loaded.step()
    assert [report.engine for report in loaded.engine_report()] == ["loop"]


def test_step_increments_the_autograd_version_counter():
    for engine in ENGINES:
        p = parameter()
        loss = (p * p).sum()
        SGD([p], engine=engine).step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_initial_value_of_a_state_may_be_a_hyperparameter():
    class InitFromOption(RuleOptimizer):
        states = (State("scale", init="start"), State("count", scalar=True, init=3.0))

        def __init__(self, params, lr=0.1, start=0.5, engine="auto"):
            super().__init__(params, {"lr": lr, "start": start}, engine=engine)

        @staticmethod
        def rule(p, g, scale, count, *, lr):
            return p - lr * scale * g, scale, count + 1

    for engine in ENGINES:
        p = parameter()
        optimizer = InitFromOption([p], start=2.0, engine=engine)
        optimizer.step()
        assert p.tolist() == pytest.approx([0.8, -2.2])
        assert optimizer.state[p]["count"].item() == 4.0


def test_algorithms_do_not_inherit_or_call_those_of_torch():
    import inspect

    for name in TORCH:
        cls = get_optimizer(name)
        assert [c for c in cls.__mro__ if c.__module__.startswith("torch.optim.")] == [torch.optim.Optimizer]
        source = inspect.getsource(inspect.getmodule(cls))
        assert not re.search(r"torch\.optim\.(?!Optimizer)|_functional|_fused|torch\._foreach", source)


def test_repr_contains_the_options_of_groups():
    assert "lr: 0.1" in repr(SGD([parameter()], lr=0.1))


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_are_freed_after_the_step(engine):
    p = torch.ones(3, requires_grad=True)
    optimizer = Adam([p], engine=engine)
    p.grad = torch.ones(3)
    gradient = weakref.ref(p.grad)
    optimizer.step()
    optimizer.zero_grad()
    assert gradient() is None


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("dtype", "state_dtype"), [(torch.float32, torch.bfloat16), (torch.float64, torch.float32)])
def test_narrower_state_dtype_does_not_round_the_parameters(engine, dtype, state_dtype):
    p = torch.full((3,), 1000.123, dtype=dtype, requires_grad=True)
    optimizer = Adam([p], lr=0.0, engine=engine, state_dtype=state_dtype)
    p.grad = torch.ones(3, dtype=dtype)
    before = p.detach().clone()
    optimizer.step()
    assert torch.equal(p, before)
    assert optimizer.state[p]["exp_avg"].dtype is state_dtype


def test_overlapping_parameters_are_stepped_by_engine_loop_like_in_torch():
    def run(cls, **options):
        base = torch.linspace(1, 2, 9, dtype=torch.float64)
        params = [base[:6].requires_grad_(), base[3:].requires_grad_(), torch.ones(2, dtype=torch.float64)]
        params[2].requires_grad_()
        optimizer = cls(params, lr=0.5, weight_decay=0.5, momentum=0.9, **options)
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
        return base, optimizer

    ours, optimizer = run(SGD)
    theirs, _ = run(torch.optim.SGD, foreach=False)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-14)
    assert [(r.engine, r.tensors) for r in optimizer.engine_report()] == [("loop", 2), ("numba", 1)]
    assert "shares memory" in optimizer.engine_report()[0].reason
    with pytest.raises(EngineError, match="shares memory with another parameter"):
        run(SGD, engine="foreach")


def test_loading_the_state_of_another_optimizer_raises():
    p = parameter()
    p.grad = torch.ones_like(p)
    adam = Adam([p])
    adam.step()
    with pytest.raises(HyperparameterError) as caught:
        SGD([p], momentum=0.9).load_state_dict(adam.state_dict())
    assert str(caught.value) == (
        "this is the state of another optimizer, with the keys exp_avg, exp_avg_sq, step; SGD keeps momentum_buffer"
    )


def test_scalar_states_have_the_dtype_of_torch():
    torch.set_default_dtype(torch.float64)
    try:
        for cls in (Adam, torch.optim.Adam):
            p = torch.ones(2, requires_grad=True)
            p.grad = torch.ones(2)
            optimizer = cls([p])
            for _ in range(2):
                optimizer.step()
            assert optimizer.state[p]["step"].dtype is torch.float64
            assert optimizer.state[p]["step"] == 2
    finally:
        torch.set_default_dtype(torch.float32)


def test_rule_that_branches_on_element_wise_values_raises():
    class Branches(RuleOptimizer):
        def __init__(self, params, lr=0.1, **options):
            super().__init__(params, {"lr": lr}, **options)

        @staticmethod
        def rule(p, g, *, lr):
            return p - lr * g if g > 0 else p

    p = parameter()
    p.grad = torch.ones_like(p)
    with pytest.raises(RuleError, match="a rule may branch on its flags"):
        Branches([p]).step()


def test_first_is_true_in_the_first_step_only_for_a_rule_with_scalar_states():
    class Counts(RuleOptimizer):
        states = (State("seen", scalar=True),)

        def __init__(self, params, lr=0.1, **options):
            super().__init__(params, {"lr": lr}, **options)

        @staticmethod
        def rule(p, g, seen, *, lr, first):
            return p - lr * g, seen + first

    for engine in ("loop", "foreach"):
        p = parameter()
        optimizer = Counts([p], engine=engine)
        for _ in range(3):
            p.grad = torch.ones_like(p)
            optimizer.step()
        assert optimizer.state[p]["seen"] == 1


# ------------------------------------------------------------------------------------ regressions


def test_checkpoint_with_options_out_of_range_can_be_loaded():
    for name, options, out_of_range in (
        ("sparse_adam", {}, {"lr": 0.0}),
        ("adam", {}, {"lr": -0.02}),
        ("sgd", {"momentum": 0.9, "nesterov": True}, {"momentum": 0.0}),
    ):
        optimizer = get_optimizer(name)([parameter()], **options)
        optimizer.param_groups[0].update(out_of_range)
        other = get_optimizer(name)([parameter()], **options)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert {key: other.param_groups[0][key] for key in out_of_range} == out_of_range


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("exp_avg", "text", HyperparameterTypeError, "Adam: exp_avg of parameter 0 in the state dict must be a tensor"),
        ("exp_avg", torch.zeros(3), ParameterError, r"has shape \(3,\), the parameter has \(2,\)"),
        ("step", "five", HyperparameterTypeError, "Adam: step of parameter 0 in the state dict must be a number"),
        ("step", torch.zeros(2), ParameterError, r"must be one number, got a tensor of shape \(2,\)"),
    ],
)
def test_loading_an_invalid_state_raises_and_changes_nothing(name, value, error, message):
    optimizer = Adam([parameter()])
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    saved = copy.deepcopy(before)
    saved["state"][0][name] = value
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(saved)
    after = optimizer.state_dict()
    assert all(torch.equal(after["state"][0][key], v) for key, v in before["state"][0].items())
    optimizer.step()


@pytest.mark.parametrize("engine", ENGINES)
def test_step_count_set_by_the_user_may_be_a_plain_number(engine):
    optimizer, other = (Adam([parameter()], engine=engine) for _ in range(2))
    for one, count in ((optimizer, 5), (other, torch.tensor(5.0))):
        one.step()
        p = one.param_groups[0]["params"][0]
        one.state[p]["step"] = count
        one.step()
    a, b = (one.param_groups[0]["params"][0].detach() for one in (optimizer, other))
    assert torch.equal(a, b)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["adam", "adadelta", "rmsprop"])
def test_gradient_whose_square_overflows_steps_like_in_torch(name, engine):
    torchs = {"adam": torch.optim.Adam, "adadelta": torch.optim.Adadelta, "rmsprop": torch.optim.RMSprop}[name]
    ends = []
    for cls, how in ((get_optimizer(name), {"engine": engine}), (torchs, {"foreach": False})):
        p = parameter(1.0, 1.0, dtype=torch.float16)
        optimizer = cls([p], lr=0.1, eps=1e-4, **how)
        for g in (300.0, 1.0, 1.0):
            p.grad = torch.full_like(p, g)
            optimizer.step()
        ends.append(p.detach())
    assert ends[1].isfinite().all()
    torch.testing.assert_close(ends[0], ends[1], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_average_of_asgd_recovers_from_infinity_while_its_weight_is_one(engine):
    p = parameter(1.0, 1.0)
    optimizer = get_optimizer("asgd")([p], engine=engine)
    optimizer.step()
    before = p.detach().clone()
    p.grad[0] = float("inf")
    optimizer.step()
    p.data.copy_(before)
    p.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(optimizer.state[p]["ax"], p.detach())


@pytest.mark.parametrize("name", ["adam", "adagrad", "asgd"])
def test_share_memory_before_the_first_step_creates_shared_states(name):
    optimizer, other = (get_optimizer(name)([parameter()]) for _ in range(2))
    optimizer.share_memory()
    for one in (optimizer, other):
        one.step()
    p, q = (one.param_groups[0]["params"][0] for one in (optimizer, other))
    assert torch.equal(p.detach(), q.detach())
    assert all(t.is_shared() for t in optimizer.state[p].values() if t.shape == p.shape)


def test_gradient_of_a_beta_is_continuous_at_zero():
    def slope(beta):
        w = torch.tensor([1.0, 2.0], requires_grad=True)
        beta = torch.tensor(beta, requires_grad=True)
        options = {"betas": (beta, torch.tensor(0.99)), "differentiable": True}
        optimizer = Adam([w.detach().requires_grad_()], lr=0.1, **options)
        p = optimizer.param_groups[0]["params"][0] = w.clone()
        for k in range(2):
            p.grad = torch.tensor([0.3 * (k + 1), -0.2 * (k + 1) ** 2])
            optimizer.step()
        p[0].backward()
        return float(beta.grad)

    assert slope(0.0) == pytest.approx(slope(1e-6), rel=1e-3)
