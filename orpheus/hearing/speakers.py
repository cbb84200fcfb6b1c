"""Who speaks: a voice as a vector, by Resemblyzer's speaker encoder (GE2E, Wan and others 2018)."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.errors import MissingPackage, UserError

RATE_HZ = 16000  # what the encoder was trained on
LOUDNESS_DBFS = -30.0  # as it was trained; quieter speech is raised to it
INSTALL = "pip install webrtcvad-wheels && pip install --no-deps Resemblyzer"  # by itself it asks for a C compiler


def embed(samples: np.ndarray) -> np.ndarray:
    """The voice in a clip, float32 [n] at 24 kHz, as float32 [256] of unit length; pauses are left out.

    A second or two tell little: the same person's short clips are less alike than their long ones.
    Raises MissingPackage, and UserError for digital silence.
    """
    import soxr

    if not np.any(samples):
        raise UserError("digital silence has no voice")
    encoder, audio = _encoder()
    heard = soxr.resample(np.asarray(samples, np.float32), SAMPLE_RATE_HZ, RATE_HZ)
    heard = np.clip(audio.normalize_volume(heard, LOUDNESS_DBFS, increase_only=True), -1, 1)
    spoken = audio.trim_long_silences(np.pad(heard, (0, RATE_HZ // 10)))  # it needs one window at least
    return np.asarray(encoder.embed_utterance(spoken if len(spoken) else heard), np.float32)


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """How alike two voices are, of unit length: the cosine, 0 to 1. The same voice has about 0.88, another 0.62."""
    return float(one @ other)


@cache
def _encoder() -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports names that SciPy has moved
        try:
            from resemblyzer import VoiceEncoder, audio
        except ImportError as error:
            raise MissingPackage("Resemblyzer", "comparing speakers", INSTALL) from error
        return VoiceEncoder("cpu", verbose=False), audio
