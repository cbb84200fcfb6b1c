"""Recordings of hours: mixed and resampled while they are decoded, so that only the result is held.

Decoded twice: which channels hold sound is known at the end alone. An hour of stereo at 44.1 kHz is 1.3 GB as floats,
and 0.35 GB as the toolkit's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from orpheus.audio.decoding import decode, package
from orpheus.audio.recordings import OPPOSITE, SAMPLE_RATE_HZ, SILENT_PEAK, WRONG_SCALE, cancelling, opened


def read_long(path: Path, name: str) -> np.ndarray:
    """As `recordings.read`, for a file of any length: float32 [N], mono, 24 kHz; `name` is what messages call it."""
    channels, mixer = _Channels(), _Mixer()
    with opened(path, name) as file:
        decode(file, name, each=channels.look)
        mixer.chosen = channels.living()
        if channels.cancel():
            raise cancelling(name)
        file.seek(0)
        mixed, rate_hz = decode(file, name, each=mixer.mix)
    whole = np.concatenate([mixed, mixer.rest(rate_hz)]) if len(mixed) else mixed
    # Heavily clipped waves overshoot when they are resampled: that is no other scale.
    return np.clip(whole, -WRONG_SCALE, WRONG_SCALE, out=whole) if channels.peak() <= 1.0 else whole


class _Channels:
    """What the channels hold, block by block: their range, and the sums that their correlation is made of."""

    def __init__(self) -> None:
        self._low = self._high = self._sums = self._products = None  # type: Any
        self._count = 0

    def look(self, block: np.ndarray, rate_hz: int) -> np.ndarray:
        """Take in a block [n, C]; nothing of it is kept."""
        if len(block):
            parts = block.min(0), block.max(0), block.sum(0, dtype=np.float64), block.T.astype(np.float64) @ block
            first = self._low is None
            self._low = parts[0] if first else np.minimum(self._low, parts[0])
            self._high = parts[1] if first else np.maximum(self._high, parts[1])
            self._sums = parts[2] if first else self._sums + parts[2]
            self._products = parts[3] if first else self._products + parts[3]
            self._count += len(block)
        return np.zeros(0, np.float32)

    def living(self) -> Any:
        """Which channels hold sound; all of them if none does."""
        if self._low is None:
            return slice(None)
        alive = self._high - self._low >= 2 * SILENT_PEAK
        return alive if alive.any() else slice(None)

    def peak(self) -> float:
        """The loudest sample of all channels."""
        return 0.0 if self._low is None else float(max(-self._low.min(), self._high.max()))

    def cancel(self) -> bool:
        """Whether there are two channels with sound, in opposite phase."""
        if self._low is None or len(self._low) != 2 or not (self._high - self._low >= 2 * SILENT_PEAK).all():
            return False
        spread = self._products - np.outer(self._sums, self._sums) / self._count
        return bool(spread[0, 1] < OPPOSITE * np.sqrt(spread[0, 0] * spread[1, 1]))


class _Mixer:
    """Blocks [n, C] to mono at 24 kHz, as one stream."""

    def __init__(self) -> None:
        self.chosen: Any = slice(None)
        self._stream: Any = None

    def mix(self, block: np.ndarray, rate_hz: int) -> np.ndarray:
        """What is ready of the mean of the chosen channels, float32 [m]."""
        mono = block[:, self.chosen].mean(axis=1)
        if rate_hz == SAMPLE_RATE_HZ:
            return mono
        if self._stream is None:
            soxr = package("soxr", "resampling audio")
            self._stream = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
        return self._stream.resample_chunk(mono)

    def rest(self, rate_hz: int) -> np.ndarray:
        """The end of the stream."""
        if self._stream is None:
            return np.zeros(0, np.float32)
        return self._stream.resample_chunk(np.zeros(0, np.float32), last=True)
