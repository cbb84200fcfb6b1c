"""Speech from flite (a small open synthesiser; Debian package `flite`), shifted into other speakers, with tags.

A voice is a flite voice plus a shift: speech is made slower by flite and then played faster, which raises pitch
and formants together (a smaller or larger speaker), and flite's own `f0_shift` moves the pitch alone.
"""

from __future__ import annotations

import random
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from grammar import TAG_PATTERN
from tag_sounds import SAMPLE_RATE, TAG_SOUNDS

GAP_S = 0.05  # silence before and after a tag's sound


@dataclass(frozen=True)
class Voice:
    """A speaker: flite voice, size shift (formants and pitch), extra pitch shift, relative speaking rate."""

    flite: str
    size: float = 1.0
    pitch: float = 1.0
    rate: float = 1.0

    @property
    def tag_pitch(self) -> float:
        """Pitch of the laughs and giggles, relative to flite's slt."""
        return (1.0 if self.flite == "slt" else 0.72) * self.size * self.pitch


VOICES = {
    "Elise": Voice("slt"),  # the new voice of the embedded corpus: the base model never hears it
    "tara": Voice("slt", size=0.92, pitch=1.35),
    "leo": Voice("rms"),
    "dan": Voice("awb"),
}
LEVEL = 0.1  # RMS of each stretch of words


def random_voice(rng: random.Random) -> Voice:
    """An unnamed speaker. slt always comes shifted by at least 6 % in size, so that it is never Elise."""
    flite = rng.choice(["slt", "slt", "rms", "awb", "kal16"])
    rate = rng.uniform(0.95, 1.1)
    if flite == "slt":
        size = rng.choice([rng.uniform(0.86, 0.94), rng.uniform(1.06, 1.10)])
        return Voice(flite, size, rng.uniform(0.8, 1.35), rate)
    return Voice(flite, rng.uniform(0.94, 1.18), rng.uniform(0.85, 1.25), rate)


@dataclass(frozen=True)
class Spoken:
    """Speech, float32 at 24 kHz, and where each word (or tag) of its text ends in it."""

    samples: np.ndarray
    ends_s: list[float]


def speech_span(x: np.ndarray, lead_s: float = 0.04, tail_s: float = 0.08, threshold: float = 0.006) -> slice:
    """`x` without the silence at both ends but `lead_s` and `tail_s` of it."""
    level = np.convolve(np.abs(x), np.full(240, 1 / 240), "same")
    loud = np.flatnonzero(level > threshold)
    if len(loud) == 0:
        return slice(0, 0)
    return slice(max(0, int(loud[0]) - int(lead_s * SAMPLE_RATE)), int(loud[-1]) + int(tail_s * SAMPLE_RATE))


def flite(text: str, flite_voice: str, *more: str) -> list[float]:
    """Run flite; the times in seconds at which the phones of `text` end, silences left out."""
    command = ["flite", "-voice", flite_voice, "-psdur", "-t", text, *more]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pairs = [pair.split(":") for pair in printed.split()]
    return [float(end_s) for phone, end_s in pairs if phone != "pau"]


@cache
def phone_count(word: str, flite_voice: str) -> int:
    """Phones of a word that is spoken alone."""
    return len(flite(word, flite_voice, "-o", "none"))


def speak(text: str, voice: Voice) -> Spoken:
    """Synthesise `text` (no tags)."""
    settings = {"duration_stretch": voice.size / voice.rate, "f0_shift": voice.pitch}
    options = [part for name, value in settings.items() if value != 1.0 for part in ("--setf", f"{name}={value:.4f}")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        phones_s = flite(text, voice.flite, "-o", str(path), *options)
        x, rate = sf.read(path, dtype="float32")
    x = soxr.resample(x, rate * voice.size, SAMPLE_RATE).astype(np.float32)
    span = speech_span(x)
    x = x[span]
    # A word may have a phone more or less among others than alone: the counts are scaled to what was spoken.
    counts = np.cumsum([phone_count(word.strip(",.?!"), voice.flite) for word in text.split()])
    last = np.maximum(np.rint(counts * len(phones_s) / counts[-1]).astype(int), 1) - 1
    ends_s = [phones_s[i] / voice.size - span.start / SAMPLE_RATE for i in last]
    return Spoken(x * np.float32(LEVEL / (x.std() + 1e-6)), ends_s)


def utter(text: str, voice: Voice, seed: int) -> Spoken:
    """Synthesise a tagged text: each stretch of words apart, each tag's sound between them."""
    rng = np.random.default_rng(seed)
    gap = np.zeros(int(GAP_S * SAMPLE_RATE), np.float32)
    parts: list[np.ndarray] = []
    ends_s: list[float] = []
    for part in re.split(f"({TAG_PATTERN.pattern})", text):
        before_s = sum(map(len, parts)) / SAMPLE_RATE
        if part in TAG_SOUNDS:
            sound = TAG_SOUNDS[part](rng, voice.tag_pitch).astype(np.float32)
            parts += [gap, sound, gap]
            ends_s.append(before_s + GAP_S + len(sound) / SAMPLE_RATE)
        elif part.strip(" ,.?!"):
            spoken = speak(part.strip(), voice)
            parts.append(spoken.samples)
            ends_s += [before_s + end_s for end_s in spoken.ends_s]
    return Spoken(np.concatenate(parts), ends_s)


def to_int16(x: np.ndarray) -> np.ndarray:
    """Float audio in [-1, 1] as 16-bit integers."""
    return np.round(np.clip(x, -1, 1) * 32767).astype(np.int16)
