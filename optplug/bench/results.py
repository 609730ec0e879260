"""The results of a measurement as data, and their conversion to and from JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optplug.errors import ConfigError, one_line

FORMAT = 3
"""The version of the JSON format."""

MAX_QUARTILE_RATIO = 1.5
"""A timing is noisy if its upper quartile is more than this factor times the lower one."""


@dataclass(frozen=True)
class Timing:
    """The measured steps of one path. All times are in seconds.

    Attributes:
        path: `optplug`, `memory limit`, or a path of the baseline: `loop`, `foreach`, `fused`, `compile`; `own loop`
            if torch has no class of the same name.
        median: the median over all rounds.
        lower: the lower quartile.
        upper: the upper quartile.
        rounds: the number of rounds.
        first_steps: the first two steps of a new optimizer.
        cold: whether the first two steps ran in a new process. They then include imports and compilation.
        extra_bytes: the peak memory of a later step beyond the memory before it, of torch's allocator and of Python.
    """

    path: str
    median: float
    lower: float
    upper: float
    rounds: int
    first_steps: tuple[float, float]
    cold: bool
    extra_bytes: int

    @property
    def is_noisy(self) -> bool:
        """Whether the upper quartile is more than 1.5 times the lower one."""
        return self.upper > MAX_QUARTILE_RATIO * self.lower

    @classmethod
    def from_seconds(
        cls, path: str, seconds: Sequence[float], first_steps: tuple[float, float], *, cold: bool, extra_bytes: int
    ) -> Timing:
        """Make the timing of a path from the seconds of each round."""
        several = list(seconds) if len(seconds) > 1 else [*seconds, *seconds]
        lower, median, upper = statistics.quantiles(several, n=4, method="inclusive")
        return cls(path, median, lower, upper, len(seconds), first_steps, cold, extra_bytes)


@dataclass(frozen=True)
class Cell:
    """The result of one optimizer on one profile.

    Attributes:
        optimizer: the label of the entry.
        profile: the name of the profile.
        tensors: the number of parameters of the profile.
        elements: the number of elements of all parameters together.
        dtype: the dtype of the parameters.
        engine: the engine of optplug's last step, from its report.
        reason: why this engine was selected, from the same report.
        memory_limit_engine: the engine that measured the memory limit.
        threads: torch's number of threads.
        baseline: the name of the baseline; empty if there is none.
        states: the number of states that are as large as their parameter.
        ours: the timing of optplug.
        memory_limit: the timing of the memory limit; None for an optimizer that is not a RuleOptimizer.
        paths: the timings of the baseline's paths.
        skipped: for each path of the baseline that was not measured, by name, the reason.
        warnings: properties of the values that make the times unreliable.
        notes: notes for readers of the result.
    """

    optimizer: str
    profile: str
    tensors: int
    elements: int
    dtype: str
    engine: str
    reason: str
    memory_limit_engine: str
    threads: int
    baseline: str
    states: int
    ours: Timing
    memory_limit: Timing | None
    paths: tuple[Timing, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Timing | None:
        """The timing of the baseline's fastest path; None without a baseline."""
        return min(self.paths, key=lambda timing: timing.median, default=None)

    @property
    def ratio(self) -> float | None:
        """The median of the optimizer divided by that of the baseline's fastest path. Below 1 the optimizer is faster.

        None without a baseline.
        """
        return None if self.best is None else self.ours.median / self.best.median

    @property
    def limit_ratio(self) -> float | None:
        """The ratio of an optimizer that is as fast as memory allows; None if `memory_limit_fraction` is None."""
        if self.memory_limit is None or self.best is None or self.memory_limit_fraction is None:
            return None
        return self.memory_limit.median / self.best.median

    @property
    def is_doubtful(self) -> bool:
        """Whether one of the two timings in the ratio is noisy."""
        return self.best is not None and (self.ours.is_noisy or self.best.is_noisy)

    @property
    def is_compared_with_torch(self) -> bool:
        """Whether the baseline is a class of torch.optim, not the optimizer itself."""
        return self.baseline.startswith("torch.optim.")

    @property
    def memory_limit_fraction(self) -> float | None:
        """The median of the memory limit divided by that of optplug: 1 if the step is as fast as memory allows.

        None if it was not measured, or by another engine, since the two times are then not comparable.
        """
        if self.memory_limit is None or self.engine != self.memory_limit_engine:
            return None
        return self.memory_limit.median / self.ours.median


