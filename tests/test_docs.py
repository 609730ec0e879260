"""Tests of the documentation: names, links, code blocks, and the comparison with torch in torch.md."""

from __future__ import annotations

import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from omegaconf import OmegaConf

import optplug
import optplug.lightning
from optplug import errors, testing
from optplug.cli.new import TARGETS, new_project, project_files
from optplug.config import reference
from optplug.config.build import parse_and_check
from optplug.config.form import TABLES
from optplug.config.reference import update_tables
from optplug.registry import Registry, hookspecs, registry
from optplug.registry.specs import OptimizerSpec, SchedulerSpec, snake_case
from optplug.testing import optimizers, schedulers
from support import LIGHTNING, QUIET, TORCH, first_party, lines_with_type_errors, torch_has

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def code_blocks(page: str, language: str) -> list[str]:
    """Return the fenced code blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def test_reference_lists_every_public_name() -> None:
    missing = [name for name in optplug.__all__ if name not in PAGES["reference.md"]]

    assert missing == []


PUBLIC_NAMES = sorted(set(re.findall(r"`(optplug(?:\.\w+)+)", PAGES["reference.md"])))
PUBLIC_MODULES = ("errors", "lightning", "ops", "pytorch_lightning", "ranges", "schema", "shims", "testing")


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_name_of_the_reference_exists(name: str) -> None:
    assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_public_modules_can_be_imported_by_their_names(module: str) -> None:
    code = f"import optplug.{module} as found, optplug; assert found is optplug.{module}; from optplug import {module}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("hook", ["optplug_optimizers", "optplug_schedulers"])
def test_hook_is_documented_with_its_signature(hook: str) -> None:
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")

    assert f"def {hook}{signature}" in PAGES["plugins.md"]


@pytest.mark.parametrize("spec", [OptimizerSpec, SchedulerSpec])
def test_capabilities_are_documented(spec: type[OptimizerSpec]) -> None:
    for word in spec.CAPABILITIES:
        assert f"`{word}`" in PAGES["plugins.md"]


def test_tables_of_the_configuration_page_are_current() -> None:
    page = PAGES["configuration.md"]
    assert set(re.findall(r"<!-- table: (.+) -->", page)) == set(reference.TABLES)
    assert update_tables(page) == page, "run: python -m optplug.config.reference docs/configuration.md"


@pytest.mark.parametrize("kind", TABLES)
def test_reserved_keys_are_documented(kind: str) -> None:
    section = PAGES["configuration.md"].partition(f"\n## {kind}\n")[2].partition("\n## ")[0]
    for key in TABLES[kind]:
        assert f"| `{key}` |" in section


def test_ops_are_documented() -> None:
    for op in optplug.ops.__all__:
        assert re.search(rf"\b{op}\b", PAGES["rules.md"])


def test_errors_derive_from_optplug_error_and_builtin() -> None:
    own = [
        c
        for c in vars(errors).values()
        if inspect.isclass(c) and issubclass(c, Exception) and c.__module__ == errors.__name__
    ]
    classes = [c for c in own if c is not errors.OptplugError]

    assert classes
    for cls in classes:
        assert issubclass(cls, errors.OptplugError)
        assert issubclass(cls, (ValueError, TypeError, LookupError, RuntimeError, ImportError, AssertionError))


def test_linked_pages_exist() -> None:
    for page, text in PAGES.items():
        folder = ROOT if page == "README.md" else ROOT / "docs"
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert (folder / target).exists(), f"{page} links to {target}"


def test_named_files_exist_and_pages_are_not_empty() -> None:
    pages = {**PAGES, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text()}
    for page, text in pages.items():
        assert len(text.splitlines()) > 10, page
        for path in re.findall(r"\b(?:tests|benchmarks|examples|plugins)/[\w/]+\.\w+", text):
            assert (ROOT / path).exists(), f"{page} names {path}"


def test_make_commands_of_the_readme_are_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?\bmake ([a-z-]+)`?", PAGES["README.md"]):
        assert f"\n{target}:" in makefile


def test_plugin_of_the_readme_is_registered_and_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = (block for block in code_blocks("README.md", "python") if "class QHM" in block)
    module = ModuleType("qhm_plugin")
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, "qhm_plugin", module)
    registry = Registry([EntryPoint("qhm-plugin", "qhm_plugin", "optplug")])

    assert [str(q) for q in registry.quarantined] == []
    assert registry.names("optimizer") == ["qhm"]
    qhm = registry.get("optimizer", "QHM")
    testing.check_optimizer(qhm)


@pytest.fixture
def plugin_of_block(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Registers a block of write_a_plugin.md, selected by a word of it, as the plugin `snippet`."""

    def register(word: str) -> ModuleType:
        (source,) = (block for block in code_blocks("write_a_plugin.md", "python") if word in block)
        module = ModuleType("snippet")
        exec(source, vars(module))
        monkeypatch.setitem(sys.modules, "snippet", module)
        points = (*metadata.entry_points(group="optplug"), EntryPoint("snippet", "snippet", "optplug"))
        monkeypatch.setattr(registry, "_points", points)
        registry.reload()
        assert [str(q) for q in (*registry.quarantined, *registry.rejected) if q.plugin.name == "snippet"] == []
        return module

    yield register
    monkeypatch.undo()
    registry.reload()


