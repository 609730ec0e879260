"""`run_in_threads`: work that is shared between the calling thread and a pool."""

from __future__ import annotations

import threading

import pytest

from optplug.engines import threads


@pytest.mark.timeout(30)
def test_work_runs_in_calling_thread_and_helpers():
    gate, seen = threading.Barrier(3), []

    def work() -> None:
        gate.wait()  # all three threads must call `work`
        seen.append(threading.current_thread())

    threads.run_in_threads(work, 2)
    assert len(set(seen)) == 3
    assert threading.current_thread() in seen


@pytest.mark.timeout(30)
@pytest.mark.parametrize("failing", ["calling thread", "helper"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_exception_in_one_thread_is_raised_after_the_others_end(failing, error):
    calling, gate, done = threading.current_thread(), threading.Barrier(2), []

    def work() -> None:
        gate.wait()
        if (threading.current_thread() is calling) == (failing == "calling thread"):
            raise error
        done.append(threading.current_thread())

    with pytest.raises(error):
        threads.run_in_threads(work, 1)
    assert len(done) == 1
    threads.run_in_threads(lambda: done.append(None), 1)  # the pool still works
    assert None in done


def test_run_in_threads_does_not_wait_for_helpers_that_have_not_started():
    size = max(3, threads._pool.size)
    release, started = threading.Event(), threading.Barrier(size + 1)
    threads._pool.submit(lambda: (started.wait(), release.wait()), size)
    started.wait()  # all threads of the pool are busy
    calls = []
    threads.run_in_threads(lambda: calls.append(threading.current_thread()), 3)
    assert calls == [threading.current_thread()]
    assert threads._pool.size == size
    release.set()
