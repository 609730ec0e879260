"""Every optimizer at its defaults: one epoch on scikit-learn's digits through OptplugCLI.

    python benchmarks/accuracy.py [--seeds 3] [--optimizers lion adamw ...]

The network and the data are those of `examples/digits.py`. The learning rate is the default of the class, or, where the
class has none, 0.01. The table has the mean test accuracy over the seeds, and the smallest and largest.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import warnings
from pathlib import Path

import optplug

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))

from digits import Digits, DigitsClassifier  # noqa: E402 - the examples are no package

from optplug.pytorch_lightning import OptplugCLI  # noqa: E402

SKIPPED = {"lbfgs": "is a method for full batches", "sparse_adam": "takes sparse gradients only"}


def test_accuracy(name: str, seed: int) -> float:
    """Train one epoch, and return the accuracy on the test images."""
    arguments = [
        f"--seed_everything={seed}",
        f"--optimizer.name={name}",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.logger=false",
        "--trainer.enable_checkpointing=false",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        cli = OptplugCLI(DigitsClassifier, Digits, run=False, args=arguments, save_config_callback=None)
        cli.trainer.fit(cli.model, cli.datamodule)
        (metrics,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    return float(metrics["test_acc"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimizers", nargs="+", default=optplug.list_optimizers("optplug-*:*"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning", "pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print("| optimizer | test accuracy | of single seeds |")
    print("|---|---|---|")
    for name in arguments.optimizers:
        if name in SKIPPED:
            print(f"| `{name}` | {SKIPPED[name]} | |")
            continue
        found = [test_accuracy(name, seed) for seed in range(arguments.seeds)]
        print(f"| `{name}` | {sum(found) / len(found):.3f} | {min(found):.3f} to {max(found):.3f} |", flush=True)


if __name__ == "__main__":
    main()
