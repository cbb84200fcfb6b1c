"""What the smoke test feeds the toolkit: clips and sequences as long as a real corpus has them, made on the spot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.codec.snac import SAMPLES_PER_FRAME
from orpheus.format.tokens import CODEBOOK_SIZE, FRAME_SLOTS, LAYER_RATE, Codes

if TYPE_CHECKING:
    from datasets import Dataset

    from orpheus.format.prompt import Renderer

MEAN_S = 9.04  # Elise: 1,195 clips in about 3 hours
SHORTEST_S, LONGEST_S = 1.0, 22.0
TEXT = "it was a sunny day and nobody <laughs> had seen the little boat since early in the morning <sighs>"
WORDS_PER_S = 2.7  # about how fast people read aloud


def durations(count: int, mean_s: float = MEAN_S, seed: int = 0) -> np.ndarray:
    """Lengths of `count` clips in seconds, spread like those of a read corpus, float64 [count]."""
    drawn = np.random.default_rng(seed).gamma(4.0, mean_s / 4.0, count)
    return drawn.clip(SHORTEST_S, LONGEST_S)


def clip(seconds: float, seed: int) -> np.ndarray:
    """Float32 [N] at 24 kHz: some overtones of a wandering pitch, and noise."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * SAMPLE_RATE_HZ)
    knots = max(2, samples // 4000)
    pitch_hz = np.interp(np.arange(samples), np.linspace(0, samples, knots), rng.uniform(90, 300, knots))
    phase = np.cumsum(2 * np.pi / SAMPLE_RATE_HZ * pitch_hz)
    voice = sum(np.sin(k * phase) / k for k in (1, 2, 3, 5))
    return (0.1 * voice + 0.02 * rng.standard_normal(samples)).astype(np.float32)


def text(seconds: float) -> str:
    """About as many words as are said in that time."""
    words, count = TEXT.split(), max(2, round(seconds * WORDS_PER_S))
    return " ".join((words * (count // len(words) + 1))[:count])


def random_codes(frames: int, seed: int) -> Codes:
    """Codes of `frames` frames, each drawn from the whole codebook."""
    rng = np.random.default_rng(seed)
    return Codes(*(rng.integers(0, CODEBOOK_SIZE, frames * rate) for rate in LAYER_RATE))


def sequences(renderer: Renderer, seconds: Iterable[float], *, most: int, fill: bool = False, seed: int = 0) -> Dataset:
    """Training sequences (input_ids, labels, length) with random codes, one for each of `seconds`.

    None is longer than `most` tokens. `fill`: all are as long as that allows, whatever the seconds say.
    """
    from datasets import Dataset

    rows: list[dict[str, Any]] = []
    for index, clip_s in enumerate(seconds):
        words = text(clip_s)
        room = (most - len(renderer.example(words, random_codes(0, 0)).input_ids)) // FRAME_SLOTS
        frames = room if fill else min(room, round(clip_s * SAMPLE_RATE_HZ / SAMPLES_PER_FRAME))
        example = renderer.example(words, random_codes(frames, seed + index))
        rows.append({"input_ids": example.input_ids, "labels": example.labels, "length": len(example.input_ids)})
    return Dataset.from_list(rows)
