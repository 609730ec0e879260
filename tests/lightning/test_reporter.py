"""Lines for the user: through the logger `optplug`, once, with the levels and handlers that the program has set."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from optplug.errors import ConfigTypeError
from optplug.lightning.reporter import Reporter
from support import QUIET, SGD, printed_lines

LOGGER = logging.getLogger("optplug")
ROOT = logging.getLogger()
CURSOR_MOVEMENT = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n")


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    before = [(logger, logger.level, list(logger.handlers), logger.propagate) for logger in (LOGGER, ROOT)]
    yield
    logging.disable(logging.NOTSET)
    for logger, level, handlers, propagate in before:
        logger.level, logger.handlers, logger.propagate = level, handlers, propagate
        logger.setLevel(level)


def report(text: str = "100 % of the lines", rank: int = 0) -> None:
    Reporter().report(SimpleNamespace(is_global_zero=rank == 0), text)


@pytest.fixture
def root_handler() -> Any:
    """A function that gives the root logger a handler of a stream, as `logging.basicConfig` does."""

    def add(stream: Any) -> logging.Handler:
        ROOT.setLevel(logging.INFO)
        ROOT.addHandler(handler := logging.StreamHandler(stream))
        handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
        return handler

    return add


# -------------------------------------------------------------------------------------------------- Levels and handlers


def test_line_is_printed_and_logged_once_by_default(capsys: Any, caplog: Any) -> None:
    for _ in range(2):
        report()
    assert capsys.readouterr() == ("optplug: 100 % of the lines\n" * 2, "")
    assert caplog.record_tuples == [("optplug", logging.INFO, "100 % of the lines")] * 2
    assert not LOGGER.handlers
    assert LOGGER.level == logging.NOTSET


def test_other_ranks_report_nothing(capsys: Any, caplog: Any) -> None:
    report(rank=1)
    assert not capsys.readouterr().out + caplog.text


@pytest.mark.parametrize(
    ("level", "root_level", "disabled", "shown"),
    [
        (logging.WARNING, None, None, False),
        (logging.INFO, logging.ERROR, None, True),
        (logging.DEBUG, None, None, True),
        (None, logging.WARNING, None, True),
        (None, logging.DEBUG, None, True),
        (None, logging.ERROR, None, False),
        (None, None, logging.INFO, False),
        (logging.INFO, None, logging.CRITICAL, False),
    ],
    ids=str,
)
def test_levels_silence_lines(
    capsys: Any, caplog: Any, level: Any, root_level: Any, disabled: Any, shown: bool
) -> None:
    LOGGER.setLevel(level or logging.NOTSET)
    ROOT.setLevel(root_level or logging.WARNING)
    logging.disable(disabled or logging.NOTSET)
    report("a line")
    assert ("a line" in capsys.readouterr().out, "a line" in caplog.text) == (shown, shown)


def test_filter_of_the_logger_silences_lines(capsys: Any, caplog: Any) -> None:
    LOGGER.addFilter(reject := lambda record: False)
    try:
        report()
    finally:
        LOGGER.removeFilter(reject)
    assert not capsys.readouterr().out + caplog.text


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_console_handler_of_root_shows_the_line_instead(capsys: Any, root_handler: Any, name: str) -> None:
    root_handler(getattr(sys, name))
    report()
    captured = capsys.readouterr()
    assert captured.out + captured.err == "optplug INFO 100 % of the lines\n"
    assert getattr(captured, name.removeprefix("std"))


def test_console_handler_with_a_higher_level_shows_no_line(capsys: Any, root_handler: Any) -> None:
    root_handler(sys.stderr).setLevel(logging.WARNING)
    report()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("root_level", "level", "shown"),
    [(logging.WARNING, None, False), (logging.WARNING, logging.INFO, True), (logging.NOTSET, None, True)],
    ids=["root", "logger", "none"],
)
def test_level_of_root_with_a_console_handler_applies(
    capsys: Any, root_handler: Any, root_level: int, level: Any, shown: bool
) -> None:
    root_handler(sys.stderr)
    ROOT.setLevel(root_level)
    LOGGER.setLevel(level or logging.NOTSET)
    report()
    assert capsys.readouterr() == ("", "optplug INFO 100 % of the lines\n" if shown else "")


def test_line_is_also_printed_if_root_writes_to_a_file_only(capsys: Any, root_handler: Any) -> None:
    root_handler(file := io.StringIO())
    report("a line")
    assert (capsys.readouterr().out, file.getvalue()) == ("optplug: a line\n", "optplug INFO a line\n")


def test_handler_of_the_logger_gets_the_line_instead(capsys: Any) -> None:
    LOGGER.addHandler(logging.StreamHandler(file := io.StringIO()))
    report("a line")
    assert (capsys.readouterr().out, file.getvalue()) == ("", "a line\n")


def test_logger_without_propagation_prints_nothing(capsys: Any) -> None:
    LOGGER.propagate = False
    report()
    assert not capsys.readouterr().out


def test_level_set_during_a_fit_silences_the_remaining_lines(fit: Any, scripted_module: type, capsys: Any) -> None:
    class Module(scripted_module):
        def on_train_start(self) -> None:
            LOGGER.setLevel(logging.WARNING)

    plateau = {"name": "reduce_lr_on_plateau", "patience": 0}
    fit(SGD, plateau, module=Module(val={"val_loss": [1.0, 2.0, 3.0]}), verbose=True)
    lines = printed_lines(capsys)
    assert any("optimizer sgd" in line for line in lines)
    assert not any("learning rate" in line or line.startswith("plateau") for line in lines)


# ---------------------------------------------------------------------------------------------------------- `verbose`


@pytest.mark.parametrize("verbose", [True, False])
def test_configure_optimizers_has_verbose(
    self_configured_module: type, trainer: Any, capsys: Any, verbose: bool
) -> None:
    trainer(max_epochs=1).fit(self_configured_module({"optimizer": SGD, "verbose": verbose}))
    assert bool(printed_lines(capsys)) == verbose


def test_verbose_of_configure_optimizers_is_a_flag(self_configured_module: type, trainer: Any) -> None:
    with pytest.raises(ConfigTypeError, match="verbose: must be True or False"):
        trainer(max_epochs=1).fit(self_configured_module({"optimizer": SGD, "verbose": "no"}))


@pytest.mark.parametrize("verbose", ["true", "false"])
def test_command_line_has_verbose(
    optplug_lightning: Any, scripted_module: type, capsys: Any, monkeypatch: pytest.MonkeyPatch, verbose: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    arguments = [f"--trainer.{key}={value}" for key, value in {**QUIET, "max_epochs": 1}.items()]
    for subcommand, options, text in (("fit", ["--optimizer=sgd"], "optplug: "), ("test", [], "test_loss")):
        capsys.readouterr()
        args = [subcommand, "--seed_everything=0", *arguments, *options, f"--verbose={verbose}"]
        optplug_lightning.OptplugCLI(scripted_module, args=args, save_config_callback=None)
        assert (text in capsys.readouterr().out) == (verbose == "true")


# ------------------------------------------------------------------------------------------------------- Progress bars


@pytest.mark.parametrize("handler", [False, True], ids=["printed", "handler"])
def test_line_does_not_share_a_line_with_a_bar_of_tqdm(capsys: Any, root_handler: Any, handler: bool) -> None:
    tqdm = pytest.importorskip("tqdm").tqdm
    if handler:
        root_handler(sys.stderr if handler else None)
    with tqdm(total=10, file=sys.stderr, ascii=True) as bar:
        bar.update(5)
        bar.refresh()
        report("a line")
    captured = capsys.readouterr()
    if handler:
        before, _, after = captured.err.partition("optplug INFO a line\n")
        assert re.search(r"\r *\r$", before)  # the bar is cleared
        assert "5/10" in after  # and shown again
    else:
        assert captured.out == "optplug: a line\n"
        assert re.search(r"\r *\r", captured.err)


def test_handler_writes_through_the_stream_of_rich_while_a_bar_is_shown(capsys: Any, root_handler: Any) -> None:
    from rich.console import Console
    from rich.progress import Progress

    stream = sys.stderr
    handler = root_handler(stream)
    with Progress(console=Console(file=stream, force_terminal=True), auto_refresh=False) as progress:
        progress.add_task("training")
        progress.refresh()
        report("a line")
        assert handler.stream is stream
    lines = CURSOR_MOVEMENT.sub("\n", capsys.readouterr().err).splitlines()
    assert "optplug INFO a line" in lines
    assert not any("a line" in line and "training" in line for line in lines)


def test_all_lines_are_printed_beside_the_default_bar(pl: Any, fit: Any, optplug_lightning: Any, capsys: Any) -> None:
    callbacks = [optplug_lightning.ConfigureOptimizers(SGD), pl.callbacks.TQDMProgressBar()]
    fit(SGD, callbacks=callbacks, enable_progress_bar=True, num_sanity_val_steps=0)
    lines = CURSOR_MOVEMENT.sub("\n", capsys.readouterr().out).splitlines()
    assert "optplug: no schedule: the learning rate is constant" in lines