def train_by_name(configuration: dict[str, Any]) -> torch.optim.Optimizer:
    """Take four steps with a module that is trained by name, and return the optimizer."""
    module = torch.nn.Linear(3, 2)
    start = [p.detach().clone() for p in module.parameters()]
    optimizer, _ = optplug.create_optimizer_and_scheduler(module, configuration, epochs=1, steps_per_epoch=4)
    for _ in range(4):
        module(torch.ones(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not torch.equal(p, before) for p, before in zip(module.parameters(), start, strict=True))
    return optimizer


def test_rule_of_the_page_conforms(plugin_of_block: Any) -> None:
    module = plugin_of_block("class SignMomentum")
    assert registry.get("optimizer", "sign-momentum") is module.SignMomentum
    testing.check_optimizer("sign_momentum")


def test_spec_of_the_page_is_that_of_optplug_new(plugin_of_block: Any) -> None:
    plugin_of_block('summary="averaged gradients"')
    spec = registry.resolve("optimizer", "sign_descent").spec
    written = project_files(new_project("Sign Descent", "class"), "class")["sign_descent/__init__.py"]
    names: dict[str, Any] = {}
    exec(written, names)
    assert names["optplug_optimizers"]() == [spec]


def test_specs_of_other_classes_on_the_page_train(plugin_of_block: Any) -> None:
    plugin_of_block("their_ranger")
    ranger = train_by_name({"name": "their_ranger", "num_iterations": "auto"})
    lion = train_by_name({"name": "their_lion", "lr": 0.01})

    assert [type(each).__module__.partition(".")[0] for each in (ranger, lion)] == ["pytorch_optimizer", "lion_pytorch"]


def test_wrapper_and_modes_of_the_page_train(plugin_of_block: Any) -> None:
    plugin_of_block("their_sam")
    (configuration,) = (block for block in code_blocks("write_a_plugin.md", "yaml") if "their_sam" in block)
    module, inputs = torch.nn.Linear(3, 2), torch.ones(5, 3)
    start = module.weight.detach().clone()
    optimizer, _ = optplug.create_optimizer_and_scheduler(module, **yaml.safe_load(configuration))

    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        loss = module(inputs).square().sum()
        loss.backward()
        return loss

    optimizer.step(evaluate)
    assert type(optimizer).__name__ == "SAM"
    assert not torch.equal(module.weight, start)

    schedule_free = optplug.create_optimizer("their_schedule_free", module)
    schedule_free.train()
    for _ in range(2):
        evaluate()
        schedule_free.step()
    trained = module.weight.detach().clone()
    schedule_free.eval()
    assert not torch.equal(module.weight, trained)
    assert type(schedule_free).__name__ == "AdamWScheduleFree"


def test_values_out_of_the_ranges_of_the_page_are_refused(plugin_of_block: Any) -> None:
    plugin_of_block("class SignMomentum")
    with pytest.raises(errors.OptplugError, match=r"^optimizer\.beta: .*1\.5"):
        parse_and_check({"name": "sign_momentum", "beta": 1.5})


def test_factory_of_the_page_trains_and_refuses_wrong_arguments(plugin_of_block: Any) -> None:
    plugin_of_block("def nesterov")
    optimizer = train_by_name(yaml.safe_load("{name: Nesterov, lr: 0.1, momentum: 0.8}"))
    (group,) = optimizer.param_groups

    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.1, 0.8, True)
    with pytest.raises(errors.ConfigError, match=r"optimizer\.momentun: .*did you mean 'momentum'\?"):
        parse_and_check({"name": "nesterov", "momentun": 0.9})
    for wrong in ("fast", -1):
        with pytest.raises(errors.OptplugError, match=rf"^optimizer\.lr: .*{wrong}"):
            parse_and_check({"name": "nesterov", "lr": wrong})


