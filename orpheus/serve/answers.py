"""One answer: wait for a slot, speak in a thread, send what comes; stop when the client hangs up.

The thread fills the spool (`orpheus/serve/spool.py`) as fast as it speaks, so a slow reader holds no slot while there
is room, and it gets no more time than its speech lasts and a minute. Nothing is sent before there is audio: until then
an error is a proper status. After it an answer that can't be completed is broken off, so that no client takes it for a
whole one.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np

from orpheus.audio.encoders import Encoder
from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.audio.schedule import grouped
from orpheus.errors import UserError
from orpheus.format.tokens import Stop
from orpheus.serve.admission import Admission
from orpheus.serve.counts import Counts
from orpheus.serve.problems import Problem
from orpheus.serve.requests import SpeechRequest
from orpheus.serve.spool import HandOver, Spool
from orpheus.speak.reading import Piece, Reading
from orpheus.speak.utterance import NoSpeech

log = logging.getLogger(__name__)

PATIENCE_S = 60.0  # how long a client may let an answer wait in all, beyond the time that it takes to play
PART = 1 << 15  # bytes that are written at a time, so that a connection's stall can be seen
MOST_UNKNOWN = 400  # characters of a header that lists words
SETTLE_S = 0.5
END_OF_SPEECH = str(Stop.END_OF_SPEECH)
SLOW = "slow_reader"


@dataclass
class Desk:
    """What all answers of a server share. `busy`: requests that have come in and are not completely answered."""

    admission: Admission
    counts: Counts
    pool: ThreadPoolExecutor
    spool: Spool = field(default_factory=Spool)
    busy: int = 0
    stopping: bool = False


@dataclass
class Silence:
    """A `Reading`, as far as an answer looks at it, of a text that says nothing."""

    seed: int
    pieces: tuple[Piece, ...] = ()
    tokens: int = 0
    duration_s: float = 0.25
    note: str = ""  # nobody would take it for a person

    def __iter__(self) -> Iterator[np.ndarray]:
        yield np.zeros(int(self.duration_s * SAMPLE_RATE_HZ), np.float32)

    def close(self) -> None:
        """There is nothing to stop."""


@dataclass
class Answer:
    """An ASGI application that speaks one reading to one client."""

    desk: Desk
    request: SpeechRequest
    reading: Reading | Silence
    encoder: Encoder
    input_tokens: int
    unknown: Sequence[str] = ()  # words that the voice does not know
    arrived: float = field(default_factory=time.monotonic)
    bytes_sent: int = 0
    waited_s: float = 0.0  # for the client to take what was sent

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer. Problem: there is no audio, and nothing was sent. Returns early where an answer breaks off."""
        old = scope["http_version"] == "1.0"  # without a length, it can't tell a broken answer from a whole one
        whole = not self.request.stream or (old and self.request.stream_format == "audio")
        gone = asyncio.create_task(_hung_up(receive))
        work = asyncio.create_task(self._answer(send, whole, scope))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not work.done():
                scope["outcome"] = "499"
            scope["note"] = self._note()
            for task in (gone, work):
                task.cancel()
            await asyncio.gather(gone, work, return_exceptions=True)
        if not work.cancelled():
            work.result()  # raises what it raised

    async def _answer(self, send: Any, whole: bool, scope: Any) -> None:
        try:
            entered = await self.desk.admission.enter()
        except BaseException:
            self._close()
            raise
        pieces = HandOver(asyncio.get_running_loop(), self.desk.spool, whole)
        speaking = asyncio.get_running_loop().run_in_executor(self.desk.pool, self._speak, pieces)
        speaking.add_done_callback(lambda _: self._spoken(entered))
        try:
            await self._send(send, self._pieces(pieces, speaking), whole, scope)
        finally:
            pieces.close()

    def _speak(self, pieces: HandOver) -> None:
        """In a thread: the reading's chunks as bytes; at last None, or the error that ended it."""
        try:
            for chunk in grouped(self.reading):
                data = self.encoder.push(chunk)
                if pieces.closed or (data and not pieces.put(data)):
                    return
            pieces.put(self.encoder.finish())
            pieces.put(None)
            pieces.settle()
        except Exception as error:
            if not pieces.put(error) and not isinstance(error, UserError):
                log.warning("after its client had gone, an answer failed", exc_info=True)
        finally:
            self._close()

    def _close(self) -> None:
        self.reading.close()
        self.encoder.close()

    def _spoken(self, entered: float) -> None:
        self.desk.admission.leave(entered)
        self.desk.counts.spoken(self.reading)

    async def _pieces(self, pieces: HandOver, speaking: asyncio.Future[None]) -> AsyncIterator[bytes]:
        """The bytes as they come. Problem: what ended them too early. After the last the slot is free again."""
        while (piece := await pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise _as_problem(piece)
            if piece:
                yield piece
        await asyncio.wait({speaking}, timeout=SETTLE_S)  # a client's next request must find the slot that this one had

    async def _send(self, send: Any, pieces: AsyncIterator[bytes], whole: bool, scope: Any) -> None:
        first = await anext(pieces, b"")
        self.desk.counts.first_audio(time.monotonic() - self.arrived)
        parts = [first, *[piece async for piece in pieces]] if whole else []
        sse = self.request.stream_format == "sse"
        try:
            if whole:
                await self._send_whole(send, self.encoder.whole(b"".join(parts)))
                return
            await self._start(send, {"cache-control": "no-store"})
            await self._send_piece(send, first, sse)
            async for piece in pieces:
                await self._send_piece(send, piece, sse)
        except Problem as problem:  # too late for a status: without its end, the client sees that the answer is broken
            scope["outcome"], scope["reason"] = "aborted", problem.code
            if not sse or problem.code == SLOW:
                return
            await self._send_event(send, {"type": "error", **problem.body()})
        else:
            if sse:
                await self._send_event(send, {"type": "speech.audio.done", "usage": self._usage(),
                                              "finish_reason": self.finish_reason})  # fmt: skip
        await send({"type": "http.response.body", "body": b""})

    async def _send_whole(self, send: Any, data: bytes) -> None:
        await self._start(send, {"content-length": str(len(data)), "x-finish-reason": self.finish_reason})
        for at in range(0, len(data), PART):
            await self._send_piece(send, data[at : at + PART], sse=False)
        await send({"type": "http.response.body", "body": b""})

    async def _start(self, send: Any, headers: dict[str, str]) -> None:
        sse = self.request.stream_format == "sse"
        headers["content-type"] = "text/event-stream; charset=utf-8" if sse else self.encoder.media_type
        headers["x-seed"] = str(self.reading.seed)
        if self.reading.note:
            headers["x-provenance"] = quote(self.reading.note)
        if self.unknown:
            headers["x-unknown-words"] = quote(", ".join(self.unknown)[:MOST_UNKNOWN])
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": encoded})

    async def _send_piece(self, send: Any, data: bytes, sse: bool) -> None:
        self.bytes_sent += len(data)
        if sse:
            await self._send_event(send, {"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
        else:
            await self._pass(send, data)

    async def _send_event(self, send: Any, event: dict[str, Any]) -> None:
        await self._pass(send, f"data: {json.dumps(event)}\n\n".encode())

    async def _pass(self, send: Any, body: bytes) -> None:
        """Part of the body. Problem: the client takes longer than it may."""
        started = time.monotonic()
        left = PATIENCE_S + self.encoder.samples / SAMPLE_RATE_HZ - self.waited_s
        try:
            async with asyncio.timeout(left):
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except TimeoutError:
            raise Problem(408, "the answer was taken too slowly", code=SLOW) from None
        self.waited_s += time.monotonic() - started

    @property
    def finish_reason(self) -> str:
        """Why the first piece ended that did not end as it should; end_of_speech if all did."""
        reasons = (piece.finish_reason for piece in self.reading.pieces)
        return next((reason for reason in reasons if reason != END_OF_SPEECH), END_OF_SPEECH)

    def _note(self) -> str:
        """What the log says of it. No word of the text: that is the client's own."""
        read = self.reading
        return (f"{len(self.request.input)} characters, {self.request.response_format}, {read.duration_s:.1f} s of "
                f"speech, {self.bytes_sent} bytes, seed {read.seed}, {self.finish_reason}")  # fmt: skip

    def _usage(self) -> dict[str, int]:
        tokens = self.reading.tokens
        return {"input_tokens": self.input_tokens, "output_tokens": tokens, "total_tokens": self.input_tokens + tokens}


async def _hung_up(receive: Any) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _as_problem(error: Exception) -> Problem:
    """What the client is told of an error; a bug is raised as it is, for the log."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, NoSpeech):
        return Problem(422, str(error), "input", "no_speech")
    if isinstance(error, UserError):
        return Problem(400, str(error), None, "invalid_value")
    raise error
