"""Reading a text of any length: piece after piece through the model, chunks out, and no audio kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from orpheus.audio import SAMPLE_RATE_HZ
from orpheus.speech import Speech
from orpheus.utterance import NoSpeech

Speak = Callable[[str, int], Iterator[np.ndarray | Speech | NoSpeech]]
"""Speaks a piece of text with a seed: chunks float32 [n], and after the last its Speech, or why there is none."""


@dataclass(frozen=True)
class Piece:
    """What is known of one spoken piece of a text. `guard`: what the guard did, in plain words."""

    text: str
    seed: int
    finish_reason: str
    finish_detail: str
    tokens: int
    duration_s: float
    guard: tuple[str, ...] = ()


class Reading:
    """A text being read aloud: an iterator of float32 chunks [n > 0], 24 kHz mono, each final.

    `pieces`, `tokens`, `duration_s`, `first_audio_s` (after the first `next`; None before the first chunk) and
    `total_s` (work so far) tell how it goes, during it and after. Memory does not grow with the audio.

    `next` raises NoSpeech if a piece gave not one frame; the reading is over then.
    """

    def __init__(self, texts: Sequence[str], voice: str | None, seed: int, speak: Speak) -> None:
        self.texts, self.voice, self.seed = texts, voice, seed
        self.pieces: list[Piece] = []
        self.samples = 0  # handed out so far
        self.first_audio_s: float | None = None
        self._started: float | None = None
        self._last = 0.0
        self._chunks = self._read(speak)

    @property
    def tokens(self) -> int:
        """Tokens drawn for the finished pieces."""
        return sum(piece.tokens for piece in self.pieces)

    @property
    def duration_s(self) -> float:
        """Seconds of audio handed out so far."""
        return self.samples / SAMPLE_RATE_HZ

    @property
    def total_s(self) -> float:
        """Seconds from the first `next` to the newest chunk or to the end."""
        return 0.0 if self._started is None else self._last - self._started

    def __iter__(self) -> Reading:
        return self

    def __next__(self) -> np.ndarray:
        if self._started is None:
            self._started = self._last = time.perf_counter()
        try:
            chunk = next(self._chunks)
        finally:
            self._last = time.perf_counter()
        if self.first_audio_s is None:
            self.first_audio_s = self.total_s
        self.samples += len(chunk)
        return chunk

    def close(self) -> None:
        """Stop speaking at once; what was handed out stays as it is. A second call does nothing."""
        self._chunks.close()

    def _read(self, speak: Speak) -> Generator[np.ndarray]:
        for i, text in enumerate(self.texts):
            spoken = 0
            for item in speak(text, self.seed + i):
                if isinstance(item, NoSpeech):
                    raise item
                if isinstance(item, Speech):
                    self.pieces.append(Piece(text, item.seed, item.finish_reason, item.finish_detail,
                                             item.timings.tokens, spoken / SAMPLE_RATE_HZ))  # fmt: skip
                    continue
                spoken += len(item)
                yield item
