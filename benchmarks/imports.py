"""Time of `import optplug; optplug.list_optimizers()` in a new interpreter, and the heavy packages that it imports.

python benchmarks/imports.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = "import optplug; optplug.list_optimizers()"
HEAVY_PACKAGES = ("torch", "lightning", "pytorch_lightning", "numpy")


def milliseconds() -> float:
    """Return the milliseconds from before the import to after the listing, measured in a new interpreter."""
    code = f"import time; start = time.perf_counter(); {CODE}; print(1e3 * (time.perf_counter() - start))"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    times = sorted(milliseconds() for _ in range(11))
    print(f"{CODE}: median {statistics.median(times):.0f} ms, {times[0]:.0f} to {times[-1]:.0f} ms in 11 runs")
    run = subprocess.run([sys.executable, "-X", "importtime", "-c", CODE], check=True, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in run.stderr.splitlines()}
    print(
        "imported packages among torch, lightning, pytorch_lightning, numpy:",
        ", ".join(sorted(imported & set(HEAVY_PACKAGES))) or "none",
    )


if __name__ == "__main__":
    main()
