"""The speech server under load: many clients at once, who ask for different things and hang up as they like.

    python benchmarks/serve_load.py                     # 32 clients, 5 minutes, the embedded voice, on this machine
    python benchmarks/serve_load.py --minutes 0.2 --clients 8

Before, the library speaks each text alone, and its samples are encoded: that is what each answer must be, byte for
byte. What is not is counted as truncated (it ended early and looked complete) or wrong. A sixth of the requests hang up
before their first byte or somewhere after it. Requests that the server has no place for (429) are counted apart.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.common import show
from benchmarks.machine import ROOT
from orpheus.audio.encoders import FORMS, Encoder
from orpheus.cli import run
from orpheus.config import ReadingOptions, SamplingOptions, VoiceOptions
from orpheus.errors import UserError

SENTENCES = ("The cat is here.", "It is a sunny day.", "<laugh> Yes.", "We will go home now.", "The dog is happy.",
             "Oh no, <sigh> not again.", "My name is Tara.", "Tell me more.")  # fmt: skip
LENGTHS = (1, 1, 2, 1, 3, 2, 1, 5)  # sentences
HANG_UP = 1 / 6  # of the requests
PIECE_CHARS = 40  # the embedded voice knows short sentences
LATE_S = 0.1  # what an encoder may put before and after the sound


@dataclass(frozen=True)
class Options:
    """Serve the embedded voice on loopback and ask for speech with many clients."""

    minutes: float = 5.0
    """How long."""
    clients: int = 32
    """How many ask at the same time."""
    cases: int = 24
    """Different requests: texts, voices, seeds, formats, speeds."""
    concurrent: int = 8
    """Slots of the server."""
    queue: int = 20
    """Places in its queue."""
    seed: int = 0
    """Of the clients' choices."""
    save: bool = False
    """Write the figures to benchmarks/results/serve_load_tiny.json as well."""

    def __post_init__(self) -> None:
        if self.minutes <= 0 or min(self.clients, self.cases, self.concurrent) < 1 or self.queue < 0:
            raise UserError("minutes must be above 0; clients, cases and concurrent 1 or more")


@dataclass(frozen=True)
class Case:
    """A request, and the bytes that answer it. samples: of the speech, at its speed."""

    body: dict[str, Any]
    expected: bytes
    samples: int


