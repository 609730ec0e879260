"""Threads that help the calling one with work that does not hold the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
    calls: list[Future[object]] = []
    with suppress(RuntimeError):  # the interpreter is shutting down, which this thread may outlive
        calls += (_threads().submit(work) for _ in range(helpers))
    try:
        work()
    finally:
        for call in calls:
            if not call.cancel():
                call.result()


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(256, thread_name_prefix="optplug")  # as many as ever wanted at once
    return _pool
