"""What `import optplug; optplug.list_optimizers()` costs in a fresh interpreter, and that torch stays out.

python benchmarks/imports.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = "import optplug; optplug.list_optimizers()"
HEAVY = ("torch", "lightning", "pytorch_lightning", "numpy")


def milliseconds() -> float:
    """From just before the import to just after the listing, as the interpreter itself sees it."""
    code = f"import time; start = time.perf_counter(); {CODE}; print(1e3 * (time.perf_counter() - start))"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    times = sorted(milliseconds() for _ in range(11))
    print(f"{CODE}: median {statistics.median(times):.0f} ms, from {times[0]:.0f} to {times[-1]:.0f} ms in 11 runs")
    run = subprocess.run([sys.executable, "-X", "importtime", "-c", CODE], check=True, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in run.stderr.splitlines()}
    print("imported of torch, lightning, pytorch_lightning, numpy:", ", ".join(sorted(imported & set(HEAVY))) or "none")


if __name__ == "__main__":
    main()
