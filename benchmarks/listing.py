"""Time of `optplug list` with 200 further plugin distributions, and what the listing and one look-up import.

python benchmarks/listing.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DISTRIBUTIONS = 200
NAMES = ("first", "second", "third")
"""The optimizers of each distribution."""

HEAVY_PACKAGES = ("torch", "lightning", "pytorch_lightning", "numpy", "rich", "yaml")

PLUGIN = """
from optplug import OptimizerSpec, SchedulerSpec, hookimpl

@hookimpl
def optplug_optimizers():
    return [
        OptimizerSpec(f"{plugin}_{{name}}", f"{plugin}_{{name}}:Rule", f"{{name}} optimizer", {{"complex", "fused"}})
        for name in {names!r}
    ]

@hookimpl
def optplug_schedulers():
    return [SchedulerSpec("{plugin}_lr", "{plugin}_lr:Schedule", "a schedule", interval="step", length="total_steps")]
"""

RULE = """
from optplug import RuleOptimizer

class Rule(RuleOptimizer):
    def __init__(self, params, lr=0.01, **options):
        super().__init__(params, {"lr": lr}, **options)

    @staticmethod
    def rule(p, g, *, lr):
        return p - lr * g
"""

CODE = """
import sys
from optplug.cli import main
sys.argv = ["optplug", "list"]
try:
    main()
except SystemExit as error:
    assert not error.code, error.code
print(*sorted(sys.modules), file=sys.stderr)
import optplug
before = set(sys.modules)
optplug.get_optimizer({name!r})
print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""


def write_distributions(folder: Path, count: int = DISTRIBUTIONS) -> None:
    """Write plugin distributions into a folder, as `pip install --target` leaves them."""
    for i in range(count):
        plugin = f"generated{i:03}"
        folder.joinpath(f"{plugin}.py").write_text(PLUGIN.format(plugin=plugin, names=NAMES))
        for name in NAMES:
            folder.joinpath(f"{plugin}_{name}.py").write_text(RULE)
        info = folder / f"{plugin}-1.{i}.dist-info"
        info.mkdir()
        description = "What the plugin is for.\n" * 100
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {plugin}\nVersion: 1.{i}\n\n{description}")
        info.joinpath("entry_points.txt").write_text(f"[optplug]\n{plugin} = {plugin}\n")


def environment(folder: Path) -> dict[str, str]:
    """Return environment variables with which the distributions of a folder are installed."""
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def imported(folder: Path, name: str) -> tuple[str, list[str], list[str]]:
    """List all names and look one up in a new interpreter.

    Returns:
        The listing, the modules that it imported, and those that the look-up of the name imported then.
    """
    run = subprocess.run(
        [sys.executable, "-c", CODE.format(name=name)],
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        sys.exit(run.stderr)
    listing, look_up = run.stderr.splitlines()[-2:]
    return run.stdout, listing.split(), look_up.split()


def seconds(folder: Path) -> tuple[float, float]:
    """Return the wall-clock and the processor seconds of `optplug list`."""
    command = [sys.executable, "-m", "optplug", "list"]
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, env=environment(folder), stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, used


def main() -> None:
    for count in (0, DISTRIBUTIONS):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_distributions(folder, count)
            seconds(folder)  # writes the compiled files
            walls, used = zip(*(seconds(folder) for _ in range(11)), strict=True)
            listing, modules, loaded = imported(folder, "generated007_second" if count else "adam")
            heavy = ", ".join(sorted(set(HEAVY_PACKAGES) & set(modules))) or "none"
            print(f"optplug list, {count} further distributions, {len(listing.splitlines())} lines:")
            print(f"  median {1e3 * statistics.median(walls):.0f} ms, fastest {1e3 * min(walls):.0f} ms of 11 runs")
            print(f"  processor time: median {1e3 * statistics.median(used):.0f} ms")
            print(f"  imported among {', '.join(HEAVY_PACKAGES)}: {heavy}")
            own = [each for each in loaded if each.startswith(("generated", "optplug_"))]
            print(f"  one look-up loaded of plugins: {', '.join(own)}")


if __name__ == "__main__":
    main()
