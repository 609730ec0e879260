"""Isolation of constructors of other packages, also in several threads."""

from __future__ import annotations

import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from optplug import OptimizerSpec
from optplug.config.build import parse_and_check
from optplug.config.isolation import isolated


class Slow(torch.optim.SGD):
    """Writes output and a log message while other threads run."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        for _ in range(5):
            print("a banner")
            logging.getLogger("noisy").error("a log message")
            time.sleep(0.001)
        super().__init__(params, lr)


@pytest.fixture(autouse=True)
def registered(register_optimizers: Any) -> None:
    register_optimizers(OptimizerSpec("slow", Slow))


def test_several_threads_restore_streams_and_logging():
    before = sys.stdout, sys.stderr, logging.root.manager.disable, [*map(str, logging.root.handlers)]
    filters = [list(handler.filters) for handler in logging.root.handlers]
    barrier = threading.Barrier(4)

    def check(_: int) -> None:
        barrier.wait()
        for _ in range(3):
            parse_and_check("slow")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, range(4)))
    assert (sys.stdout, sys.stderr, logging.root.manager.disable, [*map(str, logging.root.handlers)]) == before
    assert [list(handler.filters) for handler in logging.root.handlers] == filters


def test_output_and_log_messages_of_other_threads_are_kept(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    started, written = threading.Event(), threading.Event()

    def other() -> None:
        started.wait(10)
        print("of the other thread")
        logging.getLogger("other").error("of the other thread")
        written.set()

    thread = threading.Thread(target=other)
    thread.start()
    with isolated():
        print("of this thread")
        logging.getLogger("this").error("of this thread")
        started.set()
        assert written.wait(10)
    thread.join()
    assert capsys.readouterr() == ("of the other thread\n", "")
    assert caplog.messages == ["of the other thread"]


def test_streams_are_restored_after_an_exception(caplog: pytest.LogCaptureFixture):
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), isolated():
        raise KeyError
    logging.getLogger("this").error("afterwards")
    assert (sys.stdout, sys.stderr) == before
    assert caplog.messages == ["afterwards"]


def test_generators_of_cuda_devices_are_restored_if_cuda_is_initialized(monkeypatch: pytest.MonkeyPatch):
    devices: list[Any] = []
    fork = torch.random.fork_rng

    def fork_rng(devices: Any, found: list[Any] = devices) -> Any:
        found.append(list(devices))
        return fork(devices=[])

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for is_initialized in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda value=is_initialized: value)
        with isolated():
            pass
    assert devices == [[], [0, 1]]
