"""Is the speech server still there for honest clients while others do it harm? A bounded attack, on loopback alone.

python benchmarks/hostile.py               # two minutes
python benchmarks/hostile.py --save yes    # ... and keep the figures in benchmarks/results

Beside honest clients, whose every byte is compared as in serve_load.py, there are: readers that take a byte a second;
connections that say nothing or half a head; clients that hang up, in order or with a reset; and bodies, heads and names
that are malformed, or try to forge lines of the log.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import show
from benchmarks.serve_load import Case, Server, Tally, ask, make_cases, quarters
from orpheus.cli import run
from orpheus.errors import UserError

LONG = "The cat is here. It is a sunny day. We will go home now. Tell me more. "
TIMEOUT_S = 5.0
FORGED = "tara\n2026-01-01 00:00:00 INFO POST /v1/audio/speech 200 \x1b[2J"
MALFORMED = (
    b"", b"{", b"null", b"[" * 60_000, b"\xff" * 1000, b'{"model": "tts-1", "input": "\\ud800"}',
    b'{"model": "tts-1", "input": 5}', b'{"model": "tts-1", "input": "Hi.", "voice": {"id": []}}',
    b'{"model": "tts-1", "input": "Hi.", "voice": "tara", "speed": 1e999}', b" " * 3_000_000,
    json.dumps({"model": FORGED, "input": FORGED, "voice": "tara"}).encode(),
    json.dumps({"model": "tts-1", "input": f"<{FORGED}>", "voice": FORGED}).encode(),
)  # fmt: skip
HEADS = (
    b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"GET /%0Aforged HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n", b"A" * 200_000,
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Attack a server of the embedded voice on loopback, and ask it for speech meanwhile."""

    minutes: float = 2.0
    """How long."""
    honest: int = 4
    """Honest clients, which ask again and again."""
    slow: int = 10
    """Clients that take their answer a byte a second."""
    silent: int = 700
    """Connections that say nothing or half a head, all the time; more than the server keeps."""
    hang_up: int = 2
    """Clients that hang up."""
    malformed: int = 2
    """Clients that send what is no request."""
    seed: int = 0
    """Of all choices."""
    save: bool = False
    """Write the figures to benchmarks/results/hostile_tiny.json as well."""

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.honest < 1 or min(self.slow, self.silent, self.hang_up, self.malformed) < 0:
            raise UserError("minutes must be above 0, honest 1 or more, the others 0 or more")


class Attack:
    """What all attackers know, and what they have done."""

    def __init__(self, address: tuple[str, int], until: float) -> None:
        self.address, self.until = address, until
        self.done: Counter[str] = Counter()

    @property
    def on(self) -> bool:
        """It goes on."""
        return time.monotonic() < self.until

    def open(self, buffer: int = 0) -> socket.socket:
        """A connection, with a small buffer for what comes if one is given."""
        connection = socket.socket()
        connection.settimeout(TIMEOUT_S)
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.connect(self.address)
        return connection

    def request(self, text: str, buffer: int = 0, **more: Any) -> socket.socket:
        """A connection on which speech was asked for."""
        body = {"model": "tts-1", "input": text, "voice": "tara", "response_format": "pcm", **more}
        connection = self.open(buffer)
        connection.sendall(post(json.dumps(body).encode()))
        return connection

    def slow(self, choose: random.Random) -> None:
        """Take a byte a second."""
        with closing(self.request(LONG, 4096, stream=choose.random() < 0.7)) as connection:
            connection.settimeout(1.0)
            self.done["slow"] += 1
            while self.on:
                with suppress(TimeoutError):
                    if not connection.recv(1):
                        return
                    time.sleep(1)

    def hang_up(self, choose: random.Random) -> None:
        """Go away before the first byte or after some, in order or with a reset."""
        with closing(self.request(LONG)) as connection:
            self.done["hung up"] += 1
            with suppress(TimeoutError):
                for _ in range(choose.randint(0, 4)):
                    connection.recv(4096)
            time.sleep(choose.random())
            if choose.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def malformed(self, choose: random.Random) -> None:
        """Send what is no request; whatever comes back is taken."""
        with closing(self.open()) as connection:
            self.done["malformed"] += 1
            connection.sendall(post(choose.choice(MALFORMED)) if choose.random() < 0.6 else choose.choice(HEADS))
            connection.settimeout(0.2)
            while connection.recv(1 << 16):
                pass

    def silent(self, count: int) -> None:
        """Keep so many connections that say nothing, or half a head."""
        held: list[socket.socket] = []
        while self.on:
            while len(held) < count and self.on:
                connection = self.open()
                if len(held) % 2:
                    connection.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: 127")
                connection.setblocking(False)
                held.append(connection)
                self.done["silent"] += 1
            time.sleep(0.5)
            for connection in [c for c in held if is_closed(c)]:
                connection.close()
                held.remove(connection)
        for connection in held:
            connection.close()


