"""The command `optplug plot`: the learning rate of a training before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from optplug.cli.bench import check_writable
from optplug.cli.config_commands import ModelOption
from optplug.cli.plot_sources import ASSUMED_LR, PlotOptions, make_plot
from optplug.errors import OptplugError

if TYPE_CHECKING:  # this module imports torch
    from optplug.cli.lr_plot import LrPlot


def plot(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SCHEDULER|CONFIG...",
            help="Schedulers: cosine_annealing_lr (without arguments: those of an example), "
            "'step_lr:step_size=30,gamma=0.5', or as in a configuration "
            "'{name: step_lr, step_size: 30, warmup_steps: 5}'. Or files of YAML or JSON; - is standard input.",
            show_default=False,
        ),
    ],
    steps: Annotated[int | None, typer.Option(min=1, help="The optimizer steps of the training.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="The epochs of the training.")] = None,
    steps_per_epoch: Annotated[int | None, typer.Option(min=1, help="The optimizer steps of an epoch.")] = None,
    lr: Annotated[
        float | None, typer.Option(min=0, help=f"The base learning rate. Default: that of the file, else {ASSUMED_LR}.")
    ] = None,
    warmup: Annotated[
        str | None,
        typer.Option(help="A warmup of the named schedulers: optimizer steps, or the value of the key warmup."),
    ] = None,
    momentum: Annotated[bool, typer.Option("--momentum", help="Draw the momentum too.")] = False,
    log: Annotated[bool, typer.Option("--log", help="Draw the learning rate on a logarithmic axis.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write a picture (.png, .svg, .pdf, or another format of matplotlib) instead."
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers to this file, as JSON.")] = None,
    model: ModelOption = None,
) -> None:
    """Draw the learning rate before training: of schedulers, or of the parameter groups of a configuration file.

    The schedulers are those of a training, stepped as in a training. If the length of the training is not given, the
    axis is as long as the schedules, in the unit in which they are stepped.
    """
    from optplug.engines._torch_compat import without_compiler

    options = PlotOptions(steps, epochs, steps_per_epoch, lr, warmup, momentum, log, model)
    try:
        for path in (output, json):
            if path is not None:
                check_writable(path)
        if output is not None:
            from optplug.bench.plot import check_plot_path

            check_plot_path(output)
        with without_compiler():
            drawn = make_plot(sources, options)
        if json is not None:
            json.write_text(drawn.to_json())
        if output is not None:
            from optplug.cli.lr_plot import write_picture

            write_picture(drawn, output)
        else:
            _print(drawn)
    except (OptplugError, OSError) as error:
        for each in error.errors if isinstance(error, OptplugError) else (error,):
            typer.echo(f"error: {each}", err=True)
        raise typer.Exit(1) from None


def _print(drawn: LrPlot) -> None:
    from optplug.cli.lr_plot import plot_as_text

    console = Console(highlight=False, emoji=False)
    braille = console.encoding.lower().startswith("utf")
    console.print(plot_as_text(drawn, console.width, braille=braille), end="", soft_wrap=True)