def test_names_of_the_page_are_converted_as_it_says() -> None:
    section = PAGES["write_a_plugin.md"].partition("\n## Names\n")[2].partition("\n## ")[0]
    pairs = re.findall(r"`(\w+)`\s+becomes\s+`(\w+)`", section)

    assert len(pairs) == 4
    assert [snake_case(cls) for cls, _ in pairs] == [name for _, name in pairs]


def test_kinds_and_files_of_the_page_are_those_of_optplug_new() -> None:
    page = PAGES["write_a_plugin.md"]
    for kind in TARGETS:
        assert f"| `{kind}`" in page
    for path in project_files(new_project("Sign Descent", "rule"), "rule"):
        assert f"`{path.removesuffix('/test_sign_descent.py')}`" in page or path == "README.md"


def test_example_on_the_page_is_that_of_the_repository() -> None:
    (entry_point,) = code_blocks("write_a_plugin.md", "toml")
    assert entry_point in (ROOT / "examples" / "lion_plugin" / "pyproject.toml").read_text()


def test_test_of_the_page_is_that_of_optplug_new() -> None:
    (block,) = (block for block in code_blocks("write_a_plugin.md", "python") if "parametrize" in block)
    written = project_files(new_project("sign_descent", "rule"), "rule")["tests/test_sign_descent.py"]
    assert block.partition("\n\n\n")[2] in written


def test_all_promises_are_documented_with_their_meaning() -> None:
    documented = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGES["check.md"].partition("## Other")[0], re.MULTILINE)
    promises = [(promise.name, promise.meaning) for promise in optimizers.PROMISES]
    promises += [(promise.__name__, str(promise.__doc__).strip()) for promise in schedulers.PROMISES]
    assert documented == promises


def test_code_of_the_plugin_page_collects_checks() -> None:
    (block,) = (block for block in code_blocks("plugins.md", "python") if "parametrize" in block)
    names: dict[str, object] = {}
    exec(block.replace('"qhm"', '"adam"'), names)
    (mark,) = names["test_qhm_conforms"].pytestmark
    argument, checks = mark.args

    assert argument == "check"
    assert checks
    checks[0]()
    calls = re.findall(r"`(testing\.(?:check_scheduler|scheduler_checks)\(.+?\))`", PAGES["plugins.md"])
    assert len(calls) == 2
    for call in calls:
        eval(call, {"testing": testing})


