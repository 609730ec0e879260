"""Deprecation warnings that other packages cause: their code calls what is deprecated."""

from __future__ import annotations

from importlib.metadata import version
from typing import NamedTuple

from versions import release


class DeprecationOfOthers(NamedTuple):
    """Deprecation warnings that a package causes.

    Attributes:
        message: a regular expression for the start of the message, without colons.
        package: the package that calls what is deprecated.
        newest: major and minor number of the newest version of the package that was seen to do so. Later versions
            are expected not to.
    """

    message: str
    package: str
    newest: tuple[int, int]

    def is_expected(self) -> bool:
        """Whether the installed version of the package is not newer than `newest`."""
        return release(version(self.package))[:2] <= self.newest


DEPRECATIONS_OF_OTHERS = (
    # Deprecated between torch 2.8 and 2.11.
    DeprecationOfOthers(r"`isinstance\(treespec, LeafSpec\)` is deprecated", "lightning", (2, 6)),
    # Deprecated in jsonargparse 4.49; Lightning calls them in LightningCLI.
    DeprecationOfOthers(r"\s*By default only one JsonargparseDeprecationWarning", "lightning", (2, 6)),
    DeprecationOfOthers(r"\s*``ArgumentParser\.add_instantiator`` was deprecated", "lightning", (2, 6)),
    DeprecationOfOthers(r"\s*``instantiate_classes`` was deprecated", "lightning", (2, 6)),
    DeprecationOfOthers(r"\s*set_config_read_mode was deprecated", "lightning", (2, 5)),
    DeprecationOfOthers(r"\s*skip_none parameter was deprecated", "lightning", (2, 6)),
)
