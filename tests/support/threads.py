"""Several threads at once, and waiting for what they do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

WAIT_S = 30.0  # most that anything may take


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls return, each made in a thread of its own, all at once."""
    results = [None] * len(calls)

    def run(index: int) -> None:
        results[index] = calls[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    return results


def until(condition: Callable[[], Any]) -> bool:
    """Wait for a condition; whether it came true."""
    deadline = time.perf_counter() + WAIT_S
    while not condition() and time.perf_counter() < deadline:
        time.sleep(0.002)
    return bool(condition())
