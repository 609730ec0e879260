"""A pool of threads that share work with the calling thread. The work must release the GIL."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

_pool: ThreadPoolExecutor | None = None


def _reset_pool() -> None:
    """Discard the pool in a forked child process: threads do not survive a fork."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_pool)


def run_in_threads(work: Callable[[], object], helpers: int) -> None:
    """Call `work` in this thread and in up to `helpers` other threads. Return when all started calls have returned.

    `work` must take pieces of the work from a shared counter or iterator until none is left. When this thread has
    finished, helpers that have not started yet are cancelled. So this function never waits for a thread to wake up.

    Args:
        work: the function to call. It must be thread-safe.
        helpers: the number of other threads.

    Raises:
        BaseException: an exception that `work` raised in any thread, after all started calls have ended.
    """
    if helpers < 1:
        work()
        return
    shared = _SharedWork(work)
    # The pool raises RuntimeError if it cannot start a thread, for example during interpreter shutdown. The threads
    # that have been started, and this one, then do the work.
    with suppress(RuntimeError):
        for _ in range(helpers):
            _get_pool().submit(shared.help)
    try:
        work()
    finally:
        shared.close()


class _SharedWork:
    """Work that several threads do together. `close` raises an exception that a helper raised.

    Args:
        work: the function that each thread calls.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._changed = threading.Condition()
        self._closed = False
        self._active_helpers = 0
        self._error: BaseException | None = None

    def help(self) -> None:
        """Call `work`, unless the work has been closed."""
        with self._changed:
            if self._closed:
                return
            self._active_helpers += 1
        try:
            self._work()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._active_helpers -= 1
                self._changed.notify()

    def close(self) -> None:
        """Prevent further helpers from starting, and wait for the active ones.

        An exception such as KeyboardInterrupt must not end the wait: the helpers write to memory of the caller.
        """
        while True:
            try:
                with self._changed:
                    self._closed = True
                    self._changed.wait_for(lambda: not self._active_helpers)
                break
            except BaseException as error:
                self._error = error
        if self._error is not None:
            raise self._error


def _get_pool() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(256, thread_name_prefix="optplug")  # an upper bound of the concurrent helpers
    return _pool
