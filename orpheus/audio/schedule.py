"""When to hand out audio that streams: the first at once, later in larger portions, as far as nobody has to wait.

Each frame is decoded as it comes, so samples never depend on this. What is grouped is their delivery: every portion
costs a write or a packet. Held back is never more than a quarter of what the listener still has to play, and never more
than 8 frames. So at the rate of speech, where the listener has next to nothing, each frame is handed out as it comes;
well above it, portions of 2, 4, 8 frames form by themselves as the lead grows.

A listener runs dry because of the grouping only if the model pauses, in mid-speech, for four times as long as what is
held back, and then for no longer than what is held back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ

SHARE = 0.25
MOST_S = 0.69  # 8 frames


class Schedule:
    """Decides, chunk by chunk, by the clock. Times in seconds, of any clock that only goes forward."""

    def __init__(self) -> None:
        self.held_s = 0.0
        self._until_s: float | None = None  # when the listener has played all that was handed out

    def lead_s(self, now_s: float) -> float:
        """What the listener still has to play, who began with the first portion and waits where there is nothing."""
        return 0.0 if self._until_s is None else max(0.0, self._until_s - now_s)

    def due(self, now_s: float, chunk_s: float) -> bool:
        """A chunk has come: whether to hand out all that is held, this chunk included. If so, it counts as done."""
        self.held_s += chunk_s
        if self.held_s < min(MOST_S, SHARE * self.lead_s(now_s)):
            return False
        self._until_s = now_s + self.lead_s(now_s) + self.held_s
        self.held_s = 0.0
        return True


def grouped(chunks: Iterable[np.ndarray], clock: Callable[[], float] = time.perf_counter) -> Iterator[np.ndarray]:
    """The chunks, float32 [n], in portions: the same samples in the same order, and all of them before any error."""
    schedule = Schedule()
    held: list[np.ndarray] = []
    try:
        for chunk in chunks:
            held.append(chunk)
            if schedule.due(clock(), len(chunk) / SAMPLE_RATE_HZ):
                yield np.concatenate(held)
                held = []
    except GeneratorExit:  # nobody listens any more
        raise
    except BaseException:  # Ctrl-C too
        if held:
            yield np.concatenate(held)
        raise
    if held:
        yield np.concatenate(held)
