"""Connections: how many, how long one may say nothing, how long a write may stall. What uvicorn has no option for.

uvicorn's `limit_concurrency` counts requests, so a connection that says nothing passes it, and each refusal is a line
in the log; its keep-alive timeout begins after a first answer, and a single byte stops it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from orpheus.serve.counts import Counts

log = logging.getLogger(__name__)

HEAD_S = 10.0  # from a connection, or the end of an answer, to a whole head of a request
STALL_S = 60.0  # how long the buffer of a connection may stay full: 48 KB must leave it in that time
BACKLOG = 64  # connections that may wait to be accepted
BATCH = 16  # so many are accepted in one go: those that make room for them are closed a few turns of the loop later
OWN_FILES = 64  # descriptors for everything that is no connection
MOST = 512  # connections beyond those that are spoken to or wait
SAID_EVERY_S = 60.0
FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def most_connections(places: int) -> int:
    """How many connections may be open: below the process's limit of descriptors, where the system has one."""
    try:
        import resource
    except ImportError:  # Windows
        return places + MOST
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return places + MOST if soft < 0 else max(8, min(places + MOST, soft - BACKLOG - OWN_FILES))


async def lengthen_queue(server: Any, listener: socket.socket) -> None:
    """Let BACKLOG connections wait once the server listens: asyncio takes one number for the queue and for a batch."""
    while not server.started:
        await asyncio.sleep(0.01)
    listener.listen(BACKLOG)


def connection_class(counts: Counts, most: int) -> Any:
    """uvicorn's connection of HTTP/1.1 with limits, as its `http` option takes it."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    told = _Told()

    class Connection(H11Protocol):
        """At `most` connections, the one that has waited longest without a request makes room for the next."""

        head_timer: Any = None
        stall_timer: Any = None
        since = 0.0

        def connection_made(self, transport: Any) -> None:
            self.since = self.loop.time()
            idle = [c for c in self.connections if isinstance(c, Connection) and c.idle]
            super().connection_made(transport)
            if len(self.connections) > most:
                if not idle:
                    told.drop(counts, "full", self.loop.time())
                    transport.write(FULL)
                    transport.close()
                    return
                min(idle, key=lambda connection: connection.since).drop("crowded")
            self._watch_head()

        @property
        def idle(self) -> bool:
            """No request is being answered."""
            return self.conn.our_state not in (h11.SEND_RESPONSE, h11.SEND_BODY)

        def drop(self, why: str) -> None:
            """Close it at once."""
            if not self.transport.is_closing():
                told.drop(counts, why, self.loop.time())
            self.connections.discard(self)
            self.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def on_response_complete(self) -> None:
            self.since = self.loop.time()
            super().on_response_complete()
            self._watch_head()

        def connection_lost(self, error: Exception | None) -> None:
            for timer in (self.head_timer, self.stall_timer):
                if timer:
                    timer.cancel()
            super().connection_lost(error)

        def _watch_head(self) -> None:
            if not self.idle and self.head_timer:
                self.head_timer.cancel()
                self.head_timer = None
            elif self.idle and not self.head_timer and not self.transport.is_closing():
                self.head_timer = self.loop.call_later(HEAD_S, self.drop, "silent")

        def pause_writing(self) -> None:
            super().pause_writing()
            self.stall_timer = self.loop.call_later(STALL_S, self.drop, "stalled")

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.stall_timer:
                self.stall_timer.cancel()

    return Connection


class _Told:
    """Connections that were dropped: all are counted, and the log has a line a minute."""

    def __init__(self) -> None:
        self.since_last, self.last = 0, -SAID_EVERY_S

    def drop(self, counts: Counts, why: str, now: float) -> None:
        counts.dropped(why)
        self.since_last += 1
        if now - self.last >= SAID_EVERY_S:
            log.warning("%d connections dropped, the last one as %s (see /metrics)", self.since_last, why)
            self.since_last, self.last = 0, now
