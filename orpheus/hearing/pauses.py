"""Where somebody speaks, and where they pause: Silero's voice activity detector, which brings its model along.

It works at 16 kHz in steps of 32 ms, at about 75 times real time on one core. Its spans end where a voice is no longer
sure; a sound that fades goes on after that, so each span is widened as long as it stays above the recording's noise.
"""

from __future__ import annotations

import threading

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.errors import MissingPackage
from orpheus.threads import threads

RATE_HZ = 16000  # what the detector was trained on
SHORTEST_PAUSE_S = 0.1
SHORTEST_SOUND_S = 0.1  # "no", "eh"
STEP = SAMPLE_RATE_HZ // 100  # samples: levels are taken over 10 ms
FADE_S = 0.3  # most that a span is widened at each side
ABOVE_NOISE_DB = 6.0  # what lies closer to the noise is no sound any more
NOISE_QUANTILE = 0.1  # of the pauses' levels: breaths and clicks are in pauses too

_own = threading.local()  # the detector keeps a state while it listens: one for each thread


def speech_spans(samples: np.ndarray) -> list[tuple[int, int]]:
    """Where speech begins and ends in a recording, float32 [n] at 24 kHz: (start, end) in samples, in order.

    Between two spans lies a pause of some length; a pause of less than 0.1 s between sounds is none. The tail of a
    sound that fades belongs to its span. MissingPackage without silero-vad.
    """
    import soxr

    samples = np.asarray(samples, np.float32)
    heard = soxr.resample(samples, SAMPLE_RATE_HZ, RATE_HZ) if len(samples) else samples
    if len(heard) < 512 or not np.any(heard):  # less than one step
        return []
    scale = SAMPLE_RATE_HZ / RATE_HZ
    found = [(round(s["start"] * scale), min(round(s["end"] * scale), len(samples))) for s in _timestamps(heard)]
    return _widened(found, levels_db(samples), len(samples))


def levels_db(samples: np.ndarray, step: int = STEP) -> np.ndarray:
    """The level of each 10 ms, or `step` samples, float64 [n // step], in dB of full scale (RMS), -120 at least."""
    rows = samples[: len(samples) // step * step].reshape(-1, step)
    return 10 * np.log10(np.maximum(np.einsum("ij,ij->i", rows, rows, dtype=np.float64) / step, 1e-12))


def noise_db(levels: np.ndarray, spans: list[tuple[int, int]]) -> float:
    """The level of the room, from the 10 ms (`levels_db`) outside the spans of speech; without any, from the quietest.

    -120 where there is nothing at all.
    """
    outside = np.ones(len(levels), bool)
    for start, end in spans:
        outside[start // STEP : -(-end // STEP)] = False
    quiet = levels[outside] if outside.any() else levels
    return float(np.quantile(quiet, NOISE_QUANTILE)) if len(quiet) else -120.0


def _timestamps(heard: np.ndarray) -> list[dict[str, int]]:
    try:
        with threads(1):  # silero-vad sets one for the whole program when it is imported
            from silero_vad import get_speech_timestamps, load_silero_vad
    except ImportError as error:
        raise MissingPackage("silero-vad", "finding pauses") from error
    import torch

    with threads(1):  # its layers are tiny
        if not hasattr(_own, "detector"):
            _own.detector = load_silero_vad()
        return get_speech_timestamps(torch.from_numpy(heard), _own.detector, sampling_rate=RATE_HZ,
                                     min_silence_duration_ms=round(1000 * SHORTEST_PAUSE_S),
                                     min_speech_duration_ms=round(1000 * SHORTEST_SOUND_S))  # fmt: skip


def _widened(found: list[tuple[int, int]], levels: np.ndarray, length: int) -> list[tuple[int, int]]:
    """The spans with what fades before and after them; neighbours never pass the middle of their pause."""
    sounding = levels > noise_db(levels, found) + ABOVE_NOISE_DB
    most = round(FADE_S * SAMPLE_RATE_HZ / STEP)
    spans = []
    for i, (start, end) in enumerate(found):
        first = (found[i - 1][1] + start) // 2 if i else 0
        last = (end + found[i + 1][0]) // 2 if i + 1 < len(found) else length
        before = sounding[max(0, start // STEP - most) : start // STEP][::-1]
        after = sounding[-(-end // STEP) : -(-end // STEP) + most]
        spans.append((max(first, start - STEP * _run(before)), min(last, end + STEP * _run(after))))
    return spans


def _run(sounding: np.ndarray) -> int:
    """How many of the first are true."""
    return len(sounding) if sounding.all() else int(sounding.argmin())