@dataclass(frozen=True)
class Failure:
    """A cell that could not be measured, and the reason."""

    optimizer: str
    profile: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The results of a run of `optplug bench`.

    Attributes:
        date: the end of the run in ISO 8601, UTC.
        machine: `cpu`, `cores`, `threads`, `system` and `load` (None if unknown).
        versions: the versions of Python and of packages.
        settings: the settings of the run.
        cells: the results.
        failures: the cells that could not be measured.
    """

    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    cells: tuple[Cell, ...]
    failures: tuple[Failure, ...] = ()

    @classmethod
    def from_results(
        cls,
        results: Iterable[Cell | Failure],
        settings: Mapping[str, Any] | None = None,
        machine: Mapping[str, Any] | None = None,
    ) -> Report:
        """Make a report of the results of `measure`.

        Args:
            results: the cells and failures.
            settings: the settings of the run. Default: none.
            machine: the result of `environment.machine_info`. Default: called before the first result is taken.
        """
        from optplug.bench import environment

        machine = environment.machine_info() if machine is None else machine
        results = list(results)
        cells = tuple(result for result in results if isinstance(result, Cell))
        return cls(
            date=environment.utc_now(),
            machine={**machine, "threads": cells[0].threads if cells else machine["threads"]},
            versions=environment.package_versions(),
            settings=dict(settings or {}),
            cells=cells,
            failures=tuple(result for result in results if isinstance(result, Failure)),
        )

    @property
    def profiles(self) -> list[str]:
        """The names of the profiles with results."""
        return list(dict.fromkeys(cell.profile for cell in self.cells))

    def cells_of(self, profile: str) -> list[Cell]:
        """Return the cells of a profile."""
        return [cell for cell in self.cells if cell.profile == profile]

    def to_json(self) -> str:
        """Return the report as JSON.

        `best`, `ratio` and `memory_limit_fraction` of each cell are written for readers; `from_json` ignores them.
        """
        written = {"format": FORMAT, **dataclasses.asdict(self)}
        for cell, as_dict in zip(self.cells, written["cells"], strict=True):
            as_dict |= {name: getattr(cell, name) for name in _DERIVED} | {"best": cell.best and cell.best.path}
        return json.dumps(written, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read a report from the text of `to_json`.

        Raises:
            ConfigError: the text is not a report, or has another version of the format.
        """
        try:
            read = json.loads(text)
            if read.pop("format") != FORMAT:
                raise ConfigError(
                    f"this is a result of another version of optplug bench; this version reads format {FORMAT}"
                )
            cells = tuple(map(_cell_from_json, read.pop("cells")))
            failures = tuple(Failure(**failure) for failure in read.pop("failures"))
            return cls(**read, cells=cells, failures=failures)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"this is not a result of optplug bench: {one_line(error)}") from error


_DERIVED = ("best", "ratio", "memory_limit_fraction")
"""Properties of cells that are written to JSON."""


def _cell_from_json(read: dict[str, Any]) -> Cell:
    fields = {key: value for key, value in read.items() if key not in _DERIVED}
    fields["paths"] = tuple(map(_timing_from_json, fields["paths"]))
    fields |= {key: tuple(fields[key]) for key in ("warnings", "notes")}
    fields |= {key: fields[key] and _timing_from_json(fields[key]) for key in ("ours", "memory_limit")}
    if fields["baseline"] and not fields["paths"]:
        raise ValueError(f"{fields['optimizer']} on {fields['profile']} has no paths of a baseline")
    return Cell(**fields)


def _timing_from_json(read: dict[str, Any]) -> Timing:
    first, second = read.pop("first_steps")
    return Timing(**read, first_steps=(first, second))


def geometric_mean(ratios: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers; NaN if there are none."""
    logarithms = [math.log(ratio) for ratio in ratios]
    return math.exp(statistics.fmean(logarithms)) if logarithms else math.nan