@dataclass
class Tally:
    """What the clients saw. One lock for all of it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: Counter[str] = field(default_factory=Counter)
    first_s: dict[str, list[float]] = field(default_factory=dict)  # of complete answers, by format
    total_s: dict[str, list[float]] = field(default_factory=dict)
    audio_s: float = 0.0
    problems: list[str] = field(default_factory=list)


def make_cases(count: int) -> Iterator[Case]:
    """Speak each text alone, by the library, and encode it."""
    from orpheus.speak.inference import load_voice

    tts = load_voice(VoiceOptions(adapter=None, preset="tiny", device="cpu"))
    formats = list(FORMS)
    for number in range(count):
        length = LENGTHS[number % len(LENGTHS)]
        text = " ".join(SENTENCES[(number + i) % len(SENTENCES)] for i in range(length))
        voice = tts.voices[number % len(tts.voices)]
        sampling = SamplingOptions(seed=number, decoding="framed")
        speed = 1.25 if number % 5 == 4 else 1.0
        read = tts.read(text, voice, sampling, ReadingOptions(guard=True, piece_chars=PIECE_CHARS))
        encoder = Encoder(formats[number % len(formats)], speed, read.note)
        data = b"".join([*(encoder.push(chunk) for chunk in read), encoder.finish()])
        late = decoded(data, encoder.format) - encoder.samples
        if not 0 <= late <= LATE_S * 24000:
            raise AssertionError(f"case {number}: {encoder.format} holds {late} samples more than were spoken")
        body = {"model": "tts-1", "input": text, "voice": voice, "seed": number, "speed": speed,
                "response_format": encoder.format, "stream_format": "sse" if number % 7 == 6 else "audio"}  # fmt: skip
        yield Case(body, data, encoder.samples)


def decoded(data: bytes, format: str) -> int:
    """How many samples, at 24 kHz, a player gets out of it."""
    if format == "pcm":
        return len(data) // 2
    import av

    file: Any = av.open(io.BytesIO(data))
    with file:
        return sum(round(frame.samples * 24000 / frame.sample_rate) for frame in file.decode(audio=0))


class Server:
    """`python -m orpheus serve` in a process of its own."""

    def __init__(self, concurrent: int, queue: int, log: int = subprocess.DEVNULL) -> None:
        command = [sys.executable, "-m", "orpheus", "serve", "--adapter", "None", "--preset", "tiny", "--device", "cpu",
                   "--port", "0", "--decoding", "framed", "--piece-chars", str(PIECE_CHARS), "--max-concurrent",
                   str(concurrent), "--max-queue", str(queue)]  # fmt: skip
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout
        found = re.search(r"http://([\d.]+):(\d+)", self.process.stdout.readline())
        if not found:
            raise UserError(f"the server did not start; try it by hand: {' '.join(command[1:])}")
        self.address = (found[1], int(found[2]))

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        connection.request("GET", path)
        data = connection.getresponse().read()
        connection.close()
        return data

    def health(self) -> dict[str, Any]:
        return dict(json.loads(self.get("/health")))

    def rss_mb(self) -> float:
        """Its resident memory."""
        text = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="utf-8")
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def client(server: Server, cases: list[Case], tally: Tally, until: float, choose: random.Random) -> None:
    """Ask, again and again."""
    while time.monotonic() < until:
        case = choose.choice(cases)
        leave_at = None
        if choose.random() < HANG_UP:
            leave_at = -1 if choose.random() < 0.3 else choose.randrange(len(case.expected))
        ended, wait_s = ask(server, case, tally, leave_at)
        with tally.lock:
            tally.ended[ended] += 1
        time.sleep(wait_s * choose.uniform(0.5, 1.5))


def ask(server: Server, case: Case, tally: Tally, leave_at: int | None) -> tuple[str, float]:
    """One request: how it ended, and how long to wait before the next. leave_at: hang up there, at -1 before it."""
    started, first = time.monotonic(), 0.0
    connection = http.client.HTTPConnection(*server.address, timeout=120)
    data = b""
    try:
        connection.request("POST", "/v1/audio/speech", json.dumps(case.body), {"Content-Type": "application/json"})
        if leave_at == -1:
            time.sleep(random.uniform(0, 1))
            return "hung up", 0.0
        answer = connection.getresponse()
        if answer.status == 429:
            answer.read()
            return "429", min(3.0, float(answer.headers["Retry-After"]))
        if answer.status != 200:
            tally.problems.append(f"{answer.status}: {answer.read()[:200]!r}")
            return "error", 0.0
        while part := answer.read1(1 << 16):
            first = first or time.monotonic() - started
            data += part
            if leave_at is not None and len(data) > leave_at:
                return "hung up", 0.0
    except (OSError, http.client.HTTPException) as error:
        tally.problems.append(f"{type(error).__name__}: {error} after {len(data)} bytes")
        return "error", 0.0
    finally:
        connection.close()
    return judge(case, data, first, time.monotonic() - started, tally), 0.0


def judge(case: Case, data: bytes, first_s: float, total_s: float, tally: Tally) -> str:
    """right, truncated, or wrong."""
    if case.body["stream_format"] == "sse":
        events = [json.loads(line[6:]) for line in data.decode().split("\n\n") if line]
        if events[-1]["type"] != "speech.audio.done":
            return "truncated"
        data = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    format = case.body["response_format"]
    if data != case.expected:
        missing = case.samples - decoded(data, format)
        with tally.lock:
            tally.problems.append(f"seed {case.body['seed']}, {format}: {len(data)} bytes for {len(case.expected)}, "
                                  f"{missing} samples are missing")  # fmt: skip
        return "truncated" if case.expected.startswith(data) else "wrong"
    with tally.lock:
        tally.first_s.setdefault(format, []).append(first_s)
        tally.total_s.setdefault(format, []).append(total_s)
        tally.audio_s += case.samples / 24000
    return "right"


def main(options: Options) -> None:
    """Serve, ask, count."""
    cases = list(make_cases(options.cases))
    server = Server(options.concurrent, options.queue)
    tally, memory = Tally(), [server.rss_mb()]
    until = time.monotonic() + 60 * options.minutes
    threads = [threading.Thread(target=client, args=(server, cases, tally, until, random.Random(options.seed + i)))
               for i in range(options.clients)]  # fmt: skip
    started = time.monotonic()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1)
        memory.append(server.rss_mb())
    seconds = time.monotonic() - started
    time.sleep(1)  # a slot must be free within a second
    after = server.health()
    code = server.stop()
    rows = [
        row("all", [t for ts in tally.first_s.values() for t in ts], [t for ts in tally.total_s.values() for t in ts])
    ]
    rows += [row(name, tally.first_s[name], tally.total_s[name]) for name in FORMS if name in tally.first_s]
    ended = {name: tally.ended[name] for name in ("right", "wrong", "truncated", "error", "hung up", "429")}
    show("serve_load", "tiny", {
        "seconds": round(seconds, 1), "clients": options.clients, "slots": options.concurrent, "queue": options.queue,
        "cases": len(cases), "ended": ended, "problems": tally.problems[:20],
        "requests_per_s": round(sum(ended.values()) / seconds, 2),
        "speech_s_per_s": round(tally.audio_s / seconds, 2),
        "first_audio_p50_s": rows[0]["first audio p50, s"], "first_audio_p95_s": rows[0]["first audio p95, s"],
        "rss_mb": {"start": round(memory[0]), "quarters": quarters(memory[1:]), "most": round(max(memory))},
        "slots_in_use_a_second_later": after["running"] + after["queued"], "exit_code": code,
    }, rows, options.save)  # fmt: skip
    if ended["wrong"] or ended["truncated"] or ended["error"] or after["running"] or after["queued"] or code:
        raise UserError(f"the server failed: {ended}, {after['running']} slots in use at the end, exit code {code}")


def row(name: str, first_s: list[float], total_s: list[float]) -> dict[str, Any]:
    """A line of the table."""
    if not first_s:
        return {"format": name, "complete answers": 0, "first audio p50, s": None, "first audio p95, s": None,
                "answer p50, s": None, "answer p95, s": None}  # fmt: skip
    figures = [round(float(np.percentile(values, p)), 2) for values in (first_s, total_s) for p in (50, 95)]
    return {"format": name, "complete answers": len(first_s), "first audio p50, s": figures[0],
            "first audio p95, s": figures[1], "answer p50, s": figures[2], "answer p95, s": figures[3]}  # fmt: skip


def quarters(values: list[float]) -> list[int]:
    """The median of each quarter of the time: what leaks goes on growing."""
    return [round(float(np.median(part))) for part in np.array_split(values, 4) if len(part)]


if __name__ == "__main__":
    run(main, Options, __doc__)
