"""What optplug reports and warns about during a fit. Lines for the user go through the logger `optplug`."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LOGGER_NAME = "optplug"


@dataclass(frozen=True)
class Reporter:
    """Logs lines and emits warnings, both on rank zero only.

    Lines have the level INFO. They are also printed, unless the program has set up a logging handler that shows them.

    Attributes:
        verbose: whether lines are logged. Warnings are emitted in any case.
    """

    verbose: bool = True

    def report(self, trainer: Any, text: str) -> None:
        """Log a line without disturbing the progress bar."""
        logger = logging.getLogger(LOGGER_NAME)
        if not (self.verbose and trainer.is_global_zero and _shows_info(logger)):
            return
        record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, text, (), None)
        if not logger.filter(record):
            return
        with _progress_bars_cleared(), _handlers_redirected():
            logger.callHandlers(record)
            if not _has_user_handler(logger):
                print(f"{LOGGER_NAME}: {text}")

    def warn(self, trainer: Any, text: str) -> None:
        """Emit a `UserWarning`. Without a trainer (None), this process is taken as rank zero."""
        if trainer is None or trainer.is_global_zero:
            warnings.warn(text, UserWarning, stacklevel=3)


def _shows_info(logger: logging.Logger) -> bool:
    """Whether lines of level INFO are wanted.

    The root logger has the level WARNING by default. Unless it has a console handler, this does not show that a user
    wants no lines.
    """
    root = logging.getLogger()
    is_chosen = root.level > logging.WARNING or any(map(_writes_to_console, root.handlers))
    level = logger.level or (root.level if is_chosen else logging.INFO)
    return level <= logging.INFO and not logger.disabled and logger.manager.disable < logging.INFO


def _has_user_handler(logger: logging.Logger) -> bool:
    """Whether the program decides where lines go: it has configured the logger, or root writes to the console."""
    return bool(logger.handlers) or not logger.propagate or any(map(_writes_to_console, logging.getLogger().handlers))


def _writes_to_console(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    # A handler of rich has a console in place of a stream.
    return hasattr(handler, "console") or (stream is not None and any(stream is one for one in streams))


@contextlib.contextmanager
def _progress_bars_cleared() -> Iterator[None]:
    """Within this context, the progress bars of tqdm are cleared. Without it, they share a line with other output."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    with contextlib.nullcontext() if tqdm is None else tqdm.external_write_mode():
        yield


@contextlib.contextmanager
def _handlers_redirected() -> Iterator[None]:
    """Within this context, logging handlers write through the streams with which rich replaces stdout and stderr.

    rich does so while it shows a progress bar, and keeps the bar below the output. A handler keeps the older stream.
    """
    replacements = {
        id(stream.rich_proxied_file): stream
        for stream in (sys.stdout, sys.stderr)
        if hasattr(stream, "rich_proxied_file")
    }
    redirected = []
    for handler in (*logging.getLogger(LOGGER_NAME).handlers, *logging.getLogger().handlers):
        if isinstance(handler, logging.StreamHandler) and id(handler.stream) in replacements:
            redirected.append((handler, handler.setStream(replacements[id(handler.stream)])))
    try:
        yield
    finally:
        for handler, stream in redirected:
            handler.setStream(stream)
