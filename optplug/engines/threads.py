"""Threads that help the calling one with work that does not hold the GIL."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

_pool: ThreadPoolExecutor | None = None


def _forget() -> None:
    """A forked child has none of its parent's threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def together(work: Callable[[], object], helpers: int) -> None:
    """Call `work` here and in up to `helpers` more threads at a time; return when every call has returned.

    The calls share out the work among themselves: one that begins late finds less of it, and a helper that has not
    begun when this thread is done never does, so nothing waits for a thread to wake up.
    """
    if helpers < 1:
        work()
        return
    shared = _Shared(work)
    # Of a pool that cannot start another thread, or no more since the interpreter is shutting down: the others help.
    with suppress(RuntimeError):
        for _ in range(helpers):
            _threads().submit(shared.help)
    try:
        work()
    finally:
        shared.close()


class _Shared:
    """Work and who is at it. What helpers raise is raised when it is closed."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._changed = threading.Condition()
        self._closed = False
        self._at_it = 0
        self._error: BaseException | None = None

    def help(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._at_it += 1
        try:
            self._work()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._at_it -= 1
                self._changed.notify()

    def close(self) -> None:
        """Let nobody begin, and wait for those who have: not even Ctrl-C may free what they are writing to."""
        while True:
            try:
                with self._changed:
                    self._closed = True
                    self._changed.wait_for(lambda: not self._at_it)
                break
            except BaseException as error:
                self._error = error
        if self._error is not None:
            raise self._error


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(256, thread_name_prefix="optplug")  # as many as ever wanted at once
    return _pool
