"""How clean a recording is: speech against the noise in its pauses, and the opinion that listeners would have."""

from __future__ import annotations

import importlib.util

import numpy as np

from orpheus.audio.recordings import LEVEL_BLOCK, SAMPLE_RATE_HZ
from orpheus.errors import MissingPackage

RATE_HZ = 16000
CLEANEST_DB = 90.0  # 16 bits hold no more; pauses of digital zeros have no noise at all
PAUSES, SPEECH = 5, 90  # percentiles of the level


def snr_db(samples: np.ndarray) -> float:
    """Speech above the noise in its pauses, in dB, of a clip, float32 [n] at 24 kHz; at most CLEANEST_DB.

    Levels of 20 ms: the loud ones are speech, the quietest noise. A clip without any pause seems noisier than it is.
    NaN for a clip shorter than one level.
    """
    levels = levels_db(samples)
    if not len(levels):
        return float("nan")
    noise, speech = np.percentile(levels, [PAUSES, SPEECH])
    return float(min(speech - noise, CLEANEST_DB))


def levels_db(samples: np.ndarray) -> np.ndarray:
    """The level of each 20 ms of samples [n], in dB of full scale: float64 [n // LEVEL_BLOCK], -120 at least."""
    blocks = np.asarray(samples[: len(samples) // LEVEL_BLOCK * LEVEL_BLOCK], np.float64).reshape(-1, LEVEL_BLOCK)
    return 10 * np.log10((blocks**2).mean(axis=1) + 1e-12)


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
