"""The tiny codec's codebooks, made from the units before anything is trained, and the codes of any plan.

A code is chosen by what is said, not found by a network: codebook 1 holds the sound of a whole frame (k-means over
the frames of all words, the same for all speakers), codebook 2 what each half of the frame adds to it together with
the speaker's size and colour, codebook 3 the pitch, and which quarter of the frame it is. Words of the same sound
have the same codes whoever speaks, and a new speaker is a new pair of size and pitch, each of them known. The encoder
learns to hear these codes, the decoder to speak them, each by itself.

    python codebooks.py --units work/units.npz --out work/codebooks.npz
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from speech import TAG_FRAMES, TIMBRES, Plan, tag_sound
from units import FFT, HOP, HOPS, RATE_HZ, SOURCES, Unit, load

WIDTH = 40  # numbers in a codebook's entry; the last is 0 but in the entries that are not in use
SOUNDS, DETAILS = 1536, 64  # k-means of codebook 1, and of codebook 2 for each timbre
BANDS, STEPS = 24, 8  # of a frame's picture
PITCHES = range(5, 31, 2)  # steps
FLOOR = -9.0  # log power, relative to a unit's mean: below is silence
NORM = 4.0  # length of each entry
CONSTANT = 0.6  # keeps loud and soft frames of one colour apart, as the entries are compared by their direction
TIMBRE_WEIGHT = 0.9


def filters() -> np.ndarray:
    """[BINS, BANDS]: mean power in bands of equal width in mels."""
    import librosa

    bank = librosa.filters.mel(sr=RATE_HZ, n_fft=FFT, n_mels=BANDS, fmin=80, fmax=7800, norm=None).T
    return bank / bank.sum(0)


def picture(log_power: np.ndarray) -> np.ndarray:
    """[frames, STEPS, BANDS] log powers of spectra [n hops, BINS]."""
    power = np.exp(log_power.astype(np.float32)) @ filters()
    power = power.reshape(-1, STEPS, HOPS // STEPS, BANDS).mean(2)
    return np.maximum(np.log(power + 1e-9), FLOOR)


def unit_pictures(unit: Unit) -> np.ndarray:
    """[frames, STEPS, S * BANDS + 1]: all sources side by side, and how voiced."""
    parts = [picture(power) for power in unit.log_power]
    voiced = unit.voiced.reshape(-1, STEPS, HOPS // STEPS).mean(2)[..., None]
    return np.concatenate([*parts, 12 * voiced], -1)


def tag_pictures(tag: str) -> np.ndarray:
    """The same of a tag's sound."""
    x = np.pad(tag_sound(tag, 17) / 0.1, FFT // 2)
    rows = np.lib.stride_tricks.sliding_window_view(x, FFT)[HOP // 2 : -FFT // 2 + 1 : HOP][: TAG_FRAMES[tag] * HOPS]
    rows = np.pad(rows, ((0, TAG_FRAMES[tag] * HOPS - len(rows)), (0, 0)))
    mean = np.abs(np.fft.rfft(rows * np.hanning(FFT))) ** 2 / (0.375 * FFT)
    part = picture(np.log(mean + 1e-9))
    voiced = np.full((*part.shape[:2], 1), 12.0 if tag in ("<laughs>", "<giggles>") else 0.0)
    return np.concatenate([part] * len(SOURCES) + [voiced], -1)


def kmeans(x: np.ndarray, size: int, rng: np.random.Generator, rounds: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Means [size, D] of the directions of `x` and the index of each row's nearest."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = x[rng.permutation(len(x))[:size]].copy()
    index = np.zeros(len(x), int)
    for _ in range(rounds):
        index = (x @ means.T).argmax(1)
        count = np.bincount(index, minlength=size)
        sums = np.zeros_like(means)
        np.add.at(sums, index, x)
        worst = np.argsort((x * means[index]).sum(1))[: int((count == 0).sum())]
        sums[count == 0] = x[worst]
        means = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return means, (x @ means.T).argmax(1)


def components(x: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and principal directions [D, width], scaled so that the first has variance 1."""
    mean = x.mean(0)
    _, values, rows = np.linalg.svd((x - mean)[:: max(1, len(x) // 8000)], full_matrices=False)
    return mean, rows[:width].T / (values[0] / math.sqrt(min(len(x), 8000)))


def widened(rows: np.ndarray) -> np.ndarray:
    """Rows [n, WIDTH - 1] with a zero after each."""
    return np.pad(rows, ((0, 0), (0, 1)))


QUARTERS = 4  # of a frame: the hops of 512 samples to which codebook 3 belongs
HEIGHTS = (0, *PITCHES)  # 0: no voice
SIZES = (SOUNDS + 1 + sum(TAG_FRAMES.values()), (len(TIMBRES) + 1) * DETAILS, len(HEIGHTS) * QUARTERS)


def pitch_entries() -> np.ndarray:
    """[codes, WIDTH]: pitch, or no voice, and the quarter."""
    rows = np.zeros((SIZES[2], WIDTH))
    for code in range(SIZES[2]):
        number, quarter = divmod(code, QUARTERS)
        rows[code, number] = 1
        if number:
            height = (math.log2(HEIGHTS[number]) - math.log2(12)) / 1.2
            rows[code, 20:22] = height, 1 - abs(height)
        rows[code, 24 + quarter] = 1
    return NORM * rows / np.linalg.norm(rows, axis=1, keepdims=True)


def timbre_entries() -> np.ndarray:
    """[timbres + 1, 8]: source and size; the last is nobody's (silence and voiceless sounds)."""
    rows = np.zeros((len(TIMBRES) + 1, 8))
    for code, (source, size) in enumerate(TIMBRES):
        rows[code, SOURCES.index(source)] = 1
        rows[code, 4:6] = math.cos(9 * (size - 1)), math.sin(9 * (size - 1))
    rows[-1, 3] = 1.4
    return TIMBRE_WEIGHT * rows


@dataclass
class Codebooks:
    """`entries`: one [codes, WIDTH] for each level. `sound`, `detail`: codes of each unit's frames [n] and halves
    [n, 2], the timbre left out; `voiced` [n, 4] tells in which hops of 512 samples there is a pitch."""

    entries: list[np.ndarray]
    sound: dict[str, np.ndarray]
    detail: dict[str, np.ndarray]
    voiced: dict[str, np.ndarray]

    @cached_property
    def frames(self) -> dict[str, int]:
        """The length of each word, tags and silence left out."""
        return {what: len(codes) for what, codes in self.sound.items() if what and what not in TAG_FRAMES}

    def codes(self, made: Plan) -> list[np.ndarray]:
        """The codes of a plan's n frames: int16 [n], [2n], [4n]."""
        what = list(zip(made.what, made.index, strict=True))
        sound = np.array([self.sound[w][i] for w, i in what])
        detail = np.stack([self.detail[w][i] for w, i in what])
        voiced = np.stack([self.voiced[w][i] for w, i in what])
        tag = np.array([w in TAG_FRAMES for w in made.what])[:, None]
        timbre = np.where((voiced.reshape(-1, 2, 2).sum(2) > 0) & ~tag, made.voice.timbre, len(TIMBRES))
        height = np.where(voiced, np.array([HEIGHTS.index(steps) for steps in made.pitch])[:, None], 0)
        parts = [sound, timbre * DETAILS + detail, height * QUARTERS + np.arange(QUARTERS)]
        return [part.astype(np.int16).ravel() for part in parts]

    def save(self, path: Path) -> None:
        names = list(self.sound)
        joined = {
            name: np.concatenate([getattr(self, name)[w] for w in names]) for name in ("sound", "detail", "voiced")
        }
        count = [len(self.sound[w]) for w in names]
        np.savez(path, names=names, count=count, **joined, **{f"entries{i}": e for i, e in enumerate(self.entries)})

    @classmethod
    def load(cls, path: Path) -> Codebooks:
        stored = np.load(path)
        ends = np.cumsum(stored["count"])
        spans = [(str(w), slice(b - a, b)) for w, a, b in zip(stored["names"], stored["count"], ends, strict=True)]
        tables = [{w: stored[name][span] for w, span in spans} for name in ("sound", "detail", "voiced")]
        return cls([stored[f"entries{i}"] for i in range(3)], *tables)


def make(units: dict[str, Unit], seed: int = 0) -> Codebooks:
    """Cluster the frames of all units, tags and silence."""
    rng = np.random.default_rng(seed)
    pictures = {word: unit_pictures(unit) for word, unit in units.items()}
    lengths = [len(rows) for rows in pictures.values()]
    frames = np.concatenate(list(pictures.values()))  # [n, STEPS, D]
    tags = np.concatenate([tag_pictures(tag) for tag in TAG_FRAMES])
    silence = np.full((1, *frames.shape[1:]), FLOOR)
    silence[..., -1] = 0
    everything = np.concatenate([silence, tags, frames])
    flat = everything.reshape(len(everything), -1)
    mean, axes = components(flat[1 + len(tags) :], WIDTH - 2)

    def directed(rows: np.ndarray) -> np.ndarray:
        scores = (rows - mean) @ axes
        rows = np.concatenate([scores, np.full((len(rows), 1), CONSTANT)], 1)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    reserved = 1 + len(tags)
    means, index = kmeans(directed(flat[reserved:]), SOUNDS, rng)
    sound = np.concatenate([np.arange(reserved), reserved + index])
    entries = [NORM * widened(np.concatenate([directed(flat[:reserved]), means]))]
    # What a sound's members have in common is in its mean picture; the halves code the rest.
    common = np.zeros((SIZES[0], flat.shape[1]))
    np.add.at(common, sound, flat)
    common /= np.bincount(sound, minlength=SIZES[0])[:, None]
    rest = (flat - 0.7 * common[sound] - 0.3 * mean).reshape(len(flat) * 2, -1)
    middle, details = components(rest, WIDTH - 10)
    scores = np.concatenate([(rest - middle) @ details, np.full((len(rest), 1), CONSTANT)], 1)
    kinds, detail = kmeans(scores, DETAILS, rng)
    timbres = timbre_entries()
    second = np.concatenate([np.concatenate([np.tile(t, (DETAILS, 1)), kinds], 1) for t in timbres])
    entries += [NORM * widened(second / np.linalg.norm(second, axis=1, keepdims=True)), pitch_entries()]
    counts = [1, *TAG_FRAMES.values(), *lengths]
    spans = np.split(np.arange(len(flat)), np.cumsum(counts)[:-1])
    names = ["", *TAG_FRAMES, *pictures]
    hops = everything[..., -1].reshape(len(everything), 4, -1).mean(2) > 6
    halves = detail.reshape(-1, 2)
    left = np.linalg.norm(directed(flat[reserved:]) - means[index], axis=1)
    print(f"{len(frames)} frames, {len(np.unique(index))} sounds in use, distance to the nearest {left.mean():.3f}")
    return Codebooks(entries, *({name: table[span] for name, span in zip(names, spans, strict=True)}
                                for table in (sound, halves, hops)))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    units = load(args.units)
    words = Path(__file__).with_name("words.txt").read_text("utf-8").split()
    make({word: units[word] for word in words}).save(args.out)


if __name__ == "__main__":
    main()
