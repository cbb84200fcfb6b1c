"""For tests of the server: a voice that is quick and does as it is told, and servers on a free port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from orpheus.format.prompt import check_text
from orpheus.serve.command import bind
from orpheus.serve.connections import BACKLOG, BATCH, connection_class
from orpheus.speak.utterance import NoSpeech

FRAME = 2048


def tone(text: str, voice: str | None, seed: int) -> np.ndarray:
    """What a `Speaker` says: float32, a frame for every second character, each with a pitch of text, voice and seed."""
    rng = np.random.default_rng([seed, *f"{voice}:{text}".encode()])
    pitches = rng.uniform(100, 400, max(2, len(text) // 2))
    return np.concatenate([0.4 * np.sin(np.arange(FRAME) * 2 * np.pi * pitch / 24000) for pitch in pitches]).astype(
        "f4"
    )


@dataclass
class Speaker:
    """Reads like `OrpheusInference`, without a model. `fail_at`: the chunk at which `error` comes."""

    voices: tuple[str, ...] = ("anna", "ben")
    trained_tags: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    pause_s: float = 0.0
    fail_at: int | None = None
    error: Exception = field(default_factory=lambda: NoSpeech("the model produced no audio"))
    guard: tuple[str, ...] = ()
    finish_reason: str = "end_of_speech"
    base: str = "embedded:tiny_orpheus"
    readings: list[FakeReading] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)
    hold_at: int | None = None  # the chunk before which it waits for `go_on`

    @property
    def provenance(self) -> dict[str, Any]:
        return {"model": {"adapter": None, "base": self.base}}

    @property
    def renderer(self) -> Any:
        return SimpleNamespace(text_ids=lambda text, voice: list(text))

    def unknown_words(self, text: str) -> list[str]:
        return [word for word in self.unknown if word in text]

    def read(self, text, voice, sampling, reading, *, collected=False, warn=True) -> FakeReading:
        made = FakeReading(self, check_text(text), voice, 4711 if sampling.seed is None else sampling.seed, reading)
        made.collected, made.sampling = collected, sampling
        self.readings.append(made)
        return made


class FakeReading:
    """Keeps to the contract of `orpheus.speak.reading.Reading`."""

    def __init__(self, speaker: Speaker, text: str, voice: str | None, seed: int, reading: Any) -> None:
        self.speaker, self.text, self.voice, self.seed, self.reading = speaker, text, voice, seed, reading
        self.pieces: list[Any] = []
        self.collected, self.sampling = False, None
        self.note = f"Synthetic speech. Voice: {voice}, seed: {seed}"
        self.tokens = self.made = 0
        self.duration_s = 0.0
        self.closed_at: float | None = None
        self._chunks = self._speak()

    def _speak(self) -> Iterator[np.ndarray]:
        samples = tone(self.text, self.voice, self.seed)
        for number, start in enumerate(range(0, len(samples), FRAME)):
            if number == self.speaker.fail_at:
                raise self.speaker.error
            if number == self.speaker.hold_at:
                assert self.speaker.go_on.wait(20)
            time.sleep(self.speaker.pause_s)
            self.made += 1
            self.duration_s += FRAME / 24000
            yield samples[start : start + FRAME]
        self.tokens = 5 * self.made
        self.pieces.append(SimpleNamespace(guard=self.speaker.guard, finish_reason=self.speaker.finish_reason))

    def __iter__(self) -> FakeReading:
        return self

    def __next__(self) -> np.ndarray:
        return next(self._chunks)

    def close(self) -> None:
        self._chunks.close()
        self.closed_at = self.closed_at or time.monotonic()


@contextmanager
def running(app: Any, most: int = 600) -> Iterator[str]:
    """Serve the app on a free port of this machine until the block ends; its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, backlog=BATCH,
                                           http=connection_class(app.state.desk.counts, most),
                                           lifespan="off"))  # fmt: skip
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    until(lambda: server.started)
    listener.listen(BACKLOG)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        app.state.desk.pool.shutdown()


def until(true: Any, seconds: float = 10.0) -> float:
    """Wait until it is true; how long that took. AssertionError after `seconds`."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, "it did not happen"
        time.sleep(0.005)
    return time.monotonic() - started
