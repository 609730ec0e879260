"""Warnings that other packages cause, each with the newest version that does so."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import NamedTuple

from versions import release


class WarningOfOthers(NamedTuple):
    """A warning that a package causes.

    Attributes:
        message: a regular expression for the start of the message, without colons.
        package: the package that gives the warning, or that calls what is deprecated.
        newest: major and minor number of the newest version of the package that was seen to do so. Later versions
            are expected not to.
    """

    message: str
    package: str
    newest: tuple[int, int]

    def is_expected(self) -> bool:
        """Whether the installed version of the package is not newer than `newest`."""
        return release(version(self.package))[:2] <= self.newest


WARNINGS_OF_OTHERS = (
    # torch's own LBFGS calls float(loss); 2.8 warns, 2.11 was not seen to.
    WarningOfOthers("Converting a tensor with requires_grad=True to a scalar", "torch", (2, 8)),
    # torch saves sharded checkpoints; 2.8 warns, 2.11 was not seen to.
    WarningOfOthers("TypedStorage is deprecated", "torch", (2, 8)),
    # torch 2.11 says so of the first sparse tensor of a process; 2.13 does not.
    WarningOfOthers("Sparse invariant checks are implicitly disabled", "torch", (2, 11)),
    # torch.compile imports a module that calls it; 2.14 does not.
    WarningOfOthers(".*torch.jit.script_method.* is deprecated", "torch", (2, 13)),
    # torch.compile on this version of Python.
    WarningOfOthers("Guards may run slower on Python 3.13.0", "torch", (2, 15)),
    # torch.load says that it checks sparse tensors, which takes time.
    WarningOfOthers("Validating sparse tensor invariants because weights_only=True", "torch", (2, 15)),
    # Deprecated between torch 2.8 and 2.11.
    WarningOfOthers(r"`isinstance\(treespec, LeafSpec\)` is deprecated", "lightning", (2, 6)),
    # Deprecated in jsonargparse 4.49; Lightning calls them in LightningCLI.
    WarningOfOthers(r"\s*By default only one JsonargparseDeprecationWarning", "lightning", (2, 6)),
    WarningOfOthers(r"\s*``ArgumentParser\.add_instantiator`` was deprecated", "lightning", (2, 6)),
    WarningOfOthers(r"\s*``instantiate_classes`` was deprecated", "lightning", (2, 6)),
    WarningOfOthers(r"\s*set_config_read_mode was deprecated", "lightning", (2, 5)),
    WarningOfOthers(r"\s*skip_none parameter was deprecated", "lightning", (2, 6)),
)


def is_of_others(message: str) -> bool:
    """Whether a message is one of those that installed packages are expected to cause."""
    return any(entry.is_expected() and re.match(entry.message, message) for entry in WARNINGS_OF_OTHERS)
