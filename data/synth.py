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


def trim(x: np.ndarray, lead_s: float = 0.04, tail_s: float = 0.08, threshold: float = 0.006) -> np.ndarray:
    """Cut the silence at both ends down to `lead_s` and `tail_s`."""
    level = np.convolve(np.abs(x), np.full(240, 1 / 240), "same")
    loud = np.flatnonzero(level > threshold)
    if len(loud) == 0:
        return x[:0]
    return x[max(0, loud[0] - int(lead_s * SAMPLE_RATE)) : loud[-1] + int(tail_s * SAMPLE_RATE)]


def speak(text: str, voice: Voice) -> np.ndarray:
    """Synthesise `text` (no tags) as float32 at 24 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = ["flite", "-voice", voice.flite, "-t", text, "-o", str(path)]
        settings = {"duration_stretch": voice.size / voice.rate, "f0_shift": voice.pitch}
        for name, value in settings.items():
            if value != 1.0:
                command += ["--setf", f"{name}={value:.4f}"]
        subprocess.run(command, check=True)
        x, rate = sf.read(path, dtype="float32")
    x = trim(soxr.resample(x, rate * voice.size, SAMPLE_RATE).astype(np.float32))
    return x * np.float32(LEVEL / (x.std() + 1e-6))


def utter(text: str, voice: Voice, seed: int) -> np.ndarray:
    """Synthesise a tagged text: each stretch of words apart, each tag's sound between them. Float32, 24 kHz."""
    rng = np.random.default_rng(seed)
    gap = np.zeros(int(GAP_S * SAMPLE_RATE), np.float32)
    parts: list[np.ndarray] = []
    for part in re.split(f"({TAG_PATTERN.pattern})", text):
        if part in TAG_SOUNDS:
            parts += [gap, TAG_SOUNDS[part](rng, voice.tag_pitch).astype(np.float32), gap]
        elif part.strip(" ,.?!"):
            parts.append(speak(part.strip(), voice))
    return np.concatenate(parts)


def to_int16(x: np.ndarray) -> np.ndarray:
    """Float audio in [-1, 1] as 16-bit integers."""
    return np.round(np.clip(x, -1, 1) * 32767).astype(np.int16)
