"""A piece of a recording as a clip: trimmed to its speech, padded alike at both ends, at one loudness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.data.raw.listening import Heard
from orpheus.data.raw.placing import Span
from orpheus.errors import MissingPackage

PAD_S = 0.15  # of the room before and after the speech
APART_S = 0.03  # padding never comes closer to other speech
MOST_PEAK = 10 ** (-1 / 20)  # -1 dBFS
LOUDNESS_BLOCK_S = 0.4  # of ITU-R BS.1770; shorter clips are one block


def padded(samples: np.ndarray, start: int, end: int, others: Sequence[Span], noise_db: float) -> np.ndarray:
    """Speech from `start` to `end` of samples, float32 [n], with PAD_S before and after it, float32 [m].

    The padding is what was recorded there, up to the nearest of the `others` (speech and sounds); what lacks then is
    the room's noise from elsewhere in the recording, never zeros: a model would learn them.
    """
    pad, apart = round(PAD_S * SAMPLE_RATE_HZ), round(APART_S * SAMPLE_RATE_HZ)
    before = max([b + apart for _, b in others if b <= start], default=0)
    after = min([a - apart for a, _ in others if a >= end], default=len(samples))
    begin, stop = max(min(start, before), start - pad), min(max(end, after), end + pad, len(samples))
    room = _room(samples, others, start, end, noise_db)
    lacking = pad - (start - begin), pad - (stop - end)
    return np.concatenate([np.resize(room, lacking[0]), samples[begin:stop], np.resize(room, lacking[1])])


def levelled(clip: np.ndarray, loudness_lufs: float) -> tuple[np.ndarray, float]:
    """The clip, float32 [n], at that integrated loudness (ITU-R BS.1770), and how many dB it lacks: a peak that would
    pass -1 dBFS holds it back. MissingPackage without pyloudnorm."""
    try:
        import pyloudnorm
    except ImportError as error:
        raise MissingPackage("pyloudnorm", "setting the loudness of clips") from error
    block_s = min(LOUDNESS_BLOCK_S, len(clip) / SAMPLE_RATE_HZ)
    measured = float(pyloudnorm.Meter(SAMPLE_RATE_HZ, block_size=block_s).integrated_loudness(clip.astype(np.float64)))
    peak = float(np.abs(clip).max(initial=0.0))
    if not np.isfinite(measured) or not peak:  # too quiet to be measured
        return clip, 0.0
    wanted = 10 ** ((loudness_lufs - measured) / 20)
    gain = min(wanted, MOST_PEAK / peak)
    return (gain * clip).astype(np.float32), float(20 * np.log10(wanted / gain))


def obstacles(heard: Heard, start: int, end: int) -> list[Span]:
    """The speech and sounds of a recording that are outside `start` to `end`, as far as they are."""
    every = [*heard.spans, *((sound.start, sound.end) for sound in heard.sounds)]
    return [part for a, b in every for part in ((a, min(b, start)), (max(a, end), b)) if part[0] < part[1]]


def _room(samples: np.ndarray, others: Sequence[Span], start: int, end: int, noise_db: float) -> np.ndarray:
    """Up to half a second where nothing is to be heard, the nearest that is long enough; else noise of that level."""
    edges = sorted([(0, 0), (start, end), *others, (len(samples), len(samples))])
    apart, least = round(APART_S * SAMPLE_RATE_HZ), round(PAD_S * SAMPLE_RATE_HZ)
    free, reached = [], 0
    for a, b in edges:
        if a - reached >= least + 2 * apart:
            free.append((reached + apart, a - apart))
        reached = max(reached, b)
    if free:
        a, b = min(free, key=lambda span: min(abs(span[0] - start), abs(span[1] - start)))
        return samples[a : min(b, a + SAMPLE_RATE_HZ // 2)]
    return (10 ** (noise_db / 20) * np.random.default_rng(0).standard_normal(least)).astype(np.float32)