@pytest.mark.parametrize("example", ["plain loop", "plateau", "closure", "Fabric", "Hugging Face"])
def test_training_loops_of_the_documentation_run(example: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if example == "Hugging Face":
        for package in ("transformers", "accelerate"):
            pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    plain, resume, plateau, one_optimizer, with_closure, fabric, trainer = code_blocks("training_loops.md", "python")
    blocks = {
        "plain loop": [plain, resume, one_optimizer],
        "plateau": [plateau],
        "closure": [plain, with_closure],
        "Fabric": [plain, fabric],
        "Hugging Face": [plain, trainer],
    }[example]

    class Model(torch.nn.Linear):
        """A linear layer that returns what the Trainer of Hugging Face expects if it is called with keywords."""

        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> object:
            y = super().forward(x)
            return y if labels is None else {"loss": (y - labels).square().mean(), "logits": y}

    data = [(torch.ones(2), torch.ones(1)) for _ in range(8)]
    names: dict[str, object] = {"torch": torch, "model": Model(2, 1), "loader": torch.utils.data.DataLoader(data, 2)}
    names["dataset"] = [{"x": x, "labels": y} for x, y in data]
    names["optplug"] = optplug
    for block in blocks:
        exec(block, names)
        optimizer, scheduler = names["optimizer"], names["scheduler"]
        assert isinstance(optimizer, torch.optim.Optimizer)
        if block is plateau:
            assert (scheduler.last_epoch, scheduler.warmup_steps, scheduler.steps_taken) == (5, 2, 2)  # type: ignore[attr-defined]
            continue
        if block is with_closure:
            assert optimizer.state_dict()["state"][0]["func_evals"] > 1
            continue
        assert optimizer.param_groups[1]["weight_decay"] == 0
        if block is not one_optimizer:
            assert scheduler.T_max == scheduler.last_epoch == 20  # type: ignore[attr-defined]
            assert (scheduler.warmup_steps, scheduler.steps_taken) == (2, 2)  # type: ignore[attr-defined]


def test_training_loops_of_the_documentation_pass_a_strict_type_check(tmp_path: Path, pytestconfig: Any) -> None:
    *blocks, _ = code_blocks("training_loops.md", "python")  # transformers may be absent
    declarations = """# mypy: disable-error-code="no-untyped-call"
import torch  # some of its functions are not typed
from torch import Tensor

model = torch.nn.Linear(2, 1)
data: list[tuple[Tensor, Tensor]] = []
loader: torch.utils.data.DataLoader[tuple[Tensor, Tensor]] = torch.utils.data.DataLoader(data)  # type: ignore[arg-type]
"""
    code = declarations + "\n".join(blocks)
    lines, output = lines_with_type_errors(code, tmp_path, pytestconfig)
    assert not lines, output


def test_manual_step_with_a_closure_of_the_documentation_trains() -> None:
    (block,) = [block for block in code_blocks("lightning.md", "python") if "optimizer.step(closure)" in block]
    names: dict[str, Any] = {"pl": pl, "torch": torch}
    exec(block, names)
    module = names["Manual"](torch.nn.Linear(2, 1))
    before = module.model.weight.detach().clone()
    trainer = pl.Trainer(**QUIET, callbacks=[optplug.lightning.ConfigureOptimizers("lbfgs", verbose=False)])
    trainer.fit(module, torch.utils.data.DataLoader([(torch.ones(2), torch.ones(1))]))
    assert not torch.equal(module.model.weight, before)


@pytest.mark.parametrize("from_omegaconf", [False, True])
@pytest.mark.parametrize("subclass", ["of its own", "that names its arguments", "with any arguments"])
@pytest.mark.parametrize("example", ["Classifier", "SmallClassifier"])
def test_module_of_the_documentation_is_loaded_from_a_checkpoint(
    example: str, subclass: str, from_omegaconf: bool, tmp_path: Path
) -> None:
    blocks = [block for block in code_blocks("lightning.md", "python") if "save_hyperparameters" in block]
    names: dict[str, Any] = {"pl": pl, "torch": torch, "optplug": optplug, "Mapping": Mapping, "Any": Any}
    for block in blocks:
        exec(block, names)
    data = torch.utils.data.DataLoader([torch.ones(4) for _ in range(4)])

    class Trained(names[example]):  # type: ignore[misc]
        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.layer(batch).sum()

    class WithDropout(Trained):
        def __init__(self, dropout: float = 0.5, **others: Any) -> None:
            super().__init__(**others)
            self.save_hyperparameters("dropout")

    class WithAny(Trained):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    cls = {"of its own": Trained, "that names its arguments": WithDropout, "with any arguments": WithAny}[subclass]
    config = {
        "optimizer": {"name": "adam", "lr": 0.25},
        "scheduler": {"name": "step_lr", "step_size": 3},
        "param_groups": ["no_decay", {"match": "layer.weight", "lr_mult": 2}],
    }
    interpolated = {**config, "optimizer": {"name": "adam", "lr": "${lr}"}}
    given = OmegaConf.create({"lr": 0.25, "optim": interpolated}).optim if from_omegaconf else config
    if example == "SmallClassifier":
        arguments, expected = ({key: one[key] for key in ("optimizer", "scheduler")} for one in (given, config))
        lrs = [0.025]
    else:
        arguments, expected = {"optim": given, "width": 3}, {"optim": config, "width": 3}
        lrs = [0.05, 0.025]
    module = cls(**arguments)
    trainer = pl.Trainer(**QUIET)
    trainer.fit(module, data)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == lrs
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    # Lightning before 2.6 passes `weights_only` on to the class.
    loaded = cls.load_from_checkpoint(tmp_path / "last.ckpt", **({"weights_only": True} if LIGHTNING >= (2, 6) else {}))
    if cls is WithDropout:
        expected["dropout"] = 0.5
    assert saved == dict(loaded.hparams) == expected
    pl.Trainer(**QUIET).fit(loaded, data)


def test_rule_in_the_documentation_is_the_rule_of_adam() -> None:
    (block,) = (block for block in code_blocks("rules.md", "python") if "class Adam" in block)
    rule = inspect.getsource(optplug.get_optimizer("adam").rule)
    for line in block.partition("def rule")[2].splitlines()[1:4]:
        assert line.strip() in rule


def test_muon_of_the_documentation_takes_the_steps_of_torch() -> None:
    (block,) = (block for block in code_blocks("rules.md", "python") if "class Muon" in block)
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(block, names)
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((4, 5), (5, 4), (4, 5))]
    grads = [[torch.randn_like(p) for p in start] for _ in range(3)]

    def train(make: Any) -> tuple[Any, list[torch.Tensor]]:
        params = [torch.nn.Parameter(p.clone()) for p in start]
        optimizer = make(params)
        for step in grads:
            for p, g in zip(params, step, strict=True):
                p.grad = g.clone()
            optimizer.step()
        return optimizer, [p.detach() for p in params]

    optimizer, trained = train(names["Muon"])
    (report,) = optimizer.engine_report()
    assert str(report).replace("3 tensors, 60", "2 tensors, 40") in PAGES["rules.md"]
    expected = train(lambda params: names["Muon"](params, engine="loop"))[1]
    if TORCH >= (2, 9):
        expected = train(lambda params: torch.optim.Muon(params, lr=0.02, weight_decay=0.0))[1]
    for got, p in zip(trained, expected, strict=True):
        torch.testing.assert_close(got, p, rtol=0, atol=2e-3)  # the iteration is computed in bfloat16


