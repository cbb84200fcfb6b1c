"""Faults planted in real clips, so that it is known what a check-up has to find: which clip, which fault.

    python -m tests.support.planted /path/to/real/en OUT --seed 1 --others /path/to/real/it

Each planting draws its strength from the seed: hum of another frequency, noise of another colour, another header rate.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr

ROOM_DB = -62.0  # of the rooms that are put before and after


@dataclass(frozen=True)
class Spoken:
    """A clip: samples float32 [N] or [N, 2], their rate, its text."""

    name: str
    samples: np.ndarray
    rate_hz: int
    text: str

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate_hz


@dataclass(frozen=True)
class Pool:
    """What a planting may take from: the rest of the voice, another voice, and chance."""

    rng: np.random.Generator
    spare: list[Spoken]  # clips of the voice that are not in the corpus
    others: list[Spoken]  # another person's
    twins: list[Spoken]  # clips whose sound was used a second time: they belong in the corpus


def read_corpus(folder: Path, shortest_s: float = 1.3, longest_s: float = 12.0) -> list[Spoken]:
    """The clips of a folder with metadata.csv that hold a sentence: three words or more, and no stage direction."""
    found = []
    with open(folder / "metadata.csv", encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            samples, rate_hz = sf.read(folder / row["file_name"], dtype="float32")
            clip = Spoken(Path(row["file_name"]).stem, samples, rate_hz, " ".join(row["text"].split()))
            sentence = len(clip.text.split()) >= 3 and not set("[<(*") & set(clip.text)
            if sentence and shortest_s <= clip.seconds <= longest_s and np.abs(samples).max() > 0.05:
                found.append(clip)
    return found


# ---- faults ----


def rms(samples: np.ndarray) -> float:
    """Of the loud part: pauses don't count."""
    blocks = samples[: len(samples) // 320 * 320].reshape(-1, 320)
    power = (blocks**2).mean(axis=1)
    return float(np.sqrt(power[power > power.max() / 300].mean()))


def noise(rng: np.random.Generator, count: int, colour: float) -> np.ndarray:
    """Noise of RMS 1 whose power falls with frequency to the power `colour`: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** (-colour / 2)
    made = np.fft.irfft(spectrum, count)
    return made / made.std()


def db(level: float) -> float:
    return 10 ** (level / 20)


def room(clip: Spoken, rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Silence as the clip has it, or digital."""
    count = int(seconds * clip.rate_hz)
    level = rng.choice([0.0, db(ROOM_DB), db(ROOM_DB + 15)])
    return (level * noise(rng, count, rng.uniform(0, 1.5))).astype(np.float32)


def edited(clip: Spoken, *parts: np.ndarray) -> Spoken:
    return replace(clip, samples=np.concatenate(parts).astype(np.float32))


def hum(clip: Spoken, pool: Pool) -> Spoken:
    rng, times = pool.rng, np.arange(len(clip.samples)) / clip.rate_hz
    base_hz = rng.choice([50.0, 60.0, 50.2, 59.8, 100.0, 120.0])
    lines = sum(rng.uniform(0.2, 1) * np.sin(2 * np.pi * base_hz * k * times + rng.uniform(0, 6)) for k in range(1, 6))
    level = rms(clip.samples) * db(rng.uniform(-30, -14))
    return edited(clip, clip.samples + level * lines / np.std(lines))


def noisy(clip: Spoken, pool: Pool) -> Spoken:
    made = noise(pool.rng, len(clip.samples), pool.rng.uniform(0, 1.5))
    return edited(clip, clip.samples + rms(clip.samples) * db(-pool.rng.uniform(3, 18)) * made)


def dead_channel(clip: Spoken, pool: Pool) -> Spoken:
    still = db(pool.rng.choice([-200.0, -80.0, -66.0])) * pool.rng.standard_normal(len(clip.samples))
    pair = [clip.samples, still][:: pool.rng.choice([1, -1])]
    return replace(clip, samples=np.stack(pair, axis=1).astype(np.float32))


def opposite_channels(clip: Spoken, pool: Pool) -> Spoken:
    other = -clip.samples * db(pool.rng.uniform(-3, 0))
    return replace(clip, samples=np.stack([clip.samples, other], axis=1).astype(np.float32))


def header_rate(clip: Spoken, pool: Pool) -> Spoken:
    rates = [8000, 11025, 22050, 24000, 32000, 44100, 48000]
    wrong = int(pool.rng.choice([rate for rate in rates if rate != clip.rate_hz]))
    made = replace(clip, rate_hz=wrong)
    if pool.rng.random() < 0.5:  # noticed by no header: resampled after the mistake
        back = soxr.resample(clip.samples, wrong, clip.rate_hz)
        made = replace(made, samples=back.astype(np.float32), rate_hz=clip.rate_hz)
    return made


def clipped(clip: Spoken, pool: Pool) -> Spoken:
    loud = clip.samples / np.abs(clip.samples).max() * db(pool.rng.uniform(6, 18))
    return edited(clip, np.clip(loud, -1, 1))


def clipped_and_lowered(clip: Spoken, pool: Pool) -> Spoken:
    return edited(clip, clipped(clip, pool).samples * db(-pool.rng.uniform(2, 20)))


def dc_offset(clip: Spoken, pool: Pool) -> Spoken:
    return edited(clip, clip.samples * 0.6 + pool.rng.choice([-1, 1]) * pool.rng.uniform(0.03, 0.2))


def too_quiet(clip: Spoken, pool: Pool) -> Spoken:
    return edited(clip, clip.samples * db(-pool.rng.uniform(26, 38)))


def silence_before(clip: Spoken, pool: Pool) -> Spoken:
    return edited(clip, room(clip, pool.rng, pool.rng.uniform(1.0, 4)), clip.samples)


def silence_after(clip: Spoken, pool: Pool) -> Spoken:
    return edited(clip, clip.samples, room(clip, pool.rng, pool.rng.uniform(1.0, 4)))


def quiet_place(clip: Spoken, low: float, high: float) -> int:
    """The quietest sample's place between two shares of the clip."""
    power = np.convolve(clip.samples**2, np.ones(clip.rate_hz // 25), "same")
    start, end = int(low * len(power)), int(high * len(power))
    return start + int(np.argmin(power[start:end]))


def loud_place(clip: Spoken, low: float, high: float) -> int:
    power = np.convolve(clip.samples**2, np.ones(clip.rate_hz // 50), "same")
    start, end = int(low * len(power)), int(high * len(power))
    loud = np.flatnonzero(power[start:end] > 0.1 * power.max())
    return start + int(loud[len(loud) // 2] if len(loud) else np.argmax(power[start:end]))


def pause_inside(clip: Spoken, pool: Pool) -> Spoken:
    at = quiet_place(clip, 0.25, 0.75)
    return edited(clip, clip.samples[:at], room(clip, pool.rng, pool.rng.uniform(1.5, 4)), clip.samples[at:])


def end_cut(clip: Spoken, pool: Pool) -> Spoken:
    return edited(clip, clip.samples[: loud_place(clip, 0.6, 0.92)])


def start_cut(clip: Spoken, pool: Pool) -> Spoken:
    return edited(clip, clip.samples[loud_place(clip, 0.08, 0.4) :])


def zeros_in_pauses(clip: Spoken, pool: Pool) -> Spoken:
    """A gate: what is quiet becomes exactly zero."""
    size = clip.rate_hz // 100
    made = clip.samples.copy()
    levels = 10 * np.log10((made[: len(made) // size * size].reshape(-1, size) ** 2).mean(axis=1) + 1e-12)
    order = np.argsort(levels)
    closed = set(np.flatnonzero(levels < levels.max() - pool.rng.uniform(30, 40))) | set(order[: len(order) // 10])
    for block in closed:
        made[block * size : (block + 1) * size] = 0
    at = quiet_place(clip, 0.3, 0.7)
    made[at : at + int(0.08 * clip.rate_hz)] = 0
    return edited(clip, made)


def telephone(clip: Spoken, pool: Pool) -> Spoken:
    low = int(pool.rng.choice([6000, 8000]))
    return edited(clip, soxr.resample(soxr.resample(clip.samples, clip.rate_hz, low), low, clip.rate_hz))


def other_speaker(clip: Spoken, pool: Pool) -> Spoken:
    stranger = pool.others[pool.rng.integers(len(pool.others))]
    return replace(clip, samples=stranger.samples, rate_hz=stranger.rate_hz)


def duplicate(clip: Spoken, pool: Pool) -> Spoken:
    """Another clip's sound, a little shifted and louder or softer: its twin is untouched."""
    twin = pool.spare.pop(pool.rng.integers(len(pool.spare)))
    pool.twins.append(twin)
    return replace(clip, samples=shifted(twin, pool.rng), rate_hz=twin.rate_hz)


def shifted(clip: Spoken, rng: np.random.Generator) -> np.ndarray:
    shift = int(rng.uniform(-0.05, 0.05) * clip.rate_hz)
    moved = np.pad(clip.samples, (max(shift, 0), 0))[max(-shift, 0) :]
    return (moved * db(rng.choice([-1, -0.5, 0, 0.5, 1]))).astype(np.float32)


def other_text(clip: Spoken, pool: Pool) -> Spoken:
    there = set(clip.text.lower().split())
    texts = [other.text for other in pool.spare if len(there & set(other.text.lower().split())) <= 1]
    return replace(clip, text=texts[pool.rng.integers(len(texts))])


def text_missing(clip: Spoken, pool: Pool) -> Spoken:
    words = clip.text.split()
    return replace(clip, text=" ".join(words[: max(1, len(words) // 3)]))


def text_added(clip: Spoken, pool: Pool) -> Spoken:
    more = max((pool.spare[pool.rng.integers(len(pool.spare))].text for _ in range(4)), key=len)
    return replace(clip, text=f"{clip.text} {more}")


def empty_text(clip: Spoken, pool: Pool) -> Spoken:
    return replace(clip, text=str(pool.rng.choice(["", "nan", " "])))


def tag_slip(clip: Spoken, pool: Pool) -> Spoken:
    return replace(clip, text=f"{clip.text} {pool.rng.choice(['<laughing>', '[sigh]', '*coughs*', '<giggle>'])}")


def not_finite(clip: Spoken, pool: Pool) -> Spoken:
    made = clip.samples.copy()
    made[pool.rng.integers(len(made), size=5)] = np.nan
    return edited(clip, made)


def integer_scale(clip: Spoken, pool: Pool) -> Spoken:
    return edited(clip, clip.samples * 32768)


KINDS: dict[str, tuple[Callable[[Spoken, Pool], Spoken], set[str]]] = {
    "hum": (hum, {"hum"}),
    "noise": (noisy, {"noise"}),
    "dead channel": (dead_channel, {"dead channel"}),
    "opposite channels": (opposite_channels, {"opposite phase"}),
    "header rate": (header_rate, {"wrong rate"}),
    "clipped": (clipped, {"clipped"}),
    "clipped and lowered": (clipped_and_lowered, {"clipped"}),
    "dc offset": (dc_offset, {"dc offset"}),
    "too quiet": (too_quiet, {"quiet", "loudness"}),
    "silence before": (silence_before, {"edge silence"}),
    "silence after": (silence_after, {"edge silence"}),
    "pause inside": (pause_inside, {"pause"}),
    "end cut": (end_cut, {"cut"}),
    "start cut": (start_cut, {"cut"}),
    "zeros in pauses": (zeros_in_pauses, {"digital zeros"}),
    "telephone": (telephone, {"narrow band"}),
    "other speaker": (other_speaker, {"other speaker"}),
    "duplicate": (duplicate, {"same recording"}),
    "other text": (other_text, {"transcript", "pace"}),
    "text missing": (text_missing, {"transcript", "pace"}),
    "text added": (text_added, {"transcript", "pace"}),
    "empty text": (empty_text, {"no text"}),
    "tag slip": (tag_slip, {"tags"}),
    "not finite": (not_finite, {"not finite"}),
    "integer scale": (integer_scale, {"wrong scale"}),
}
"""Each fault, and by which findings it may be called."""


def plant(out: Path, clips: Sequence[Spoken], others: Sequence[Spoken], *, seed: int, count: int = 150,
          faults: int = 60, kinds: Sequence[str] = tuple(KINDS)) -> dict[str, str]:  # fmt: skip
    """A corpus of `count` clips in `out`, `faults` of them bad, each kind in turn; -> the fault by file name."""
    rng = np.random.default_rng(seed)
    mixed = [clips[i] for i in rng.permutation(len(clips))]
    chosen, pool = list(mixed[:count]), Pool(rng, mixed[count:] or list(mixed), list(others), [])
    planted: dict[str, str] = {}
    for number, place in enumerate(rng.permutation(len(chosen))[:faults]):
        kind = kinds[number % len(kinds)]
        chosen[place] = KINDS[kind][0](chosen[place], pool)
        planted[f"{chosen[place].name}.wav"] = kind
    write([*chosen, *pool.twins], out)
    (out / "planted.json").write_text(json.dumps(planted, indent=1))
    return planted


def write(clips: Sequence[Spoken], out: Path) -> None:
    """The clips and their metadata.csv."""
    (out / "clips").mkdir(parents=True, exist_ok=True)
    with open(out / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text"])
        for clip in clips:
            plain = np.isfinite(clip.samples).all() and np.abs(clip.samples).max() <= 1.0
            sf.write(out / "clips" / f"{clip.name}.wav", clip.samples, clip.rate_hz, "PCM_16" if plain else "FLOAT")
            table.writerow([f"clips/{clip.name}.wav", clip.text])


def judged(planted: dict[str, str], found: dict[str, set[str]], names: Sequence[str]) -> dict[str, Any]:
    """How much was found. `found`: by file name the kinds of faults that were named; `names`: of all clips."""
    missed = {name: kind for name, kind in planted.items() if not found.get(name, set()) & KINDS[kind][1]}
    false = {name: sorted(found[name]) for name in names if name not in planted and found.get(name)}
    return {"found": 1 - len(missed) / len(planted), "false": len(false) / (len(names) - len(planted)),
            "missed": missed, "untouched": false}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--others", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(plant(asked.out, read_corpus(asked.corpus), read_corpus(asked.others), seed=asked.seed))
