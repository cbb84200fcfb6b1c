"""Words as units: flite speaks each one alone, WORLD takes it apart, and it is stretched to whole codec frames.

Every source voice speaks a word phone by phone in the same time, that of `rms`: hop for hop, the units of all sources
say the same sound. So a speaker changes how a word sounds and never when, and all speakers can share its codes.

    python units.py --out work/units.npz     # needs `apt install flite` and `pip install pyworld 'setuptools<81'`
"""

# ruff: noqa: SIM905  (a list of a hundred words reads better as a text)

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RATE_HZ = 24_000
FRAME = 2048  # samples of a codec frame
HOP = 128  # samples between two spectra
HOPS = FRAME // HOP  # of a frame
FFT = 1024
BINS = FFT // 2 + 1
SOURCES = ("rms", "slt", "awb")  # flite's voices; the first one's phones set the time for all
STRETCH, SHORT_STRETCH = 0.85, 0.65  # a word spoken alone is longer than one in a sentence, a small word much more so
LEVEL, SHORT_LEVEL = 0.1, 0.075  # RMS
SHORT_WORDS = frozenset(
    "a an the of to in on at by for from with and or but as if than that is are was were be been am it its he she "
    "we they them him her his my your our their me us you do does did has have had can could will would shall "
    "should may might must not so i i'm it's i'll i'd i've you're we're they're he's she's there".split()
)


@dataclass(frozen=True)
class Unit:
    """A word in whole frames. `log_power` [S, n, BINS] of each source, `noise` [S, n, BINS] (share of the amplitude
    that is breath), `voiced` [n]; n is a multiple of HOPS."""

    log_power: np.ndarray
    noise: np.ndarray
    voiced: np.ndarray

    @property
    def frames(self) -> int:
        return len(self.voiced) // HOPS


def flite(text: str, voice: str, path: Path) -> list[tuple[str, float, float]]:
    """Speak `text` into `path`: (phone, start, end) in seconds, silences left out."""
    command = ["flite", "-voice", voice, "-psdur", "-t", text, "-o", str(path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pairs = [pair.split(":") for pair in printed.split()]
    ends = [float(end) for _, end in pairs]
    return [
        (phone, start, end) for (phone, _), start, end in zip(pairs, [0.0, *ends], ends, strict=False) if phone != "pau"
    ]


def analyse(word: str, voice: str) -> tuple[list[tuple[str, float, float]], np.ndarray, np.ndarray, np.ndarray]:
    """Phones, power [n, BINS], noise [n, BINS], voiced [n] of a word as flite says it, n hops."""
    import pyworld
    import soundfile as sf
    import soxr

    spelling = "I" + word[1:] if re.match(r"i('|$)", word) else word
    with tempfile.TemporaryDirectory() as folder:
        phones = flite({"a": "uh"}.get(word, spelling), voice, Path(folder) / "word.wav")
        x, rate = sf.read(Path(folder) / "word.wav")
    before_s = max(0.0, phones[0][1] - 0.05)  # the silence around the word takes half of the time
    phones = [(phone, start - before_s, end - before_s) for phone, start, end in phones]
    x = soxr.resample(x[int(before_s * rate) : int((before_s + phones[-1][2] + 0.05) * rate)], rate, RATE_HZ)
    period = 1000 * HOP / RATE_HZ
    rough, times = pyworld.dio(x, RATE_HZ, f0_floor=71, f0_ceil=400, frame_period=period, allowed_range=0.15)
    pitch = pyworld.stonemask(x, rough, times, RATE_HZ)
    power = pyworld.cheaptrick(x, pitch, times, RATE_HZ, fft_size=FFT)
    noise = pyworld.d4c(x, pitch, times, RATE_HZ, fft_size=FFT)
    return phones, power, noise, pitch > 0


def hops_at(seconds: np.ndarray, count: int) -> np.ndarray:
    """The hop of `count` that lies nearest to each time."""
    return np.clip(np.rint(seconds * RATE_HZ / HOP).astype(int), 0, count - 1)


def make_unit(word: str) -> Unit:
    """Analyse a word in each source voice and bring all to the same whole frames."""
    found = [analyse(word, voice) for voice in SOURCES]
    clock = found[0][0]
    short = word in SHORT_WORDS
    start_s, end_s = clock[0][1], clock[-1][2]
    seconds = (end_s - start_s) * (SHORT_STRETCH if short else STRETCH)
    count = HOPS * max(1, round(seconds * RATE_HZ / FRAME))
    places_s = start_s + (np.arange(count) + 0.5) / count * (end_s - start_s)
    edges = np.array([clock[0][1], *(end for _, _, end in clock)])
    powers, noises, voicings = [], [], []
    for phones, power, noise, voiced in found:
        own = np.array([phones[0][1], *(end for _, _, end in phones)])
        if len(own) == len(edges):
            own_s = np.interp(places_s, edges, own)
        else:  # another pronunciation: stretched as a whole
            own_s = own[0] + (places_s - start_s) / (end_s - start_s) * (own[-1] - own[0])
        at = hops_at(own_s, len(power))
        level = np.sqrt(power[at].mean()) + 1e-9
        powers.append(power[at] / level**2)
        noises.append(noise[at])
        voicings.append(voiced[at])
    return Unit(
        np.log(np.maximum(np.stack(powers), 1e-7)).astype(np.float16),
        np.stack(noises).astype(np.float16),
        np.mean(voicings, 0) > 0.5,
    )


def load(path: Path) -> dict[str, Unit]:
    """The units that `main` wrote, by word."""
    stored = np.load(path)
    ends = np.cumsum(stored["hops"])
    parts = zip(stored["words"], ends - stored["hops"], ends, strict=True)
    power, noise, voiced = stored["log_power"], stored["noise"], stored["voiced"]
    return {str(word): Unit(power[:, a:b], noise[:, a:b], voiced[a:b]) for word, a, b in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--words", type=Path, default=Path(__file__).parent / "words.txt")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    words = args.words.read_text("utf-8").split()
    with ProcessPoolExecutor(args.workers) as pool:
        units = list(pool.map(make_unit, words, chunksize=20))
    columns: dict[str, Any] = {
        "words": np.array(words),
        "hops": np.array([len(unit.voiced) for unit in units]),
        "log_power": np.concatenate([unit.log_power for unit in units], 1),
        "noise": np.concatenate([unit.noise for unit in units], 1),
        "voiced": np.concatenate([unit.voiced for unit in units]),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(args.out, **columns)
    frames = [unit.frames for unit in units]
    print(f"{len(words)} words, {sum(frames)} frames, {np.mean(frames):.2f} a word")


if __name__ == "__main__":
    main()
