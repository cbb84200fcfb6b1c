"""What is made and not yet sent: the pieces of an answer, on their way from its thread to the event loop."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

MOST_BYTES = 64 << 20  # of all answers together: 23 minutes as PCM, 93 as MP3
ROOM = 2  # pieces that each answer may have waiting although the spool is full


class Spool:
    """How many bytes wait, of all answers of a server."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self.most, self.held = most, 0
        self.changed = threading.Condition()


class HandOver:
    """The pieces of one answer. Its thread waits, with its slot, while the spool is full and ROOM pieces are not taken.

    whole: the answer is sent when it is complete, so its pieces count until then, and never wait: `settle` does.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, spool: Spool, whole: bool = False) -> None:
        self.spool, self.whole, self.closed = spool, whole, False
        self._loop = loop
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._pieces = self._bytes = 0  # of this answer, in the spool

    def put(self, piece: Any) -> bool:
        """Called in the thread. False: nobody wants more."""
        with self.spool.changed:
            self.spool.changed.wait_for(lambda: self.closed or self._fits(size_of(piece)))
            if self.closed:
                return False
            self._add(1, size_of(piece))
        with suppress(RuntimeError):  # the loop has ended: the process is going
            self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)
            return True
        return False

    def settle(self) -> None:
        """Called in the thread, after the last piece: wait until all that is held fits, or this answer is sent."""
        with self.spool.changed:
            self.spool.changed.wait_for(lambda: self.closed or self.spool.held <= self.spool.most)

    async def get(self) -> Any:
        """The next piece."""
        piece = await self._queue.get()
        with self.spool.changed:
            if not (self.whole or self.closed):
                self._add(-1, -size_of(piece))
        return piece

    def close(self) -> None:
        """Called in the loop: all is sent, or no more is wanted. A thread that waits goes on at once."""
        with self.spool.changed:
            self.closed = True
            self._add(-self._pieces, -self._bytes)

    def _fits(self, size: int) -> bool:
        return self.whole or self._pieces < ROOM or self.spool.held + size <= self.spool.most

    def _add(self, pieces: int, size: int) -> None:
        self._pieces += pieces
        self._bytes += size
        self.spool.held += size
        self.spool.changed.notify_all()


def size_of(piece: Any) -> int:
    """Bytes of a piece; an error, or the mark of the end, has none."""
    return len(piece) if isinstance(piece, bytes) else 0
