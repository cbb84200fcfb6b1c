"""A stand-in for the speech server, to try the page on: the same routes and headers, a made-up voice, and strings to
pull: how fast it sends, when it waits, what it refuses, when it breaks off. It notes what it sent, and when."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orpheus.audio import recordings
from orpheus.serve.page import headers, page

TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac",
         "pcm": "audio/pcm"}  # fmt: skip
TAGS = ["<laugh>", "<chuckle>", "<sigh>", "<cough>", "<sniffle>", "<groan>", "<yawn>", "<gasp>"]


@dataclass
class PageServer:
    """What the test sets, and after it what happened."""

    url: str = ""
    chunk_s: float = 0.25  # seconds of sound in a chunk
    pause_s: float = 0.0  # before each chunk but the first
    hold_after: int | None = None  # chunks; then it waits until `go_on` is set
    break_after: int | None = None  # chunks; then the connection is lost
    key: str | None = None
    refuse: tuple[int, dict[str, Any], dict[str, str]] | None = None  # status, body, headers of the next speech
    unknown: str = ""  # words that the voice does not know, percent-encoded
    limit: int | None = 4096
    tags: list[str] = field(default_factory=lambda: list(TAGS))
    go_on: threading.Event = field(default_factory=threading.Event)
    hung_up: threading.Event = field(default_factory=threading.Event)
    asked: list[dict[str, Any]] = field(default_factory=list)  # the bodies of the requests for speech
    sent: list[tuple[float, bytes]] = field(default_factory=list)  # when, and what, of all of them


def sound(text: str, seed: int) -> np.ndarray:
    """Something like speech, float32 [n]: 30 ms a letter, syllables on a gliding tone. Same seed, same sound."""
    random = np.random.default_rng(seed)
    count = int(0.03 * recordings.SAMPLE_RATE_HZ) * len(text)
    t = np.arange(count) / recordings.SAMPLE_RATE_HZ
    pitch = 190 + 30 * np.sin(2 * np.pi * 0.6 * t) + 8 * np.sin(2 * np.pi * 5 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / recordings.SAMPLE_RATE_HZ
    formant = 900 + 500 * np.sin(2 * np.pi * 1.7 * t + seed)
    voiced = sum(np.sin(k * phase) / (1 + ((k * pitch - formant) / 600) ** 2) for k in range(1, 24))
    syllables = np.clip(np.sin(2 * np.pi * 1.9 * t + 0.4 * np.sin(2 * np.pi * 0.7 * t)), 0, 1) ** 0.6
    return (0.1 * syllables * (voiced + 0.05 * random.standard_normal(count))).astype(np.float32)


def encoded(samples: np.ndarray, format: str) -> bytes:
    """The bytes of a whole answer. AAC is made up: the page only passes it on."""
    if format in ("pcm", "aac"):
        return (b"aac " if format == "aac" else b"") + recordings.pcm16(samples)
    return recordings.to_bytes(samples, format)


def create_app(server: PageServer) -> Any:
    """The routes. Only speech is slow."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    def refusal(status: int, message: str) -> Response:
        return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "param": None,
                                       "code": None}}, status)  # fmt: skip

    def no_key(request: Request) -> Response | None:
        if server.key and request.headers.get("Authorization") != f"Bearer {server.key}":
            return refusal(401, "the API key is missing or wrong")
        return None

    async def root(request: Request) -> Response:
        return Response(page(), headers=headers())

    async def voices(request: Request) -> Response:
        told = {"voices": [{"id": v, "name": v} for v in ("anna", "ben")], "default": "ben", "tags": server.tags}
        return no_key(request) or JSONResponse({**told, "max_input_chars": server.limit})

    async def models(request: Request) -> Response:
        model = {"id": "stand-in", "object": "model", "created": 0, "owned_by": "tests"}
        return no_key(request) or JSONResponse({"object": "list", "data": [model]})

    async def speech(request: Request) -> Response:
        if refused := no_key(request):
            return refused
        body = await request.json()
        server.asked.append(body)
        if server.refuse:
            (status, content, extra), server.refuse = server.refuse, None
            return JSONResponse(content, status, extra)
        seed = body["seed"]
        answer = encoded(sound(body["input"], seed), body["response_format"])
        more = {"X-Seed": str(seed), **({"X-Unknown-Words": server.unknown} if server.unknown else {})}
        return StreamingResponse(chunks(answer), media_type=TYPES[body["response_format"]], headers=more)

    async def chunks(answer: bytes) -> AsyncIterator[bytes]:
        size = int(server.chunk_s * recordings.SAMPLE_RATE_HZ) * 2 + 1  # odd: samples are cut in the middle
        try:
            for number, start in enumerate(range(0, len(answer), size)):
                if number:
                    await asyncio.sleep(server.pause_s)
                while number == server.hold_after and not server.go_on.is_set():
                    await asyncio.sleep(0.02)
                if number == server.break_after:
                    raise ConnectionError
                server.sent.append((time.time(), answer[start : start + size]))
                yield answer[start : start + size]
        except (asyncio.CancelledError, GeneratorExit):
            server.hung_up.set()
            raise

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    routes = [Route("/", root), Route("/health", health), Route("/v1/audio/voices", voices)]
    routes += [Route("/v1/models", models), Route("/v1/audio/speech", speech, methods=["POST"])]
    return Starlette(routes=routes)


@contextlib.contextmanager
def running(app: Any) -> Iterator[str]:
    """Serve the app on a free port of this machine until the block ends; its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
