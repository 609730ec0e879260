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

FORMAT = 2

SPREAD = 1.5
"""How far apart the quartiles of a timing may be before its ratio is doubtful."""


@dataclass(frozen=True)
class Timing:
    """The steps of one path, in seconds.

    Attributes:
        path: `optplug`, `limit`, or torch's: `loop`, `foreach`, `fused`, `compile`;
            `own loop` where torch has no counterpart.
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

    @property
    def noisy(self) -> bool:
        """The upper quartile is more than 1.5 times the lower."""
        return self.upper > SPREAD * self.lower

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
        engine, reason: of our optimizer's last step, by its own report. limit_engine: of the memory limit.
        threads: torch's. against: what it is compared with.
        states: how many arrays as large as the parameters it keeps.
        ours, limit, paths: the timings; those in `paths` are the reference's.
        left_out: by path of the reference, why it was not measured. complaints: what makes the figures doubtful.
        notes: what else a reader must know.
    """

    optimizer: str
    profile: str
    tensors: int
    elements: int
    dtype: str
    engine: str
    reason: str
    limit_engine: str
    threads: int
    against: str
    states: int
    ours: Timing
    limit: Timing
    paths: tuple[Timing, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    complaints: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Timing:
        """The reference's fastest path."""
        return min(self.paths, key=lambda timing: timing.median)

    @property
    def ratio(self) -> float:
        """Our median over the reference's best: below 1 we are faster."""
        return self.ours.median / self.best.median

    @property
    def doubtful(self) -> bool:
        """One of the two times in the ratio scatters too much."""
        return self.ours.noisy or self.best.noisy

    @property
    def of_torch(self) -> bool:
        """Compared with torch, not with itself."""
        return self.against.startswith("torch.optim.")

    @property
    def fraction(self) -> float | None:
        """Of the memory limit: the limit's median over ours, 1 where the step is as fast as memory allows.

        None where another engine ran the limit, which then is none.
        """
        return self.limit.median / self.ours.median if self.engine == self.limit_engine else None


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
        date: ISO 8601, UTC. machine: `cpu`, `cores`, `threads`, `system`, `load` (None if unknown).
        versions: by package; `python` too.
        settings: how the run was asked for.
    """

    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    cells: tuple[Cell, ...]
    failures: tuple[Failure, ...] = ()

    @classmethod
    def of(
        cls,
        found: Iterable[Cell | Failure],
        settings: Mapping[str, Any] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> Report:
        """What `measure` finds.

        Args:
            settings: how the run was asked for.
            where: what `environment.describe` said when it began; None: as it is before the first of `found` is taken.
        """
        from optplug.bench import environment

        where = environment.describe() if where is None else where
        found = list(found)
        cells = tuple(one for one in found if isinstance(one, Cell))
        return cls(
            date=environment.now(),
            machine={**where, "threads": cells[0].threads if cells else where["threads"]},
            versions=environment.versions(),
            settings=dict(settings or {}),
            cells=cells,
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
    rest |= {key: tuple(rest[key]) for key in ("complaints", "notes")}
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
