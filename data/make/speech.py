"""Frame-synchronous speech: a text becomes a plan of whole codec frames, and the plan both the sound and its codes.

Each frame is one of a word's, a tag's, or silence, and has one pitch, an odd multiple of the frame rate (11.72 Hz):
so every frame begins with a pulse, no quarter of it looks like another, and equal frames sound equal wherever they
stand. The breath of all frames is the same noise, coloured: it too tells where a frame begins. Without such a clock
encoder and decoder would have to guess which quarter of a frame they are in. `plan` decides, `render` makes the
samples (float32, 24 kHz), `codebooks.Codebooks.codes` the codes: word and moment are in the first two codebooks, size
and colour of the voice in the second, pitch in the third.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy.signal import butter, sosfilt
from tag_sounds import TAG_SOUNDS
from units import BINS, FFT, FRAME, HOP, HOPS, LEVEL, RATE_HZ, SHORT_LEVEL, SHORT_WORDS, SOURCES, Unit

STEP_HZ = RATE_HZ / FRAME
SIZES = {"rms": (0.92, 1.0, 1.08, 1.16), "slt": (0.87, 0.93, 1.0, 1.07), "awb": (0.93, 1.0, 1.07, 1.14)}
TIMBRES = [(source, size) for source in SOURCES for size in SIZES[source]]
LOWEST, HIGHEST = 7, 21  # an unnamed speaker's usual pitch, in steps
TAG_FRAMES = {"<laughs>": 9, "<giggles>": 9, "<sighs>": 9, "<gasps>": 5}
TAG_PITCHES = (9, 13, 17, 21)  # laughs come in these alone; each speaker's is the nearest
HIGH_PASS = butter(1, 40, "high", fs=RATE_HZ, output="sos")  # pulses of a voice have a mean
END_HOPS = 2  # a unit fades out in this many hops, before a silence


@dataclass(frozen=True)
class Voice:
    """A speaker: flite voice, size (1.1: formants 10 % higher), and usual pitch in steps of the frame rate."""

    source: str
    size: float
    pitch: int

    @property
    def timbre(self) -> int:
        return TIMBRES.index((self.source, self.size))

    @property
    def tag_pitch(self) -> int:
        return min(TAG_PITCHES, key=lambda steps: abs(steps - self.pitch))

    def steps(self, degree: int) -> int:
        """The odd pitch nearest to `degree` steps of melody above the usual one, about 1.6 semitones each."""
        return 2 * round((self.pitch * 2 ** (1.6 * degree / 12) - 1) / 2) + 1


VOICES = {
    "Elise": Voice("slt", 1.0, 15),  # the new voice of the embedded corpus: the base model never hears it
    "tara": Voice("slt", 0.93, 19),
    "leo": Voice("rms", 1.0, 9),
    "dan": Voice("rms", 1.08, 13),
}


def unnamed(rng: random.Random) -> Voice:
    """Some other speaker; one of Elise's size and colour never has a pitch near hers."""
    while True:
        voice = Voice(*rng.choice(TIMBRES), rng.randrange(LOWEST, HIGHEST + 1, 2))
        if voice.timbre != VOICES["Elise"].timbre or abs(voice.pitch - VOICES["Elise"].pitch) > 3:
            return voice


@dataclass
class Plan:
    """What each frame says: `what` (a word, a tag, or "" for silence), which frame of it, and its pitch in steps.

    `ends` holds the frame after each word or tag of the text.
    """

    voice: Voice
    what: list[str] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    pitch: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def add(self, what: str, pitches: list[int]) -> None:
        self.what += [what] * len(pitches)
        self.index += range(len(pitches))
        self.pitch += pitches
        if what:
            self.ends.append(len(self.what))


def melody(frames: int, first: bool, short: bool, mark: str) -> list[int]:
    """The degrees of a word's frames: the first word is high, small words low; it falls before . and rises before ?"""
    degrees = [1 if first else -1 if short else 0] * frames
    endings = {",": [1], ".": [-1, -2], "!": [0, -2], "?": [1, 3]}
    ending = endings.get(mark, [])[-frames:]
    return degrees[: frames - len(ending)] + ending


def plan(text: str, voice: Voice, frames: dict[str, int]) -> Plan:
    """The frames of a text. `frames` holds the length of every word. KeyError: a word that is not in it."""
    made = Plan(voice)
    made.add("", [0])
    parts = re.findall(r"<[a-z]+>|[^\s<]+", text)
    first = True
    for at, part in enumerate(parts):
        if part in TAG_FRAMES:
            made.add(part, [voice.tag_pitch] * TAG_FRAMES[part])
            continue
        word, mark = re.fullmatch(r"(.*?)([,.!?]*)", part).groups()  # type: ignore[union-attr]
        word, mark = word.lower(), mark[:1]
        degrees = melody(frames[word], first, word in SHORT_WORDS, mark)
        made.add(word, [voice.steps(degree) for degree in degrees])
        first = mark in (".", "!", "?")
        if mark and at < len(parts) - 1:
            made.add("", [0])
    made.add("", [0])
    return made


# ---- samples ----


@cache
def tag_sound(tag: str, pitch: int) -> np.ndarray:
    """A tag's sound in whole frames, always the same."""
    sound = TAG_SOUNDS[tag](np.random.default_rng(0), pitch / 16)
    total = TAG_FRAMES[tag] * FRAME
    before = (total - len(sound)) // 2
    return np.pad(sound, (before, total - before - len(sound))).astype(np.float32)


