"""How clean a recording is: speech against the noise in its pauses, and the opinion that listeners would have."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from orpheus.audio.recordings import LEVEL_BLOCK, SAMPLE_RATE_HZ
from orpheus.errors import MissingPackage
from orpheus.hearing.pauses import levels_db

RATE_HZ = 16000
CLEANEST_DB = 90.0  # 16 bits hold no more; pauses of digital zeros have no noise at all
SPEECH_DB = 25.0  # what is so far below the loudest 20 ms is speech
BANDS_HZ = np.geomspace(100, 7600, 31)
FFT = 768
EMPTY = 1e-6  # of the fullest band's power
QUIETEST, BIAS_DB = 5, 9.0  # percentile of a band's power, and how far that lies below the mean of noise in one bin


def snr_db(samples: np.ndarray) -> float:
    """Speech above the noise, in dB, of a clip, float32 [n] at 24 kHz; at most CLEANEST_DB. NaN under 20 ms."""
    return min(speech_db(samples) - noise_db(samples), CLEANEST_DB)


def speech_db(samples: np.ndarray) -> float:
    """The level of the speech in samples [n], in dB of full scale, pauses left out; NaN under 20 ms."""
    levels = levels_db(samples, LEVEL_BLOCK)
    if not len(levels):
        return float("nan")
    loud = levels[levels > levels.max() - SPEECH_DB]
    return float(10 * np.log10(np.mean(10 ** (loud / 10))))


def noise_db(samples: np.ndarray) -> float:
    """The level of the noise in samples [n], in dB of full scale, -120 at least; NaN under 20 ms.

    Each band by itself, where it is quietest: even without any pause speech leaves every band now and then, and noise
    does not. Digital silence is left out.
    """
    if len(samples) < LEVEL_BLOCK:
        return float("nan")
    noise = 0.0
    for band, bins in _bands(samples):
        noise += float(np.percentile(band, QUIETEST)) * 10 ** (BIAS_DB / np.sqrt(bins) / 10)
    return float(10 * np.log10(noise + 1e-12))


def dynamics_db(samples: np.ndarray) -> float:
    """How far speech rises in a band above that band's quietest moments, in dB, in the quarter of the bands where it
    rises least; NaN under 20 ms.

    Clean speech has 34 or more, even without a pause; noise 18 dB below it leaves about 20. Empty bands don't count.
    """
    if len(samples) < LEVEL_BLOCK:
        return float("nan")
    bands = [band for band, _ in _bands(samples)]
    most = max((band.mean() for band in bands), default=0.0)
    ranges = [10 * np.log10(np.percentile(band, 100 - QUIETEST) / (np.percentile(band, QUIETEST) + 1e-14))
              for band in bands if band.mean() > EMPTY * most]  # fmt: skip
    return float(np.percentile(ranges, 25)) if ranges else CLEANEST_DB


def _bands(samples: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """The power over time, [T], in each band, and how many bins that has; digital silence is left out."""
    samples = np.pad(samples, (0, max(0, FFT - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, FFT)[:: FFT // 2] * np.hanning(FFT)
    power = np.abs(np.fft.rfft(frames)) ** 2 * 2 / (FFT**2 * 0.375)  # 0.375: of the window's own power
    total = power.sum(axis=1)
    power = power[total > total.max() * 1e-11]
    edges = np.searchsorted(np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE_HZ), BANDS_HZ)
    for low, high in pairwise(edges):
        if high > low and len(power):
            yield power[:, low:high].sum(axis=1), int(high - low)


def dnsmos(samples: np.ndarray) -> float:
    """What listeners would say of a clip, float32 [n] at 24 kHz, from 1 (bad) to 5: DNSMOS (Reddy and others 2022).

    Clean speech has about 3, noise 15 dB below it 2.1, 5 dB below it 1.7. A clip under 9 s is heard again and again
    to fill that. Raises MissingPackage.
    """
    import soxr

    for package in ("speechmos", "onnxruntime", "requests"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackage(package, "DNSMOS", "pip install speechmos onnxruntime requests")
    from speechmos import dnsmos as model

    if not len(samples):
        return float("nan")
    heard = soxr.resample(np.asarray(samples, np.float32), SAMPLE_RATE_HZ, RATE_HZ)
    return float(model.run(np.clip(heard, -1, 1), RATE_HZ)["ovrl_mos"])
