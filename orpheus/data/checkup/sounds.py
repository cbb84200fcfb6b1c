"""What is measured in the sound of one clip: levels, edges, zeros, flat tops, steady tones, spectrum. Pure functions.

Samples are float32 [N]: at 24 kHz, or `stored`, as they lie in the file, where resampling would wipe out what is looked
for (exact zeros, flat tops).
"""

from __future__ import annotations

import numpy as np

from orpheus.audio.recordings import LEVEL_BLOCK, SAMPLE_RATE_HZ
from orpheus.hearing.pauses import levels_db

BLOCK_S = LEVEL_BLOCK / SAMPLE_RATE_HZ
DIGITAL_DB = -95.0  # a level below it holds no noise of any converter
ABOVE_NOISE_DB, BELOW_LOUDEST_DB = (
    6.0,
    28.0,
)  # sound is louder than the noise by so much, and than the loudest less that
LONGEST_CLICK = 3  # blocks that a click may last
EDGE_S = 0.03
LSB = 1.0 / 32768
LEAST_CROWD = 1e-3  # share of samples near the peak, under which nothing is concluded

BANDS = 96  # of the spectrum, by equal steps of the logarithm
SPECTRUM_HZ = (60.0, 12000.0)
LINES = 200  # of the fingerprint, by equal steps of the frequency
LINES_HZ = (60.0, 3600.0)
FFT = 1024
EMPTY = 1e-6  # share of the power
MOST_STRETCH = 26  # bands: four times

PITCH_HZ, PITCH_WINDOW = (55.0, 900.0), 2048  # also of a clip that is played at twice its rate
VOICED = 0.6  # correlation of a wave with itself one period later

TONE_WINDOW_S, TONE_HOP_S = 0.15, 0.0375
TONES_HZ = (35.0, 11000.0)
TONE_PERCENTILE = 5  # of the power over time: speech leaves a frequency now and then, a steady tone never
TONE_NEAR_HZ = 45.0  # what a tone stands out from


def spans(samples: np.ndarray) -> tuple[float, float, float]:
    """Seconds without speech: before the first, after the last, and the longest inside. By the clip's own noise."""
    levels = levels_db(samples, LEVEL_BLOCK)
    if len(levels) < LONGEST_CLICK:
        return 0.0, 0.0, 0.0
    edge = LONGEST_CLICK // 2
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(levels, edge, "edge"), LONGEST_CLICK)
    levels = np.median(windows, axis=1)  # a click is no speech
    noise_db = np.percentile(levels[levels > DIGITAL_DB], 5) if (levels > DIGITAL_DB).any() else DIGITAL_DB
    least_db = min(noise_db + ABOVE_NOISE_DB, levels.max() - ABOVE_NOISE_DB)
    sound = np.flatnonzero(levels > max(least_db, levels.max() - BELOW_LOUDEST_DB))
    if not len(sound):
        return 0.0, 0.0, 0.0
    inside = np.diff(sound).max(initial=1) - 1
    return float(sound[0] * BLOCK_S), float((len(levels) - 1 - sound[-1]) * BLOCK_S), float(inside * BLOCK_S)


def edges_db(samples: np.ndarray) -> tuple[float, float]:
    """The level of the first and of the last 30 ms, in dB of full scale."""
    size = int(EDGE_S * SAMPLE_RATE_HZ)

    def level(part: np.ndarray) -> float:
        return float(10 * np.log10(np.mean(part.astype(np.float64) ** 2) + 1e-12))

    return level(samples[:size]), level(samples[-size:])


def zeros_s(stored: np.ndarray, rate_hz: int) -> tuple[float, float]:
    """Seconds in which nothing changes by more than the last of 16 bits: the longest run, and all runs over 10 ms."""
    still = np.concatenate([[False], np.abs(np.diff(stored)) <= 0.5 * LSB, [False]]) & True
    edges = np.flatnonzero(np.diff(still.astype(np.int8)))
    runs = (edges[1::2] - edges[::2]) / rate_hz
    return float(runs.max(initial=0.0)), float(runs[runs > 0.01].sum())


