"""Asynchronous work behind an ordinary iterator: rows of ids that arrive on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from contextlib import aclosing
from queue import SimpleQueue
from typing import Any

CLEANUP_S = 5.0  # how long a closed iterator waits for its rows to hang up


class Background:
    """An event loop in a daemon thread. The caller's thread may run a loop itself, as a notebook does."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        self.loop.run_forever()
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's result; blocks until it is there."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def stop(self) -> None:
        """End the thread. The object can't be used any more."""
        self.run(self.loop.shutdown_asyncgens())
        self.loop.call_soon_threadsafe(self.loop.stop)

    def merge(self, rows: Sequence[AsyncGenerator[int, None]]) -> Generator[tuple[int, int], None, None]:
        """Yield `(row, id)` as the ids of all rows arrive, each row in order.

        The first error of a row is raised after the other rows are closed; ids that arrived before it come first.
        Closing the iterator closes the rows and waits until they are.
        """
        arrived: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        finished = threading.Event()

        async def feed(index: int, ids: AsyncGenerator[int, None]) -> None:
            async with aclosing(ids):
                async for token_id in ids:
                    arrived.put((index, token_id))

        async def feed_all() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for index, ids in enumerate(rows):
                        group.create_task(feed(index, ids))
            finally:
                finished.set()

        future = asyncio.run_coroutine_threadsafe(feed_all(), self.loop)
        future.add_done_callback(lambda _: arrived.put(None))
        try:
            while (item := arrived.get()) is not None:
                yield item
            error = future.exception()
            if error is not None:
                raise error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
        finally:
            future.cancel()
            if (
                threading.current_thread() is not self._thread
            ):  # as where that collects garbage: it can't wait for itself
                finished.wait(CLEANUP_S)
