"""Find the synthetic laughs, sighs, gasps and giggles of the embedded voices in an utterance, from its sound alone.

Each tag has a picture: where the power of its sound lies in time and frequency, drawn from the few numbers that the
sound was made from (burst rhythm, formant, contour and bands of the breath). An utterance is searched for places
that look like a picture, by the correlation of log spectrograms. Level drops out of it, pitch hardly enters.

Limits: it knows these four sounds, as data/make/tag_sounds.py makes them, and no others. A person's laugh, sigh or gasp
is not found, and a sound that is found may still sound bad. data/README.md has the measured error rates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.errors import UserError

KNOWN_TAGS = ("<laughs>", "<sighs>", "<gasps>", "<giggles>")

HOP = SAMPLE_RATE_HZ // 100  # samples between frames: 10 ms, a ninth of a giggle's rhythm
WINDOW = 2 * HOP  # samples of a frame: shorter than any burst
EDGES_HZ = np.array([80, 220, 400, 600, 850, 1150, 1500, 1900, 2400, 3000, 3800, 4800, 6200, 8000])
CENTRES_HZ = np.sqrt(EDGES_HZ[1:] * EDGES_HZ[:-1])
BANDS = len(CENTRES_HZ)

RANGE_DB = 30.0  # within one place, what lies further below its loudest spot counts as silence
AUDIBLE_DB = 30.0  # places whose loudest spot lies further below the utterance's are background
SILENT_POWER = 1e-7  # of a band; speech at an RMS of 0.1 has 1 to 100
MARGIN = 4  # frames of silence on both sides of a picture: the sounds stand apart from the words
BLOCK = 2000  # places compared at a time: bounds the memory

THRESHOLDS = {"<laughs>": 0.75, "<sighs>": 0.75, "<gasps>": 0.75, "<giggles>": 0.65}
"""Least likeness. The sounds have 0.84 or more; all else at most 0.69 (laughs), 0.62 (gasps), 0.49 (the others)."""


@dataclass(frozen=True)
class Detection:
    """A sound that was found: its tag, where it lies (seconds), and its likeness to the picture, at most 1."""

    tag: str
    start_s: float
    end_s: float
    score: float


def detect_tags(samples: np.ndarray) -> list[Detection]:
    """The tag sounds in `samples` (float [n], 24 kHz, n >= 0), in order of time; their spans never overlap.

    Raises UserError for samples that are not one channel or not finite.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise UserError(f"expected finite samples of shape [n], got shape {list(samples.shape)}: mix to mono, check")
    power_db = spectrogram(samples)
    found = [hit for picture in pictures() for hit in _alike(power_db, picture)]
    kept: list[Detection] = []
    for hit in sorted(found, key=lambda hit: -hit.score):
        if all(hit.end_s <= other.start_s or other.end_s <= hit.start_s for other in kept):
            kept.append(hit)
    return sorted(kept, key=lambda hit: hit.start_s)


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """Power in dB of the BANDS, float32 [n // HOP + 1, BANDS], in frames of 20 ms around every sample i * HOP."""
    padded = np.pad(samples.astype(np.float32), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    size = 1024  # zeros between the window's end and here: 23 Hz a bin, so that the narrow bands have several
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(WINDOW).astype(np.float32), size)) ** 2
    bin_hz = np.arange(size // 2 + 1) * SAMPLE_RATE_HZ / size
    inside = (bin_hz[:, None] >= EDGES_HZ[:-1]) & (bin_hz[:, None] < EDGES_HZ[1:])
    return (10 * np.log10(spectrum @ inside + SILENT_POWER)).astype(np.float32)


# ---- the pictures ----


@dataclass(frozen=True)
class Picture:
    """What a tag's sound looks like: `power_db` [L, BANDS], 0 at its loudest spot, -RANGE_DB where it is silent."""

    tag: str
    power_db: np.ndarray


@cache
def pictures() -> tuple[Picture, ...]:
    """All pictures: each tag's sound at the speeds and lengths at which it comes."""
    drawn: list[tuple[str, np.ndarray]] = []
    for stretch in (0.85, 0.92, 1.0, 1.08, 1.15):
        drawn += [("<laughs>", _bursts(n, 0.090 * stretch, 0.075 * stretch, formant_hz=900)) for n in (4.0, 5.0)]
        drawn += [("<giggles>", _bursts(n, 0.050 * stretch, 0.038 * stretch, formant_hz=2300)) for n in (7.0, 8.0)]
    drawn += [("<sighs>", _sigh(seconds)) for seconds in (0.53, 0.58, 0.63, 0.68, 0.73)]
    drawn += [("<gasps>", _gasp(seconds)) for seconds in (0.25, 0.28, 0.31, 0.34)]
    return tuple(Picture(tag, _decibels(power)) for tag, power in drawn)


def _bursts(count: float, on_s: float, off_s: float, formant_hz: float) -> np.ndarray:
    """Power [L, BANDS] of `count` voiced bursts around a formant. Their pitch is left out: it differs by voice."""
    times_s = np.arange(round(count * (on_s + off_s) * SAMPLE_RATE_HZ / HOP)) * HOP / SAMPLE_RATE_HZ
    number, since_s = np.divmod(times_s + HOP / SAMPLE_RATE_HZ / 2, on_s + off_s)
    level = np.where(since_s < on_s, np.sin(np.pi * since_s / on_s) ** 2, 0) * 0.95**number
    power = np.outer(level, np.exp(-(((CENTRES_HZ - formant_hz) / 900) ** 2))) ** 2
    before, after = np.pad(power, ((1, 0), (0, 0)))[:-1], np.pad(power, ((0, 1), (0, 0)))[1:]
    return power / 2 + before / 4 + after / 4  # as a frame's window blurs it


def _sigh(seconds: float) -> np.ndarray:
    """Power [L, BANDS] of breath that falls in level, and from a bright to a dark colour."""
    t = _relative_time(seconds)
    level = np.minimum(1, 7.0 * t) * np.exp(-1.8 * t) * np.minimum(1, 8 * (1 - t))
    dark, bright = t * level, 0.7 * (1 - t) * level
    return np.outer(dark**2, _noise(500, 1300)) + np.outer(bright**2, _noise(1500, 3500))


def _gasp(seconds: float) -> np.ndarray:
    """Power [L, BANDS] of bright breath that rises and stops at once."""
    t = _relative_time(seconds)
    return np.outer((t**2 * np.minimum(1, 15 * (1 - t))) ** 2, _noise(2500, 7000))


def _relative_time(seconds: float) -> np.ndarray:
    frames = round(seconds * SAMPLE_RATE_HZ / HOP)
    return (np.arange(frames) + 0.5) / frames


def _noise(low_hz: float, high_hz: float) -> np.ndarray:
    """Power [BANDS] of white noise between two corners, with the slopes of a Butterworth filter."""
    passed = 1 / (1 + (low_hz / CENTRES_HZ) ** 8) / (1 + (CENTRES_HZ / high_hz) ** 8)
    return passed * np.diff(EDGES_HZ) / (high_hz - low_hz)


def _decibels(power: np.ndarray) -> np.ndarray:
    power = np.pad(power / power.max(), ((MARGIN, MARGIN), (0, 0)))
    return np.maximum(10 * np.log10(power + 1e-12), -RANGE_DB)


# ---- the search ----


def _alike(power_db: np.ndarray, picture: Picture) -> Iterator[Detection]:
    """The places that look like the picture more than all places around, and enough to be it."""
    length = len(picture.power_db)
    around = np.pad(power_db, ((length, length), (0, 0)), constant_values=10 * np.log10(SILENT_POWER))
    scores = np.concatenate(list(_likeness(around, picture.power_db, power_db.max() - AUDIBLE_DB)))
    good = np.flatnonzero(scores >= THRESHOLDS[picture.tag])
    for place in good:
        if scores[place] == scores[max(0, place - MARGIN) : place + MARGIN + 1].max():
            first, last = np.clip([place - length + MARGIN, place - MARGIN], 0, len(power_db) - 1)  # without silence
            start_s, end_s = float(first) * HOP / SAMPLE_RATE_HZ, float(last) * HOP / SAMPLE_RATE_HZ
            yield Detection(picture.tag, start_s, end_s, score=float(scores[place]))


def _likeness(around: np.ndarray, picture: np.ndarray, least_db: float) -> Iterator[np.ndarray]:
    """How well the picture fits each stretch of its length, block by block: the correlation, or 0 for quiet ones."""
    wanted = (picture - picture.mean()).ravel()
    wanted /= np.linalg.norm(wanted)
    places = np.lib.stride_tricks.sliding_window_view(around, len(picture), axis=0).transpose(0, 2, 1)
    for at in range(0, len(places), BLOCK):
        seen = places[at : at + BLOCK].reshape(-1, picture.size)
        loudest = seen.max(axis=1, keepdims=True)
        seen = np.maximum(seen, loudest - RANGE_DB)
        seen -= seen.mean(axis=1, keepdims=True)
        contrast = np.linalg.norm(seen, axis=1)
        audible = (loudest[:, 0] >= max(least_db, 10 * np.log10(SILENT_POWER) + RANGE_DB)) & (contrast > 1e-3)
        yield np.where(audible, seen @ wanted.astype(np.float32) / np.maximum(contrast, 1e-3), 0)
