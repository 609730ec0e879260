"""What optplug prints and warns about during a fit."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reporter:
    """Prints lines and emits warnings, both on rank zero only.

    Attributes:
        verbose: whether lines are printed. Warnings are emitted in any case.
    """

    verbose: bool = True

    def report(self, trainer: Any, text: str) -> None:
        """Print a line without disturbing the progress bar."""
        if self.verbose:
            trainer.lightning_module.print(f"optplug: {text}")

    def warn(self, trainer: Any, text: str) -> None:
        """Emit a `UserWarning`. Without a trainer (None), this process is taken as rank zero."""
        if trainer is None or trainer.is_global_zero:
            warnings.warn(text, UserWarning, stacklevel=3)