def flat_tops(stored: np.ndarray) -> tuple[float, float]:
    """Signs of clipping, at any level: the share of samples in flat tops, and how the peaks crowd at the top.

    A flat top is three samples or more within two of 16 bits' last steps of the highest (or lowest) sample. The second
    is how many samples lie within 3 % of the peak for each that lies in the next 7 %: resampling and lossy formats
    leave no top flat, but they leave that.
    """
    if not len(stored):
        return 0.0, 0.0
    flat, near, below = 0, 0, 0
    for side in (stored, -stored):
        top = float(side.max())
        if top < 100 * LSB:
            continue
        at = np.concatenate([[False], side >= top - 2 * LSB, [False]])
        edges = np.flatnonzero(np.diff(at.astype(np.int8)))
        runs = edges[1::2] - edges[::2]
        flat += int(runs[runs >= 3].sum())
        near += int((side > 0.97 * top).sum())
        below += int(((side > 0.90 * top) & (side <= 0.97 * top)).sum())
    return flat / len(stored), near / max(below, 1) if near > LEAST_CROWD * len(stored) else 0.0


def steady_tones(samples: np.ndarray, most: int = 12) -> list[tuple[float, float, float]]:
    """Tones that never stop, the loudest first: Hz, level in dB of full scale, and dB above what is beside it.

    Over the whole clip the power at a frequency is seldom low only where a tone holds it up.
    """
    size, hop = int(TONE_WINDOW_S * SAMPLE_RATE_HZ), int(TONE_HOP_S * SAMPLE_RATE_HZ)
    if len(samples) < 2 * size:
        return []
    window = np.hanning(size)
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop] * window
    power = np.abs(np.fft.rfft(frames, 2 * size)) ** 2 / (window.sum() / 2) ** 2 / 2  # a tone's own power
    level = 10 * np.log10(np.percentile(power, TONE_PERCENTILE, axis=0) + 1e-13)
    step_hz = SAMPLE_RATE_HZ / (2 * size)
    near = int(TONE_NEAR_HZ / step_hz)
    padded = np.pad(level, near, "edge")
    beside = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * near + 1), axis=1)
    found = []
    for i in range(int(TONES_HZ[0] / step_hz), min(int(TONES_HZ[1] / step_hz), len(level) - 1)):
        if level[i] >= level[i - 1] and level[i] > level[i + 1] and level[i] - beside[i] > 6:
            found.append((float(i * step_hz), float(level[i]), float(level[i] - beside[i])))
    return sorted(found, key=lambda tone: -tone[2])[:most]


def spectrum_db(samples: np.ndarray) -> np.ndarray:
    """The long-term spectrum in BANDS equal steps of the logarithm of SPECTRUM_HZ, dB [BANDS], of the loud parts."""
    return _banded(samples, np.geomspace(*SPECTRUM_HZ, BANDS + 1))


def fingerprint_db(samples: np.ndarray) -> np.ndarray:
    """The spectrum in LINES narrow bands, dB [LINES], 0 on the average: alike for a clip that is shifted or louder."""
    lines = _banded(samples, np.linspace(*LINES_HZ, LINES + 1))
    return lines - lines.mean()


