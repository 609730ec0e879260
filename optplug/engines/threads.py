"""Threads that share work with the calling thread. The work must release the GIL."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue


class _Pool:
    """Threads that call functions from a queue. To wake them this way takes less time than `ThreadPoolExecutor`."""

    def __init__(self) -> None:
        self._functions: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self.size = 0

    def submit(self, function: Callable[[], None], times: int) -> None:
        """Let `times` threads call a function, which must not raise. Threads are started if there are too few.

        Raises:
            RuntimeError: a thread cannot be started, for example during interpreter shutdown.
        """
        for _ in range(times):
            self._functions.put(function)
        if self.size < times:
            with self._lock:
                while self.size < times:
                    threading.Thread(target=self._serve, name="optplug", daemon=True).start()
                    self.size += 1

    def _serve(self) -> None:
        while True:
            self._functions.get()()


_pool = _Pool()


def _reset_pool() -> None:
    """Discard the pool in a forked child process: threads do not survive a fork."""
    global _pool
    _pool = _Pool()


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
    with suppress(RuntimeError):  # the threads that have been started, and this one, then do the work
        _pool.submit(shared.help, helpers)
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
