"""Pieces of speech joined as one voice would speak on: a natural pause, no click, and one loudness, while it streams.

    piece ... | fall to zero, 10 ms | pause of 0.15 to 0.35 s in all | rise from zero, 10 ms | piece ...

The pause is made of the silence that the pieces end and begin with: what is too long is left out, what is too short is
filled up. So pieces need no cross-fade: there is no sound where they meet. From the second piece on a gain brings the
loudness to within 1.5 dB of what was spoken before. It follows what was heard of the piece so far, slowly, and is never
more than 4 dB. Nothing waits for the end of a piece; held back are 10 ms, and silence that may prove to be its end.

How the chunks are cut changes nothing. A text of one piece passes untouched, and so does the first of several but for
the silence at its end and the fall to zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from orpheus.audio.recordings import LEVEL_BLOCK, SAMPLE_RATE_HZ

FADE = SAMPLE_RATE_HZ // 100  # samples
SHORTEST_PAUSE, LONGEST_PAUSE = round(0.15 * SAMPLE_RATE_HZ), round(0.35 * SAMPLE_RATE_HZ)  # samples
LEAD = 2 * LEVEL_BLOCK  # of the pause before a piece at least its own: soft sounds begin in it

GAIN_DB = 4.0
NATURAL_DB = 1.5  # sentences of one voice differ by this much anyway: to even that out made steps no smaller (LOG.md)
GAIN_DB_PER_S = 6.0
SURE_S = 1.0  # of sound, after which the loudness of a piece is believed wholly
MEMORY_S = 20.0  # of sound: what was spoken longer ago counts for less
PEAK = 0.99


class Joiner:
    """Joins the pieces of one reading: `begin`, `push` its chunks, `end`, for each piece in turn.

    `silent_db`: the RMS level below which nothing is said. All yield float32 chunks [n > 0].
    """

    def __init__(self, silent_db: float) -> None:
        self._silent = 10 ** (silent_db / 10)  # power
        self._spoken = Loudness(MEMORY_S)  # of all pieces before this one
        self._piece = Piece(self._spoken, first=True)
        self._pause = 0  # samples of silence since the last sound, of those handed out
        self._starting = self._last = False
        self._first = True
        self._rising = 0  # samples that are still to rise from zero
        self._rest = self._held = self._tail = np.zeros(0, np.float32)

    def begin(self, last: bool) -> None:
        """A piece follows; `last`: no other comes after it, so its end is left as it is."""
        self._last = last
        self._piece = Piece(self._spoken, self._first)
        self._starting = not self._first
        self._rest = self._held = self._tail = np.zeros(0, np.float32)

    def push(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """The next samples of the piece, float32 [n], final; yields what can be handed out."""
        if self._first and self._last:
            yield from _some(samples)
            return
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) // LEVEL_BLOCK * LEVEL_BLOCK
        self._rest = samples[whole:]
        out = [part for block in samples[:whole].reshape(-1, LEVEL_BLOCK) for part in self._block(block)]
        yield from _some(*out)

    def end(self) -> Iterator[np.ndarray]:
        """The piece is over; yields the rest of it."""
        if not (self._first and self._last):
            out = list(self._block(self._rest)) if len(self._rest) else []
            if not self._last:
                self._held = self._held[:0]  # silence beyond the longest pause
                out.append(self._tail * RAMP[: len(self._tail)][::-1])
            else:
                out += [self._tail, self._held]
            yield from _some(*out)
        self._spoken.add(self._piece.loudness)
        self._first = False

    def _block(self, block: np.ndarray) -> Iterator[np.ndarray]:
        power = float((block.astype(np.float64) ** 2).mean())
        sound = power >= self._silent
        block = self._piece.scaled(block, power if sound else None)
        if self._starting:
            if not sound:
                self._held = np.concatenate([self._held, block])[-LONGEST_PAUSE:]
                return
            yield from self._start()
        if sound:
            yield from self._out(self._held, block)
            self._held, self._pause = self._held[:0], 0
        elif self._last or self._pause < LONGEST_PAUSE - LEAD:
            yield from self._out(block)
            self._pause += len(block)
        else:
            self._held = np.concatenate([self._held, block])

    def _start(self) -> Iterator[np.ndarray]:
        """The first sound of a later piece is here, after the silence that is held."""
        self._starting = False
        lead = self._held[max(0, len(self._held) - (LONGEST_PAUSE - self._pause)) :]
        yield np.zeros(max(0, SHORTEST_PAUSE - self._pause - len(lead)), np.float32)
        self._held = self._held[:0]
        self._rising = FADE
        yield from self._out(lead)

    def _out(self, *parts: np.ndarray) -> Iterator[np.ndarray]:
        """Hand out all but the last FADE samples, which fall to zero if the piece ends here."""
        samples = np.concatenate(parts)
        left = min(self._rising, len(samples))
        if left:
            at = FADE - self._rising
            samples[:left] *= RAMP[at : at + left]  # a copy: concatenated just now
            self._rising -= left
        samples = np.concatenate([self._tail, samples])
        keep = 0 if self._last else min(FADE, len(samples))
        self._tail = samples[len(samples) - keep :]
        yield samples[: len(samples) - keep]


class Loudness:
    """The mean power of the sound so far, over about the last `memory_s` seconds of it."""

    def __init__(self, memory_s: float) -> None:
        self.memory_s, self.seconds, self.power = memory_s, 0.0, 0.0

    def add(self, other: Loudness) -> None:
        """Take in what was heard elsewhere."""
        self.hear(other.power, other.seconds)

    def hear(self, power: float, seconds: float) -> None:
        """Take in sound of this mean power."""
        kept = min(self.seconds, self.memory_s)
        if kept + seconds > 0:
            self.power = (self.power * kept + power * seconds) / (kept + seconds)
            self.seconds = kept + seconds


class Piece:
    """The gain of one piece: follows what is heard of it, and never looks ahead."""

    def __init__(self, before: Loudness, first: bool) -> None:
        self.before, self.first = before, first
        self.loudness = Loudness(MEMORY_S)  # as it came, then as it is handed out
        self.raw = Loudness(float("inf"))
        self.gain_db, self.peak = 0.0, 0.0

    def scaled(self, block: np.ndarray, power: float | None) -> np.ndarray:
        """The block, float32 [n], with its gain; `power` where it is sound, else None."""
        seconds = len(block) / SAMPLE_RATE_HZ
        if self.first or not self.before.seconds:
            if power is not None:
                self.loudness.hear(power, seconds)
            return block
        start_db, self.gain_db = self.gain_db, self._next(seconds)
        self.peak = max(self.peak, float(np.abs(block).max(initial=0.0)))
        gains = 10 ** (np.linspace(start_db, self.gain_db, len(block), dtype=np.float32) / 20)
        if power is not None:
            self.raw.hear(power, seconds)
            self.loudness.hear(power * 10 ** (self.gain_db / 10), seconds)
        return np.clip(block * gains, -1, 1)

    def _next(self, seconds: float) -> float:
        """The gain at the end of this block, from what was heard before it."""
        if not self.raw.seconds:
            return self.gain_db
        missing = 10 * np.log10(self.before.power / self.raw.power)
        wanted = np.sign(missing) * min(max(0.0, abs(missing) - NATURAL_DB), GAIN_DB)
        wanted = float(wanted) * min(1.0, self.raw.seconds / SURE_S)
        if self.peak > 0:  # what is louder than full scale would be clipped
            wanted = min(wanted, max(0.0, 20 * np.log10(PEAK / self.peak)))
        step = GAIN_DB_PER_S * seconds
        return self.gain_db + float(np.clip(wanted - self.gain_db, -step, step))


RAMP = (0.5 - 0.5 * np.cos(np.pi * np.arange(FADE) / FADE)).astype(np.float32)


def _some(*parts: np.ndarray) -> Iterator[np.ndarray]:
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if len(samples):
        yield samples.astype(np.float32, copy=False)
