"""Who is spoken to now, who waits, and who is sent away."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from orpheus.serve.problems import Problem

LONGEST_WAIT_S = 60  # what clients are told at most


class Admission:
    """Slots, and a queue of limited length before them: first come, first served. Lives in one event loop."""

    def __init__(self, slots: int, places: int) -> None:
        self.slots, self.places = slots, places
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_s = 1.0  # of the last answers, for telling how long it may take

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def enter(self) -> float:
        """Wait for a slot; the time at which it was given, for `leave`. Problem 429: every place to wait is taken.

        Cancelled while it waits, it leaves the queue.
        """
        if self.running < self.slots:
            self.running += 1
            return time.monotonic()
        if self.queued >= self.places:
            raise Problem(429, f"all {self.slots} slots are busy and {self.queued} requests wait: come again later",
                          code="rate_limit_exceeded", headers={"Retry-After": str(self.retry_after_s())})  # fmt: skip
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the slot was given in the same moment: pass it on
                self._pass_on()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise
        return time.monotonic()

    def leave(self, entered: float) -> None:
        """Give a slot back: to the one who has waited longest, if there is one."""
        self._mean_s += 0.2 * (time.monotonic() - entered - self._mean_s)
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its client went away a moment ago
                turn.set_result(None)
                return
        self.running -= 1

    def retry_after_s(self) -> int:
        """In how many seconds a place may be free, by how long the last answers took: 1 to 60."""
        return min(LONGEST_WAIT_S, max(1, math.ceil(self._mean_s * (self.queued + 1) / self.slots)))
