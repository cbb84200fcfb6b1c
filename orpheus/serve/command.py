"""Serve a voice: OpenAI's speech API and a web page, for programs and people.

orpheus serve                                            # the adapter in lora_model
orpheus serve --no-adapter --preset tiny               # the embedded voice, on any machine
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import ipaddress
import logging
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from orpheus.config import ReadingOptions, SamplingOptions, VoiceOptions, check_ranges
from orpheus.engines.torch.shared import share
from orpheus.errors import MissingPackage, UserError
from orpheus.serve.answers import Desk
from orpheus.serve.connections import BACKLOG, BATCH, connection_class, lengthen_queue, most_connections
from orpheus.serve.gate import is_address
from orpheus.serve.options import LOCAL_HOSTS, ServerOptions, read_keys

log = logging.getLogger(__name__)

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "av")
LAST_BYTES_S = 5  # for bytes that are written but not yet sent
M_MMAP_THRESHOLD, THRESHOLD_BYTES = -3, 128 * 1024  # glibc's malloc.h, and its first value


@dataclass(frozen=True)
class ServeOptions:
    """Serve a voice on an address: OpenAI's speech API, and a web page."""

    host: str = "127.0.0.1"
    """Address to listen on. 127.0.0.1: this machine alone; 0.0.0.0: all that can reach it (use keys then)."""
    port: int = 8000
    """Port; 0: any that is free, which is printed."""
    model: VoiceOptions = field(default_factory=VoiceOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    reading: ReadingOptions = field(default_factory=lambda: ReadingOptions(guard=True))
    limits: ServerOptions = field(default_factory=ServerOptions)

    def __post_init__(self) -> None:
        check_ranges(self, port=(0, 65535))


def main(options: ServeOptions) -> None:
    """Serve until Ctrl-C or SIGTERM; then finish what was begun."""
    from orpheus.speak.inference import check_speaking, load_voice

    keys = read_keys(options.limits.api_key_file)
    listener = bind(options.host, options.port)
    voices = check_speaking(options.model)  # a mistake is told before anything is loaded
    options.limits.check_voices(voices.known if voices else ())
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingPackage(package, "the server", f"pip install {' '.join(PACKAGES)}") from error
    return_memory()
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Lines("%(asctime)s %(levelname)s %(message)s"))
    from orpheus.serve.app import create_app, known_tags

    tts = load_voice(options.model)
    tts.engine = share(tts.engine, options.limits.max_concurrent)
    local = is_address(name := listener.getsockname()[0]) and ipaddress.ip_address(name).is_loopback
    hosts = {*LOCAL_HOSTS, options.host.lower(), *options.limits.allow_host} if local or not keys else None
    app = create_app(tts, options.limits, sampling=options.sampling, reading=options.reading, keys=keys, hosts=hosts)
    if not local and not keys:
        log.warning("no API key is asked for: whoever reaches %s can speak with this voice", options.host)
    url = f"http://{f'[{options.host}]' if ':' in options.host else options.host}:{listener.getsockname()[1]}"
    say(url, tts.voices, app.state.model, bool(keys), known_tags(tts)[0])
    complete = asyncio.run(serve(app, listener, options.limits.shutdown_seconds))
    app.state.desk.pool.shutdown(wait=False, cancel_futures=True)
    tts.engine.close()
    if not complete:
        sys.exit(1)


class Lines(logging.Formatter):
    """A record is a line, its traceback is indented: what a client sent can neither forge a line nor move a cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, with its control characters spelt out."""
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().formatMessage(record))

    def formatException(self, info: Any) -> str:
        """The traceback, indented."""
        lines = super().formatException(info).split("\n")
        return "\n".join("    " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)


def return_memory() -> None:
    """Give blocks of 128 KiB and more back to the system when they are freed, where the C library is glibc.

    It raises that limit for itself, and then each thread's arena keeps what was freed in it: with 16 threads that make
    and free encoders, memory grew by 75 MB a minute (benchmarks/LOG.md).
    """
    with suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there. UserError: the host is unknown, the port is taken or not allowed."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)  # asyncio sets TCP_NODELAY by it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # else a second server could bind as well
    except (OSError, UnicodeError) as error:
        raise UserError(f"can't listen on {host}:{port}: {getattr(error, 'strerror', None) or error}; choose another "
                        "--host or --port") from error  # fmt: skip
    return listener


def say(url: str, voices: tuple[str, ...], model: str, keys: bool, tag: str) -> None:
    """What is served, where, and a line to try."""
    shown = f"voices {', '.join(voices)}" if voices else "one voice without a name"
    voice = f', "voice": "{voices[0]}"' if voices else ""
    key = " -H 'Authorization: Bearer KEY'" if keys else ""
    print(f"{model}, {shown}, is served on {url} (Ctrl-C stops). Open it in a browser, or try:\n"
          f"  curl {url}/v1/audio/speech{key} -H 'Content-Type: application/json' -o hello.mp3 \\\n"
          f"    -d '{{\"model\": \"{model}\", \"input\": \"Hello there.\"{voice}}}'", flush=True)  # fmt: skip


async def serve(app: Any, listener: socket.socket, shutdown_s: float) -> bool:
    """Serve until a signal comes, then until all is answered; False if answers were cut off after `shutdown_s`."""
    import uvicorn

    desk: Desk = app.state.desk
    most = most_connections(desk.admission.slots + desk.admission.places)
    config = uvicorn.Config(app, http=connection_class(desk.counts, most), backlog=BATCH,
                            ws="none", loop="asyncio", lifespan="off", log_config=None,
                            access_log=False, server_header=False, proxy_headers=False,
                            timeout_graceful_shutdown=LAST_BYTES_S)  # fmt: skip
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # it tells of what is no HTTP, and of what we break off
    server = uvicorn.Server(config)
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(signal_number: int, frame: FrameType | None) -> None:
        if desk.stopping:  # a second signal: nothing is waited for, not even a thread in the middle of a chunk
            os._exit(128 + signal_number)
        desk.stopping = True
        loop.call_soon_threadsafe(asked.set)

    # uvicorn would stop to listen at once, and end with the signal; this one says 503 while it finishes, and ends well.
    setattr(server, "handle_exit", stop)  # noqa: B010
    serving = asyncio.create_task(server.serve([listener]))
    queue = asyncio.create_task(lengthen_queue(server, listener))
    waiting = asyncio.create_task(asked.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if desk.busy:
        log.info("stopping: %d requests are answered first (Ctrl-C again ends at once)", desk.busy)
    until = time.monotonic() + shutdown_s
    while desk.busy and time.monotonic() < until:
        await asyncio.sleep(0.05)
    cut = desk.busy
    if cut:
        log.error("%d requests took longer than %g s and are cut off", cut, shutdown_s)
        config.timeout_graceful_shutdown = 0
    server.should_exit = True
    await serving
    waiting.cancel()
    queue.cancel()
    return not cut