def test_optimizer_with_a_state_of_another_shape_in_the_documentation() -> None:
    muon, whitened = (block for block in code_blocks("rules.md", "python") if "@matrix" in block)
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(muon, names)
    exec(whitened, names)
    g = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    for dtype, atol in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        for engine in ("loop", "foreach", "numba"):
            p = torch.zeros(3, 5, dtype=dtype, requires_grad=True)
            p.grad = g.to(dtype)
            names["Whitened"]([p], lr=0.1, beta=0.0, engine=engine).step()
            update = -p.detach().float() / 0.1
            torch.testing.assert_close(update @ update.mT, torch.eye(3), rtol=0, atol=atol)


def test_class_docstrings_mention_every_argument() -> None:
    for kind in ("optimizer", "scheduler"):
        for name in first_party(kind):
            cls = getattr(optplug, f"get_{kind}")(name)
            for argument in inspect.signature(cls).parameters:
                assert re.search(rf"\b{argument}\b", cls.__doc__), f"{cls.__name__} does not document {argument}"


def test_version_is_the_version_of_the_distribution() -> None:
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert declared is not None
    assert optplug.__version__ == declared[1]


# ---------------------------------------------------------------- optimizers.md


def test_every_schedule_has_a_section_with_a_valid_example() -> None:
    page = PAGES["schedules.md"]
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == sorted(optplug.list_schedulers("optplug-schedules:*"))
    for name, section in sections.items():
        (example,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
        scheduler = yaml.safe_load(example)["scheduler"]
        assert scheduler["name"] == name
        parse_and_check({"name": "sgd", "lr": 0.1}, scheduler)


def test_newer_optimizers_are_listed_with_their_arguments_and_defaults() -> None:
    table = PAGES["optimizers.md"].partition("| name |")[2].partition("\n\n")[0]
    listed = {name: re.findall(r"`(\w+=[^`]+)`", cells[0]) for name, cells in rows(f"| name |{table}").items()}

    assert list(listed) == optplug.list_optimizers("optplug-modern:*")
    shared = inspect.signature(optplug.RuleOptimizer).parameters
    for name, documented in listed.items():
        own = [p for key, p in arguments(optplug.get_optimizer(name)).items() if key not in shared]
        assert documented == [f"{p.name}={p.default!r}" for p in own], name


# ---------------------------------------------------------------- torch.md

SECTIONS = re.findall(r"\n### (\w+) \(`(\w+)`\)\n\n(.*?)(?=\n\n|\Z)", PAGES["torch.md"] + "\n\n", re.DOTALL)


def rows(table: str) -> dict[str, list[str]]:
    """Return the rows of a Markdown table: by the first column, the other columns."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {first.strip("`"): rest for first, *rest in cells}


def arguments(cls: type) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class, without `verbose` of torch's schedulers, which torch has removed after 2.6."""
    found = {k: p for k, p in inspect.signature(cls).parameters.items() if k not in ("params", "optimizer")}
    if TORCH < (2, 8) and cls.__module__.startswith("torch.optim.lr_scheduler"):
        assert found.pop("verbose").default == "deprecated"
    return found


def both_classes(name: str) -> tuple[type, type]:
    """Return the class of optplug and the class of torch."""
    kind = "optimizer" if name in first_party("optimizer") else "scheduler"
    ours = getattr(optplug, f"get_{kind}")(name)
    return ours, getattr(torch.optim, ours.__name__, None) or getattr(torch.optim.lr_scheduler, ours.__name__)


def test_comparison_has_every_documented_class() -> None:
    names = {name for _, name, _ in SECTIONS}

    assert len(names) == len(SECTIONS)
    schedulers = optplug.list_schedulers("optplug-schedules:*")
    in_torch = {n for n in schedulers if hasattr(torch.optim.lr_scheduler, optplug.get_scheduler(n).__name__)}
    assert names == {*optplug.list_optimizers("optplug-classic:*"), *in_torch} - {"adamw"}


@pytest.mark.parametrize(("title", "name", "table"), SECTIONS, ids=[name for _, name, _ in SECTIONS])
def test_comparison_has_correct_arguments_and_defaults(title: str, name: str, table: str) -> None:
    ours, theirs = both_classes(name)
    documented = rows(table)

    assert ours.__name__ == title
    assert set(documented) == {*arguments(ours), *arguments(theirs), *(["verbose"] if "Plateau" in title else [])}
    for column, cls in ((1, theirs), (2, ours)):
        for argument, cells in documented.items():
            if cls is theirs and not torch_has(name, argument):
                assert argument not in arguments(theirs)
                continue
            parameter = arguments(cls).get(argument)
            default = None if parameter is None else parameter.default
            shown = "-" if parameter is None else "required" if default is inspect.Parameter.empty else repr(default)
            assert cells[column] == shown, f"{argument} of {cls}"


@pytest.mark.parametrize("name", [name for _, name, _ in SECTIONS])
def test_defaults_and_positions_equal_torch(name: str) -> None:
    ours, theirs = both_classes(name)
    positional = [k for k, p in arguments(theirs).items() if p.kind is p.POSITIONAL_OR_KEYWORD]

    assert list(arguments(ours))[: len(positional)] == positional
    for argument, parameter in arguments(theirs).items():
        assert arguments(ours)[argument].default == parameter.default, argument


@pytest.mark.parametrize(("name", "table"), [(name, table) for _, name, table in SECTIONS])
def test_documented_ranges_equal_checked_ranges(name: str, table: str) -> None:
    cls, _ = both_classes(name)
    own = {r.name: r.words for r in getattr(cls, "ranges", ())}
    for argument, (*_, allowed) in rows(table).items():
        if argument in own:
            assert allowed.startswith(own[argument]), argument