def resize(rows: np.ndarray, size: float) -> np.ndarray:
    """Spectra [n, BINS] with all formants `size` times as high."""
    if size == 1.0:
        return rows
    places = np.arange(BINS) / size
    low = np.minimum(places.astype(int), BINS - 2)
    share = np.clip(places - low, 0, 1)
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def minimum_phase(log_amplitude: np.ndarray) -> np.ndarray:
    """Spectra [n, BINS] of the shortest impulse responses with these log amplitudes."""
    cepstrum = np.fft.irfft(log_amplitude, FFT)
    cepstrum[:, 1 : FFT // 2] *= 2
    cepstrum[:, FFT // 2 + 1 :] = 0
    return np.exp(np.fft.rfft(cepstrum))


def render(made: Plan, units: dict[str, Unit]) -> np.ndarray:
    """The samples of a plan."""
    voice, total = made.voice, len(made.what) * HOPS
    log_power = np.full((total, BINS), -16.0)
    noise, voiced = np.ones((total, BINS)), np.zeros(total, bool)
    source = SOURCES.index(voice.source)
    out = np.zeros(total * HOP + 2 * FFT)
    for frame, (what, index) in enumerate(zip(made.what, made.index, strict=True)):
        span, part = slice(frame * HOPS, (frame + 1) * HOPS), slice(index * HOPS, (index + 1) * HOPS)
        if what in TAG_FRAMES:
            if index == 0:
                sound = tag_sound(what, voice.tag_pitch)
                out[frame * FRAME : frame * FRAME + len(sound)] += sound
        elif what:
            unit = units[what]
            level = SHORT_LEVEL if what in SHORT_WORDS else LEVEL
            log_power[span] = resize(unit.log_power[source, part].astype(float), voice.size) + 2 * np.log(level)
            noise[span] = resize(unit.noise[source, part].astype(float), voice.size)
            voiced[span] = unit.voiced[part]
    soften(log_power, made)
    add_pulses(out, log_power, noise, voiced, np.repeat(made.pitch, HOPS))
    add_breath(out, log_power, noise, voiced)
    return sosfilt(HIGH_PASS, out[: total * HOP]).astype(np.float32)


def soften(log_power: np.ndarray, made: Plan) -> None:
    """Fade units in and out beside a silence, in place. A word's first 5 ms may be the burst of its "k"."""
    for frame in range(1, len(made.what)):
        if made.index[frame] or made.what[frame] in TAG_FRAMES or made.what[frame - 1] in TAG_FRAMES:
            continue
        at = frame * HOPS
        if made.what[frame] and not made.what[frame - 1]:
            log_power[at] -= 2
        elif made.what[frame - 1] and not made.what[frame]:
            log_power[at - END_HOPS : at] -= np.linspace(1, 4, END_HOPS)[:, None]


def add_pulses(
    out: np.ndarray, log_power: np.ndarray, noise: np.ndarray, voiced: np.ndarray, steps: np.ndarray
) -> None:
    """The voice: a pulse `steps` times in each frame, the first at its start."""
    places, hops, gains = [], [], []
    for frame in range(len(voiced) // HOPS):
        pitch = int(steps[frame * HOPS])
        if pitch and voiced[frame * HOPS : (frame + 1) * HOPS].any():
            at = np.arange(pitch) * FRAME / pitch
            hop = frame * HOPS + (at / HOP).astype(int)
            use = voiced[hop]
            places.append(frame * FRAME + at[use])
            hops.append(hop[use])
            gains.append(np.full(int(use.sum()), np.sqrt(RATE_HZ / (pitch * STEP_HZ))))
    if not places:
        return
    place, hop, gain = np.concatenate(places), np.concatenate(hops), np.concatenate(gains)
    share = np.maximum(1 - noise[hop] ** 2, 1e-8)
    spectra = minimum_phase(0.5 * log_power[hop] + 0.5 * np.log(share)) * gain[:, None]
    whole = place.astype(int)
    late = (place - whole)[:, None] * np.arange(BINS) * (-2j * np.pi / FFT)
    for start, response in zip(whole, np.fft.irfft(spectra * np.exp(late), FFT), strict=True):
        out[start : start + FFT] += response


def add_breath(out: np.ndarray, log_power: np.ndarray, noise: np.ndarray, voiced: np.ndarray) -> None:
    """The noise of voiced and voiceless sounds, in windows of two hops; white, it would be the same in each frame."""
    audible = np.flatnonzero(log_power.max(1) > -14)
    window = np.hanning(2 * HOP + 1)[:-1]
    amplitude = 0.5 * log_power[audible] + np.where(
        voiced[audible, None], np.log(np.maximum(noise[audible], 1e-4)), 0.0
    )
    grains = np.tile(np.random.default_rng(0).standard_normal(FRAME), len(out) // FRAME + 1)
    for hop, spectrum in zip(audible, minimum_phase(amplitude), strict=True):
        start = max(0, hop * HOP - HOP // 2)
        grain = grains[start : start + 2 * HOP] * window
        out[start : start + FFT] += np.fft.irfft(np.fft.rfft(grain, FFT) * spectrum, FFT)


def to_int16(x: np.ndarray) -> np.ndarray:
    """Float audio in [-1, 1] as 16-bit integers."""
    return np.round(np.clip(x, -1, 1) * 32767).astype(np.int16)
