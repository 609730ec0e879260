"""The Lion of `examples/lion_plugin` compared with optplug's Adam: bytes for each element, and bytes per second.

    python benchmarks/example_plugin.py [--profiles resnet50 one ...] [--seconds 4] [--threads 2]

Both use engine `numba`, on parameters of equal shapes, and are stepped in alternating order in one process. Times are
medians. The ratio is Lion's bytes per second divided by Adam's: at least 1 means that the kernel of a rule of 12 lines
is as fast for each byte as that of Adam. Bytes are those that the kernel reads and writes, as in `engine_report()`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from newer import medians, parameters

import optplug
from optplug.bench.profiles import PROFILES

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "lion_plugin"


def traffic(optimizer: optplug.RuleOptimizer) -> tuple[int, int]:
    """Return the bytes for each element and the bytes of a step."""
    reports = optimizer.engine_report()
    (per_element,) = {report.bytes_per_element for report in reports}
    assert per_element is not None
    return per_element, sum(per_element * report.elements for report in reports)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", nargs="+", choices=list(PROFILES), default=["resnet50", "one"])
    parser.add_argument("--seconds", type=float, default=4, help="seconds for each profile")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sys.path.insert(0, str(EXAMPLE))
    from my_lion import MyLion

    print(f"{arguments.threads} threads, torch {torch.__version__}\n")
    print("| profile | optimizer | bytes for each element | ms | GB/s | ratio |")
    print("|---|---|---|---|---|---|")
    for profile in arguments.profiles:
        classes = {"my_lion": MyLion, "adam": optplug.get_optimizer("adam")}
        optimizers = [cls(parameters(profile), engine="numba") for cls in classes.values()]
        times = medians(optimizers, arguments.seconds / len(optimizers))
        found = [traffic(optimizer) for optimizer in optimizers]
        speeds = [total / seconds / 1e9 for (_, total), seconds in zip(found, times, strict=True)]
        for name, (per_element, _), seconds, speed in zip(classes, found, times, speeds, strict=True):
            figures = (f"{1e3 * seconds:.2f}", f"{speed:.1f}", f"{speed / speeds[1]:.2f}")
            cells = (profile, f"`{name}`", per_element, *figures)
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
