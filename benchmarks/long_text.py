"""Long text: is the voice steadier when the model is shown the piece before (`--carry`), and where do pieces join?

    python benchmarks/long_text.py --save

The tiny base reads its test sentences as one text, with each of its voices, with and without carry, and again without
the joins' gain. Word errors by PocketSphinx with the corpus' language model, piece by piece; steps of loudness and
pitch between the pieces.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.common import show
from orpheus.audio import joins
from orpheus.cli import run
from orpheus.config import PRESETS, ReadingOptions, SamplingOptions
from orpheus.evaluate.clips import held_out
from orpheus.evaluate.evaluate import TEST_CORPUS, domain_texts
from orpheus.hearing.metrics import median_f0_hz, word_errors, words
from orpheus.hearing.recognise import PocketSphinx
from orpheus.speak.inference import NoSpeech, OrpheusInference

EDGE = 24000  # samples: loudness is compared over a second before and after a join


@dataclass(frozen=True)
class Options:
    """Measure word errors and steps between pieces, with and without carry, with and without gain."""

    voices: tuple[str, ...] = ("tara", "leo", "dan")
    """Voices that read."""
    sentences: int = 36
    """How many of the test sentences are read, at most 36."""
    seeds: tuple[int, ...] = (0, 1)
    """One reading each."""
    save: bool = False
    """Write the result to benchmarks/results."""


def pieces_of(tts: OrpheusInference, text: str, voice: str, seed: int, carry: bool) -> tuple[list[np.ndarray], Any]:
    """The samples of each piece as they are heard, joins included; and the reading, which a silent piece ends."""
    parts: list[list[np.ndarray]] = [[]]
    reading = tts.read(text, voice, SamplingOptions(seed=seed), ReadingOptions(carry=carry, guard=True))
    with suppress(NoSpeech):
        for chunk in reading:
            while len(parts) <= len(reading.pieces):
                parts.append([])
            parts[len(reading.pieces)].append(chunk)
    sounds = [np.concatenate(part) if part else np.zeros(0, np.float32) for part in parts]
    return [*sounds, np.zeros(0, np.float32)][: len(reading.pieces)], reading


def level_db(samples: np.ndarray) -> float | None:
    """The loudness of the sound in samples; None where there is none."""
    blocks = samples[: len(samples) // 480 * 480].reshape(-1, 480).astype(np.float64)
    power = (blocks**2).mean(axis=1)
    power = power[power > 10 ** (-55 / 10)]
    return float(10 * np.log10(power.mean())) if len(power) else None


def measure(tts: OrpheusInference, judge: PocketSphinx, options: Options, text: str, carry: bool, gain: bool) -> Any:
    """One row of the table. `silent`: readings that ended because a piece gave no audio; their rest is not counted."""
    errors = count = carried = pieces = ended = silent = cut = 0
    loud, whole, pitch, clicks, seconds, work = [], [], [], [], 0.0, 0.0
    joins.GAIN_DB, usual = (joins.GAIN_DB if gain else 0.0), joins.GAIN_DB
    for voice in options.voices:
        for seed in options.seeds:
            sounds, reading = pieces_of(tts, text, voice, seed, carry)
            for piece, sound in zip(reading.pieces, sounds, strict=True):
                errors += word_errors(piece.text, judge.transcribe(sound))
                count += len(words(piece.text))
                carried += piece.carried
                ended += piece.finish_reason == "end_of_speech"
            pieces, silent = pieces + len(sounds), silent + (not reading.finished)
            cut += sum(bool(piece.guard) for piece in reading.pieces)
            seconds, work = seconds + reading.duration_s, work + reading.total_s
            if len(sounds) < 2:
                continue
            spoken = np.concatenate(sounds)
            at = np.cumsum([len(sound) for sound in sounds])[:-1]
            levels = [(level_db(spoken[max(0, i - EDGE) : i]), level_db(spoken[i : i + EDGE])) for i in at]
            loud += [abs(a - b) for a, b in levels if a is not None and b is not None]
            each = [level_db(sound) for sound in sounds]
            whole += [abs(a - b) for a, b in pairwise(each) if a is not None and b is not None]
            hz = [median_f0_hz(sound) for sound in sounds]
            pitch += [abs(12 * np.log2(b / a)) for a, b in pairwise(hz) if a and b]
            steps = np.abs(np.diff(spoken))
            near = np.concatenate([steps[max(0, i - 480) : i + 480] for i in at])
            clicks.append(float(near.max() / steps.max()))
    joins.GAIN_DB = usual
    return {"carry": carry, "gain": gain, "pieces": pieces, "carried": carried, "silent": silent,
            "alarms": cut, "ended": round(ended / pieces, 3),
            "wer": round(errors / count, 3), "step_db_at_joins": round(float(np.mean(loud)), 2),
            "step_db_between_pieces": round(float(np.mean(whole)), 2),
            "step_semitones": round(float(np.mean(pitch)), 2), "largest_step_at_joins": round(max(clicks), 3),
            "seconds": round(seconds, 1), "realtime_factor": round(work / seconds, 2)}  # fmt: skip


def main(options: Options) -> None:
    """Three ways to read the same text."""
    tts = OrpheusInference(None, base=PRESETS["tiny"].base)
    text = " ".join(clip.text for clip in held_out(TEST_CORPUS, tts)[: options.sentences])
    judge = PocketSphinx(domain_texts(PRESETS["tiny"].dataset))
    rows = []
    for carry, gain in ((False, True), (True, True), (False, False)):
        rows.append(measure(tts, judge, options, text, carry, gain))
        print(rows[-1], file=sys.stderr, flush=True)
    show("long_text", "tiny", {"voices": options.voices, "seeds": options.seeds}, rows, options.save)


if __name__ == "__main__":
    run(main, Options, __doc__)