def _banded(samples: np.ndarray, edges_hz: np.ndarray) -> np.ndarray:
    size = FFT if len(samples) >= FFT else max(len(samples), 2)
    padded = np.pad(samples, (0, max(0, size - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:: size // 2] * np.hanning(size)
    power = (np.abs(np.fft.rfft(frames, 4 * FFT)) ** 2).mean(axis=0)
    hz = np.arange(len(power)) * SAMPLE_RATE_HZ / (4 * FFT)
    total = np.concatenate([[0], np.cumsum(power)])
    at = np.interp(edges_hz, hz, total[:-1])
    return 10 * np.log10(np.diff(at) / np.diff(edges_hz) + 1e-12)


def level_db(samples: np.ndarray) -> float:
    """The level [N] without its offset, in dB of full scale."""
    return float(10 * np.log10(np.var(samples, dtype=np.float64) + 1e-12)) if len(samples) else DIGITAL_DB


def correlation(stored: np.ndarray) -> float:
    """Of the first two channels of [N, C]; 1 where there is one, or one is still."""
    if stored.shape[1] < 2 or min(stored[:, 0].std(), stored[:, 1].std()) < LSB:
        return 1.0
    return float(np.corrcoef(stored[:, 0], stored[:, 1])[0, 1])


def band_hz(spectrum: np.ndarray) -> float:
    """Above which frequency there is practically nothing, from `spectrum_db`."""
    edges = np.geomspace(*SPECTRUM_HZ, BANDS + 1)
    power = 10 ** (np.asarray(spectrum) / 10) * np.diff(edges)
    above = np.cumsum(power[::-1])[::-1]
    return float(edges[np.flatnonzero(above > EMPTY * above[0])[-1] + 1])


def stretch(spectrum: np.ndarray, usual: np.ndarray) -> tuple[float, float]:
    """By how much the frequencies are raised against the usual spectrum, as a logarithm; and how much better that fits.

    Both dB [BANDS]. The second is in dB of the mean difference: 0 where the spectrum fits best as it is.
    """
    step = float(np.log(SPECTRUM_HZ[1] / SPECTRUM_HZ[0]) / BANDS)
    misfits = {}
    for shift in range(-MOST_STRETCH, MOST_STRETCH + 1):
        one = spectrum[max(0, shift) : BANDS + min(0, shift)]
        other = usual[max(0, -shift) : BANDS - max(0, shift)]
        one, other = np.maximum(one, one.max() - 60), np.maximum(other, other.max() - 60)
        misfits[shift] = float(np.mean(np.abs(one - one.mean() - other + other.mean())))
    best = min(misfits, key=lambda shift: misfits[shift])
    return best * step, misfits[0] - misfits[best]


def bands_db(samples: np.ndarray, count: int = 40) -> np.ndarray:
    """The levels over time of `count` bands, equal steps of the logarithm up to 8 kHz: dB [T, count], 11 ms a step."""
    padded = np.pad(samples, (0, FFT))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[:: FFT // 4] * np.hanning(FFT)
    power = np.abs(np.fft.rfft(frames, 4 * FFT)) ** 2 / FFT**2
    edges = np.searchsorted(np.arange(power.shape[1]) * SAMPLE_RATE_HZ / (4 * FFT), np.geomspace(100, 8000, count + 1))
    return 10 * np.log10(np.add.reduceat(power, edges[:-1], axis=1) + 1e-12)


def pitch_hz(samples: np.ndarray) -> float | None:
    """The median pitch of the voiced parts, by autocorrelation; None where nothing is voiced.

    Coarse, with an octave's error now and then, and thirty times as quick as `metrics.median_f0_hz`: the pitch of many
    clips is compared here, not that of one known exactly.
    """
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, (0, PITCH_WINDOW)), PITCH_WINDOW)
    frames = frames[:: PITCH_WINDOW // 2]
    power = (frames**2).mean(axis=1)
    frames = frames[power > power.max() / 100] * np.hanning(PITCH_WINDOW)
    own = np.fft.irfft(np.abs(np.fft.rfft(frames, 2 * PITCH_WINDOW)) ** 2)[:, :PITCH_WINDOW]
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(PITCH_WINDOW), 2 * PITCH_WINDOW)) ** 2)[:PITCH_WINDOW]
    first, last = int(SAMPLE_RATE_HZ / PITCH_HZ[1]), int(SAMPLE_RATE_HZ / PITCH_HZ[0])
    like = own[:, first:last] / np.maximum(own[:, :1], 1e-12) / (window[first:last] / window[0])
    # The first of the nearly best: twice the period fits as well.
    best = like.max(axis=1, initial=0.0)
    lag = first + np.argmax(like >= 0.9 * best[:, None], axis=1)
    voiced = lag[best > VOICED]
    return float(SAMPLE_RATE_HZ / np.median(voiced)) if len(voiced) else None
