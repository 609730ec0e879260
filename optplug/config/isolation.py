"""Isolation of a call to a constructor of another package from the output and the state of the process."""

from __future__ import annotations

import contextlib
import logging
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import torch

_LOCK = threading.RLock()
"""Held by the thread that is isolated: two threads must not restore streams and states in the wrong order."""


@contextmanager
def isolated() -> Iterator[None]:
    """Discard output, warnings and log messages, and restore random number generators and the number of threads.

    Output and log messages of other threads are kept. Warnings and random numbers belong to the process, so that those
    of other threads are discarded or restored too. The generators are those of Python, NumPy, the CPU, and of CUDA
    devices if CUDA is initialized.
    """
    with _LOCK, _discarded_output(), _discarded_log_messages(), warnings.catch_warnings(), _restored_generators():
        warnings.simplefilter("ignore")
        threads = torch.get_num_threads()
        try:
            yield
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


@contextmanager
def _restored_generators() -> Iterator[None]:
    numpy: Any = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy else None
    cuda: Any = torch.cuda
    devices = range(cuda.device_count()) if cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy:
                numpy.random.set_state(states[1])


@contextmanager
def _discarded_output() -> Iterator[None]:
    with (
        contextlib.redirect_stdout(_OutputOfOthers(sys.stdout)),
        contextlib.redirect_stderr(_OutputOfOthers(sys.stderr)),
    ):
        yield


class _OutputOfOthers:
    """A stream that discards what the current thread writes, and passes on what other threads write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _discarded_log_messages() -> Iterator[None]:
    thread = threading.get_ident()

    def is_of_another_thread(_: logging.LogRecord) -> bool:
        return threading.get_ident() != thread

    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    if logging.lastResort is not None:
        handlers.add(logging.lastResort)
    for handler in handlers:
        handler.addFilter(is_of_another_thread)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_of_another_thread)
