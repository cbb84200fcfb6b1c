"""Synthetic laughs, giggles, sighs and gasps: one distinct sound for each emotion tag.

Only the breath in them is random. They differ in what a simple detector measures: laughs are slow voiced bursts (about
6 a second), giggles fast and high ones (about 11 a second), sighs are breath that falls, gasps are short breath that
rises.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.signal import butter, sosfilt

SAMPLE_RATE = 24_000


def _noise(rng: np.random.Generator, seconds: float, low_hz: float, high_hz: float) -> np.ndarray:
    """Band-limited white noise of unit variance."""
    n = int(seconds * SAMPLE_RATE)
    bands = butter(2, [low_hz, high_hz], "band", fs=SAMPLE_RATE, output="sos")
    x = sosfilt(bands, rng.normal(size=n + 2000))[2000:]
    return x / (x.std() + 1e-9)


def _voiced(f0_hz: np.ndarray, formant_hz: float) -> np.ndarray:
    """A pulse-like tone with the pitch contour `f0_hz` [samples], its harmonics shaped around one formant."""
    phase = 2 * np.pi * np.cumsum(f0_hz) / SAMPLE_RATE
    mean = float(f0_hz.mean())
    x = np.zeros_like(phase)
    for k in range(1, int(5000 / mean)):
        x += np.sin(k * phase) / k**0.7 * np.exp(-(((k * mean - formant_hz) / 900) ** 2))
    return x / (np.abs(x).max() + 1e-9)


def _bursts(
    rng: np.random.Generator, count: int, on_s: float, off_s: float, f0_hz: float, slope: float, formant_hz: float
) -> np.ndarray:
    """`count` voiced bursts with breath between them; each starts `slope` times the pitch of the one before."""
    parts = []
    n = int(on_s * SAMPLE_RATE)
    for k in range(count):
        glide = np.linspace(1.1, 0.8, n)
        tone = _voiced(f0_hz * slope**k * glide, formant_hz)
        parts.append((tone + 0.03 * _noise(rng, on_s, 800, 4000)) * np.hanning(n) * 0.95**k)
        parts.append(0.03 * _noise(rng, off_s, 1000, 4000))
    return np.concatenate(parts)


def laughs(rng: np.random.Generator, pitch: float) -> np.ndarray:
    """Ha, ha, ha, ha: slow bursts with falling pitch; `pitch` is relative to a speaker of 180 Hz."""
    return 0.40 * _bursts(rng, 4, 0.090, 0.075, 270 * pitch, 0.93, 900)


def giggles(rng: np.random.Generator, pitch: float) -> np.ndarray:
    """Hihihihi: fast, high bursts with rising pitch."""
    return 0.35 * _bursts(rng, 7, 0.050, 0.038, 520 * pitch, 1.04, 2300)


def sighs(rng: np.random.Generator, pitch: float) -> np.ndarray:
    """A long breath out: loud at once, then falling in level and in colour."""
    seconds = 0.62
    high, low = _noise(rng, seconds, 1500, 3500), _noise(rng, seconds, 500, 1300)
    t = np.linspace(0, 1, len(high))
    x = (low * t + 0.7 * high * (1 - t)) * np.minimum(1, 7 * t) * np.exp(-1.8 * t) * np.minimum(1, 8 * (1 - t))
    return 0.30 * x / np.abs(x).max()


def gasps(rng: np.random.Generator, pitch: float) -> np.ndarray:
    """A short breath in: rising noise that stops at once."""
    x = _noise(rng, 0.30, 2500, 7000)
    t = np.linspace(0, 1, len(x))
    x = x * t**2 * np.minimum(1, 15 * (1 - t))
    return 0.35 * x / np.abs(x).max()


TAG_SOUNDS: dict[str, Callable[[np.random.Generator, float], np.ndarray]] = {
    "<laughs>": laughs,
    "<giggles>": giggles,
    "<sighs>": sighs,
    "<gasps>": gasps,
}
