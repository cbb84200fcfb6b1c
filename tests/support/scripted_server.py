"""A completions server in this process that answers as a test wants: on time, late, in pieces, wrongly, not at all."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from orpheus.format.tokens import CODEBOOK_SIZE, CUSTOM_TOKEN, FRAME_SLOTS, ORPHEUS

END = ORPHEUS.end_of_speech


def speech(frames: int, seed: int = 0) -> list[int]:
    """Legal ids, the first and the last code of a slot among them."""
    draw = random.Random(seed)
    codes = [draw.choice([0, CODEBOOK_SIZE - 1, draw.randrange(CODEBOOK_SIZE)]) for _ in range(frames * FRAME_SLOTS)]
    return [ORPHEUS.slot_range(i % FRAME_SLOTS)[code] for i, code in enumerate(codes)]


def written(ids: list[int]) -> str:
    """The ids as a server writes them."""
    return "".join(CUSTOM_TOKEN.format(i - ORPHEUS.custom_start) for i in ids)


class HangUp(Exception):
    """Raised by a script: the connection is reset in the middle of the answer."""


class ScriptedServer:
    """Answers /v1/models and the short questions of a new engine; streamed requests go to `script`.

    script: called with the request and a function that sends bytes, in a thread for each request.
    """

    def __init__(self) -> None:
        self.owner = "vllm"
        self.models = ["orpheus"]
        self.script: Callable[[dict, Callable[[bytes], None]], None] = lambda body, send: None
        self.statuses: list[tuple[int, Any]] = []  # refusals, given before the script is asked
        self.takes_ids = True
        self.reads = len  # how many tokens it finds in a prompt
        self.first = "<custom_token_10>"
        self.repeats: list[int] | None = None  # what it says it read, in ids
        self.requests: list[dict] = []  # the streamed ones
        self.headers: list[dict[str, str]] = []
        self.asked: list[float] = []
        self.hung_up: list[float] = []  # when a script found that the client was gone
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                outer.headers.append(dict(self.headers))
                data = [{"id": name, "object": "model", "owned_by": outer.owner} for name in outer.models]
                self.answer(200, {"object": "list", "data": data})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if isinstance(body["prompt"], list) and not outer.takes_ids:
                    self.answer(422, {"detail": [{"loc": ["body", "prompt"], "msg": "Input should be a string"}]})
                elif not body.get("stream"):
                    choice = {"index": 0, "text": outer.first, "finish_reason": "length"}
                    choice["prompt_token_ids"] = outer.repeats
                    usage = {"prompt_tokens": outer.reads(body["prompt"]), "completion_tokens": 1}
                    self.answer(200, {"choices": [choice], "usage": usage})
                else:
                    outer.requests.append(body)
                    outer.asked.append(time.perf_counter())
                    if outer.statuses:
                        self.answer(*outer.statuses.pop(0))
                    else:
                        self.stream(body)

            def answer(self, status: int, answer: Any) -> None:
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def stream(self, body: dict) -> None:
                self.close_connection = True
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()

                def send(data: bytes) -> None:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                    self.wfile.flush()

                try:
                    outer.script(body, send)
                    self.wfile.write(b"0\r\n\r\n")
                except HangUp:
                    # No orderly end: the socket is reset.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                except OSError:
                    outer.hung_up.append(time.perf_counter())

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        with suppress(OSError):
            self.http.shutdown()
            self.http.server_close()


def event(text: str = "", ids: list[int] | None = None, finish: str | None = None, **more: Any) -> bytes:
    """One server-sent event of a completion."""
    choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": finish}
    if ids is not None:
        choice["token_ids"] = ids
    return b"data: %s\n\n" % json.dumps({"object": "text_completion", "choices": [choice | more]}).encode()


def usage(tokens: int) -> bytes:
    """The event with the server's own count."""
    return b"data: %s\n\n" % json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}).encode()


DONE = b"data: [DONE]\n\n"


def sends(*parts: bytes) -> Callable[[dict, Callable[[bytes], None]], None]:
    """A script that sends these bytes, each in a chunk of its own."""

    def script(_: dict, send: Callable[[bytes], None]) -> None:
        for part in parts:
            send(part)

    return script


def cut(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """The bytes in pieces of these sizes, the rest in one."""
    parts, at = [], 0
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    return [part for part in [*parts, data[at:]] if part]
