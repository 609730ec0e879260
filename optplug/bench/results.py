"""What a run found, as data, to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optplug.errors import ConfigError, describe

FORMAT = 1


@dataclass(frozen=True)
class Timing:
    """The steps of one path, in seconds.

    Attributes:
        path: `optplug`, `limit`, or torch's: `loop`, `foreach`, `fused`, `compile`.
        median, lower, upper: of all rounds, and the quartiles. rounds: how many.
        first: the first two steps of a fresh optimizer. cold: in a fresh process, so that they include what a program
            pays once: imports on the first step, compilation.
        extra_bytes: what a later step holds at its peak beyond what it found, torch's memory and Python's together.
    """

    path: str
    median: float
    lower: float
    upper: float
    rounds: int
    first: tuple[float, float]
    cold: bool
    extra_bytes: int

    @classmethod
    def of(
        cls, path: str, seconds: Sequence[float], first: tuple[float, float], *, cold: bool, extra_bytes: int
    ) -> Timing:
        several = list(seconds) if len(seconds) > 1 else [*seconds, *seconds]
        lower, median, upper = statistics.quantiles(several, n=4, method="inclusive")
        return cls(path, median, lower, upper, len(seconds), first, cold, extra_bytes)


@dataclass(frozen=True)
class Cell:
    """One optimizer on one profile.

    Attributes:
        optimizer: the label. profile: its name. tensors, elements: of the profile. dtype: of the parameters.
        engine, reason: of our optimizer's last step, by its own report. against: what it is compared with.
        states: how many arrays as large as the parameters it keeps.
        ours, limit, paths: the timings; those in `paths` are the reference's.
        left_out: by path of the reference, why it was not measured. complaints: what makes the figures doubtful.
    """

    optimizer: str
    profile: str
    tensors: int
    elements: int
    dtype: str
    engine: str
    reason: str
    against: str
    states: int
    ours: Timing
    limit: Timing
    paths: tuple[Timing, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    complaints: tuple[str, ...] = ()

    @property
    def best(self) -> Timing:
        """The reference's fastest path."""
        return min(self.paths, key=lambda timing: timing.median)

    @property
    def ratio(self) -> float:
        """Our median over the reference's best: below 1 we are faster."""
        return self.ours.median / self.best.median

    @property
    def fraction(self) -> float:
        """Of the memory limit: the limit's median over ours, 1 where the step is as fast as memory allows."""
        return self.limit.median / self.ours.median


@dataclass(frozen=True)
class Failure:
    """A cell that could not be measured, and why."""

    optimizer: str
    profile: str
    reason: str


@dataclass(frozen=True)
class Report:
    """A whole run.

    Attributes:
        date: ISO 8601, UTC. machine: `cpu`, `cores`, `threads`, `system`. versions: by package; `python` too.
        settings: how the run was asked for.
    """

    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    cells: tuple[Cell, ...]
    failures: tuple[Failure, ...] = ()

    @classmethod
    def of(cls, found: Iterable[Cell | Failure], settings: Mapping[str, Any] | None = None) -> Report:
        """What `measure` found, with the machine as it is now."""
        from optplug.bench import machine

        found = list(found)
        return cls(
            date=machine.now(),
            machine=machine.describe(),
            versions=machine.versions(),
            settings=dict(settings or {}),
            cells=tuple(one for one in found if isinstance(one, Cell)),
            failures=tuple(one for one in found if isinstance(one, Failure)),
        )

    @property
    def profiles(self) -> list[str]:
        return list(dict.fromkeys(cell.profile for cell in self.cells))

    def on(self, profile: str) -> list[Cell]:
        """The cells of a profile."""
        return [cell for cell in self.cells if cell.profile == profile]

    def to_json(self) -> str:
        """All of it; `best`, `ratio` and `fraction` are written for readers and computed anew by `from_json`."""
        written = {"format": FORMAT, **dataclasses.asdict(self)}
        for cell, as_dict in zip(self.cells, written["cells"], strict=True):
            as_dict |= {"best": cell.best.path, "ratio": cell.ratio, "fraction": cell.fraction}
        return json.dumps(written, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """What `to_json` wrote.

        Raises:
            ConfigError: the text is nothing that it writes, or of another format.
        """
        try:
            read = json.loads(text)
            if read.pop("format") != FORMAT:
                raise ConfigError(
                    f"this is a result of another version of optplug bench; this one reads format {FORMAT}"
                )
            cells = tuple(_cell(one) for one in read.pop("cells"))
            failures = tuple(Failure(**one) for one in read.pop("failures"))
            return cls(**read, cells=cells, failures=failures)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"this is no result of optplug bench: {describe(error)}") from error


def _cell(read: dict[str, Any]) -> Cell:
    rest = {key: value for key, value in read.items() if key not in ("best", "ratio", "fraction", "ours", "limit")}
    rest["paths"] = tuple(map(_timing, rest["paths"]))
    rest["complaints"] = tuple(rest["complaints"])
    if not rest["paths"]:
        raise ValueError(f"{rest['optimizer']} on {rest['profile']} has no paths to be compared with")
    return Cell(**rest, ours=_timing(read["ours"]), limit=_timing(read["limit"]))


def _timing(read: dict[str, Any]) -> Timing:
    first, second = read.pop("first")
    return Timing(**read, first=(first, second))


def geometric_mean(ratios: Iterable[float]) -> float:
    """Of positive numbers; NaN for none."""
    logarithms = [math.log(ratio) for ratio in ratios]
    return math.exp(statistics.fmean(logarithms)) if logarithms else math.nan