def post(body: bytes) -> bytes:
    """A request for speech with this body."""
    return (b"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)) + body  # fmt: skip


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed it."""
    try:
        return not connection.recv(1 << 16)
    except BlockingIOError:
        return False
    except OSError:
        return True


def again(attack: Attack, what: Callable[[random.Random], None], choose: random.Random) -> None:
    """Do it until the end; what the server does about it is no news."""
    while attack.on:
        with suppress(OSError):
            what(choose)
        time.sleep(0.05)


def honest(server: Server, cases: list[Case], tally: Tally, attack: Attack, choose: random.Random) -> None:
    """Ask, and check every byte."""
    while attack.on:
        ended, wait_s = ask(server, choose.choice(cases), tally, None)
        with tally.lock:
            tally.ended[ended] += 1
        time.sleep(wait_s)


def fight(server: Server, cases: list[Case], options: Options, each_second: Callable[[], None]) -> dict[str, Any]:
    """The attack and the honest clients, to the end of both; what came of it."""
    attack, tally, started = Attack(server.address, time.monotonic() + 60 * options.minutes), Tally(), time.monotonic()
    names = [name for name in ("slow", "hang_up", "malformed") for _ in range(getattr(options, name))]
    chosen = [random.Random(options.seed - 1 - i) for i in range(options.honest)]
    threads = [threading.Thread(target=again, args=(attack, getattr(attack, name), random.Random(options.seed + i)))
               for i, name in enumerate(names)]  # fmt: skip
    threads += [threading.Thread(target=again, args=(attack, lambda _: attack.silent(options.silent), random.Random()))]
    threads += [threading.Thread(target=honest, args=(server, cases, tally, attack, choose)) for choose in chosen]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1)
        each_second()
    waits = [seconds for by_format in tally.first_s.values() for seconds in by_format]
    return {
        "seconds": round(time.monotonic() - started, 1), "attacks": dict(attack.done),
        "honest": {name: tally.ended[name] for name in ("right", "wrong", "truncated", "error", "429")},
        "worst_wait_s": round(max(waits, default=0.0), 2), "problems": tally.problems[:20],
    }  # fmt: skip


def main(options: Options) -> None:
    """Serve, attack, ask, count."""
    cases = list(make_cases(12))
    with tempfile.TemporaryFile() as log:
        server = Server(8, 32, log.fileno())
        memory = [server.rss_mb()]
        figures = fight(server, cases, options, lambda: memory.append(server.rss_mb()))
        time.sleep(2)
        after = server.health()
        code = server.stop()
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()
    forged = sum("forged" in line or line.startswith("2026-01-01") or "\x1b" in line for line in lines)
    figures |= {
        "rss_mb": {"start": round(memory[0]), "quarters": quarters(memory[1:]), "most": round(max(memory))},
        "log_bytes": sum(len(line) + 1 for line in lines), "log_lines": len(lines), "log_lines_forged": forged,
        "slots_in_use_two_seconds_later": after["running"] + after["queued"], "exit_code": code,
    }  # fmt: skip
    show("hostile", "tiny", figures, [{"honest": k, "answers": n} for k, n in figures["honest"].items()], options.save)
    ended = figures["honest"]
    if not ended["right"] or ended["wrong"] or ended["truncated"] or ended["error"] or forged or code:
        raise UserError(f"the server failed: {ended}, {forged} forged lines, exit code {code}")


if __name__ == "__main__":
    run(main, Options, __doc__)
