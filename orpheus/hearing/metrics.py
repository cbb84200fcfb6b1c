"""What an evaluation counts, as pure functions: word errors, pitch, and figures with their 95 % intervals.

A figure is computed over clips. Its interval is the percentile bootstrap (Efron 1979): the clips are drawn again, with
replacement, 2000 times, and the interval holds the middle 95 % of the figures so obtained. All takes of a clip are
drawn together, because they share its text and so are no independent evidence.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.errors import MissingPackage
from orpheus.format.prompt import strip_tags
from orpheus.hearing.numerals import written_out

ENGLISH = "en"

RESAMPLES = 2000
CONFIDENCE = 0.95

F0_RANGE_HZ = (60.0, 500.0)
F0_WINDOW, F0_STEP = 2048, 720  # samples: 85 ms hold five periods of the lowest pitch; a value each 30 ms


@dataclass(frozen=True)
class Figure:
    """A value, and the interval that holds 95 % of its bootstrap values; no interval for a single clip.

    An interval without width (all clips alike) says that the sample shows no spread, not that there is none.
    """

    value: float
    interval: tuple[float, float] | None


def ratio(parts: Sequence[Any], wholes: Sequence[Any]) -> Figure | None:
    """The sum of all parts over the sum of all wholes, clip by clip: word errors over words, hits over tries.

    `parts` and `wholes`: numbers [N], or [N, takes]. None where the wholes add up to nothing.
    """
    rows = np.stack([_sums(parts), _sums(wholes)])
    rows = rows[:, rows.any(axis=0)]  # clips that have no say make no interval narrower
    if not rows[1].sum() > 0:
        return None

    def of(chosen: np.ndarray) -> np.ndarray:
        part, whole = rows[:, chosen].sum(axis=-1)
        return part / np.where(whole > 0, whole, np.nan)

    return _figure(of, rows.shape[1])


def median(values: Sequence[Any]) -> Figure | None:
    """The median of the values [N] or [N, takes], clip by clip; NaN and None are left out. None if nothing is left."""
    table = np.asarray(values, np.float64).reshape(len(values), -1)
    table = table[np.isfinite(table).any(axis=1)]
    if not len(table):
        return None
    return _figure(lambda chosen: np.nanmedian(table[chosen].reshape(len(chosen), -1), axis=1), len(table))


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], count: int, seed: int = 0) -> tuple[float, float]:
    """The interval of a statistic over `count` clips, the same for the same seed.

    `statistic` takes indices of clips, [RESAMPLES, count], and gives the values [RESAMPLES]; NaN is left out.
    """
    chosen = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(statistic(chosen), [tail, 100 - tail])
    return float(low), float(high)


def _figure(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> Figure:
    value = float(statistic(np.arange(count)[None])[0])
    return Figure(value, bootstrap(statistic, count) if count > 1 else None)


def _sums(values: Sequence[Any]) -> np.ndarray:
    return np.asarray(values, np.float64).reshape(len(values), -1).sum(axis=1)


def words(text: str, language: str = ENGLISH) -> list[str]:
    """The words that are compared: lower case, without tags and punctuation, numbers written out.

    "It's <laughs> 9 o'clock -- NOW!" -> ["it's", "nine", "o'clock", "now"]. Letters, marks and digits of any script.
    """
    plain = unicodedata.normalize("NFC", written_out(strip_tags(text), language).lower()).replace("’", "'")
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in plain)
    return [word for part in kept.split() if (word := part.strip("'"))]


def word_errors(reference: str, transcript: str, language: str = ENGLISH) -> int:
    """How many words have to be replaced, left out or added to make the reference of the transcript (`words` each)."""
    try:
        import jiwer
    except ImportError as error:
        raise MissingPackage("jiwer", "the word error rate") from error
    counted = jiwer.process_words(" ".join(words(reference, language)), " ".join(words(transcript, language)))
    return int(counted.substitutions + counted.deletions + counted.insertions)


def median_f0_hz(samples: np.ndarray) -> float | None:
    """The median pitch of the voiced parts of a clip, float32 [n] at 24 kHz; None where nothing is voiced.

    Probabilistic YIN (Mauch and Dixon 2014): slower than YIN, but it says itself which parts are voiced.
    """
    if len(samples) < F0_WINDOW:
        return None
    try:
        import librosa
    except ImportError as error:
        raise MissingPackage("librosa", "measuring pitch") from error
    low_hz, high_hz = F0_RANGE_HZ
    f0, _, _ = librosa.pyin(samples, fmin=low_hz, fmax=high_hz, sr=SAMPLE_RATE_HZ, frame_length=F0_WINDOW,
                            hop_length=F0_STEP, resolution=0.2)  # fmt: skip
    voiced = f0[np.isfinite(f0)]
    return float(np.median(voiced)) if len(voiced) else None


if __name__ == "__main__":  # numba compiles librosa's pitch tracker when it is first used, and keeps the code
    median_f0_hz((0.1 * np.sin(np.arange(SAMPLE_RATE_HZ) / 30)).astype(np.float32))
