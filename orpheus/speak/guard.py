"""The guard: is what a model says still its text? It watches the frames and samples of an utterance as they come.

    loop        the coarse codes repeat themselves: one frame held, or some frames said again and again
    silence     the speaker falls silent and does not end
    runaway     speech longer than its text allows
    too short   at the end: speech far shorter than its text needs

What is usual is learnt from the clips of a training (`data/usual.py`); the limits lie well beyond it (`Limits`),
because cutting good speech is worse than letting bad speech pass.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.codec.snac import SAMPLES_PER_FRAME
from orpheus.data.usual import PERIODS, Silence, SpeechStatistics
from orpheus.format.tokens import Codes

FRAME_S = SAMPLES_PER_FRAME / SAMPLE_RATE_HZ

# How far beyond the usual a limit lies. Measured in benchmarks/guard.py: no false alarm on clips that were held out.
LONGEST, LONGEST_MORE_S = 1.5, 0.5
SHORTEST = 0.6
SILENCE, SILENCE_MORE_S = 2.0, 0.5
REPEAT, REPEAT_MORE = 2, 4


@dataclass(frozen=True)
class Limits:
    """What an utterance may be, given its text."""

    longest_s: float
    shortest_s: float
    silence_s: float
    held: int  # frames
    repeated: int  # frames, beyond the first period

    @classmethod
    def of(cls, usual: SpeechStatistics, text: str) -> Limits:
        """The usual for this text, and the margin beyond it."""
        expected_s = usual.expected_s(text)
        return cls(
            longest_s=LONGEST * max(usual.slowest, 1.0) * expected_s + LONGEST_MORE_S,
            shortest_s=SHORTEST * min(usual.quickest, 1.0) * expected_s,
            silence_s=SILENCE * usual.silence_s + SILENCE_MORE_S,
            held=math.ceil(REPEAT * usual.held) + REPEAT_MORE,
            repeated=math.ceil(REPEAT * usual.repeated) + REPEAT_MORE,
        )


class Watch:
    """Watches one utterance. `cut` says why it should end now, None while all is well."""

    def __init__(self, usual: SpeechStatistics, text: str) -> None:
        self.limits = Limits.of(usual, text)
        self.cut: str | None = None
        self.frames, self.seconds = 0, 0.0
        self._before: deque[int] = deque(maxlen=PERIODS)
        self._runs = [0] * (PERIODS + 1)  # by period: how many frames in a row equal the one that long before
        self._silence = Silence(usual.silent_db)

    def frame(self, codes: Codes) -> None:
        """Take the codes of the next frame."""
        code = int(codes.coarse[0])
        self.frames += 1
        self.seconds = self.frames * FRAME_S
        for period, before in enumerate(reversed(self._before), 1):
            self._runs[period] = self._runs[period] + 1 if before == code else 0
        self._before.append(code)
        limits, held = self.limits, self._runs[1]
        if held > limits.held:
            self._end(f"a loop: one frame held {held + 1} times")
            return
        # A loop repeats with its shortest period first, then with the multiples. What is held counts above.
        period, run = max(enumerate(self._runs), key=lambda pair: (pair[1], -pair[0]) if pair[0] > 1 else (-1, 0))
        if run > limits.repeated and held < period:
            self._end(f"a loop: {period} frames said {run // period + 1} times and more")
        elif self.seconds > limits.longest_s:
            self._end(f"a runaway: the text allows at most {limits.longest_s:.1f} s")

    def sound(self, samples: np.ndarray) -> None:
        """Take the next samples, float32 [n] at 24 kHz."""
        self._silence.push(samples)
        if self._silence.now_s > self.limits.silence_s:
            self._end(f"silence: {self._silence.now_s:.1f} s, usual are at most {self.limits.silence_s:.1f} s")

    def _end(self, why: str) -> None:
        if self.cut is None:
            self.cut = f"{why}: cut after {self.seconds:.1f} s"

    def verdict(self, seconds: float) -> tuple[str, ...]:
        """What was wrong, with `seconds` of speech in the end: nothing, why it was cut, or that it is short."""
        if self.cut:
            return (self.cut,)
        if seconds < self.limits.shortest_s:
            return (f"too short: {seconds:.1f} s, the text needs {self.limits.shortest_s:.1f} s",)
        return ()
