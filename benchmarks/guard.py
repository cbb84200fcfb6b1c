"""How often the guard errs: on recordings, where it must stay silent, and on what the tiny model speaks freely.

    python benchmarks/guard.py --save

Recordings: the embedded clips are cut in halves, ten times; it learns from one half and watches the other, codes and
decoded samples. Speech: the base speaks its test sentences, several times each; an alarm counts as right when the
recogniser gets more words wrong than in the middle of the utterances without one, or the speech is longer or shorter
than the recording by half.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.common import show
from data.make.learn_statistics import heard
from orpheus.cli import run
from orpheus.codec.snac import SAMPLES_PER_FRAME, SnacCodec
from orpheus.config import PRESETS, SamplingOptions
from orpheus.data.usual import Heard, SpeechStatistics, learn
from orpheus.evaluate.clips import held_out
from orpheus.evaluate.evaluate import TEST_CORPUS
from orpheus.hearing.metrics import word_errors, words
from orpheus.hearing.recognise import find_recogniser
from orpheus.speak.guard import Watch
from orpheus.speak.inference import NoSpeech, OrpheusInference

HALVINGS = 10


@dataclass(frozen=True)
class Options:
    """Measure the guard's alarms on the embedded recordings and on the tiny model's speech."""

    samples: int = 4
    """How often each of the 36 test sentences is spoken."""
    temperature: float = SamplingOptions.temperature
    """Higher makes more go wrong."""
    save: bool = False
    """Write the result to benchmarks/results."""


def watched(usual: SpeechStatistics, clip: Heard, codec: SnacCodec) -> tuple[str, ...]:
    """What the guard says of a recording's codes and their decoded samples."""
    watch, samples = Watch(usual, clip.text), codec.decode(clip.codes)
    for i in range(clip.codes.frames):
        watch.frame(clip.codes.slice(i, i + 1))
        watch.sound(samples[i * SAMPLES_PER_FRAME : (i + 1) * SAMPLES_PER_FRAME])
    return watch.verdict(len(samples) / 24000)


def on_recordings(codec: SnacCodec) -> dict[str, Any]:
    """False alarms on clips that it learnt from, and on clips that it did not."""
    clips = heard("embedded:corpus", codec) + heard(TEST_CORPUS, codec)
    own = [alarm for clip in clips for alarm in watched(learn(clips), clip, codec)]
    other: list[str] = []
    rng = np.random.default_rng(0)
    for _ in range(HALVINGS):
        order = rng.permutation(len(clips))
        usual = learn(clips[i] for i in order[: len(clips) // 2])
        other += [alarm for i in order[len(clips) // 2 :] for alarm in watched(usual, clips[i], codec)]
    unknown = [alarm for clip in clips for alarm in watched(SpeechStatistics(), clip, codec)]
    watched_times = HALVINGS * (len(clips) - len(clips) // 2)
    return {"clips": len(clips), "alarms_on_own_clips": own, "watched_held_out": watched_times,
            "alarms_on_held_out_clips": other, "alarms_with_the_defaults": unknown}  # fmt: skip


def on_speech(options: Options) -> dict[str, Any]:
    """Alarms on free generation, and what the recogniser thinks of those utterances."""
    tts = OrpheusInference(None, base=PRESETS["tiny"].base)
    recogniser = find_recogniser("auto")
    rows: list[dict[str, Any]] = []
    for clip in held_out(TEST_CORPUS, tts):
        for take in range(options.samples):
            sampling = SamplingOptions(temperature=options.temperature, seed=1000 * take + len(rows))
            watch = Watch(tts.usual, clip.text)
            (spoken,) = tts.attempt([clip.text], clip.voice, sampling)
            if isinstance(spoken, NoSpeech):
                rows.append({"text": clip.text, "alarm": "no audio", "wer": 1.0, "ratio": 0.0})
                continue
            # The guard's own view of the whole, so that what it would have cut is heard too.
            for i in range(spoken.codes.frames):
                watch.frame(spoken.codes.slice(i, i + 1))
                watch.sound(spoken.samples[i * SAMPLES_PER_FRAME : (i + 1) * SAMPLES_PER_FRAME])
            alarms = watch.verdict(spoken.duration_s)
            wer = None
            if recogniser:
                wer = word_errors(clip.text, recogniser.transcribe(spoken.samples)) / len(words(clip.text))
            rows.append({"text": clip.text, "voice": clip.voice, "seed": spoken.seed, "wer": wer,
                         "alarm": alarms[0] if alarms else "", "reason": spoken.finish_reason,
                         "ratio": spoken.duration_s / (len(clip.samples) / 24000)})  # fmt: skip
    fired = [row for row in rows if row["alarm"]]
    fine = [row for row in rows if not row["alarm"]]
    middle = float(np.median([row["wer"] for row in fine if row["wer"] is not None] or [0.0]))
    right = [r for r in fired if not 2 / 3 <= r["ratio"] <= 1.5 or (r["wer"] is not None and r["wer"] > middle)]
    off = [row for row in fine if not 2 / 3 <= row["ratio"] <= 1.5]
    return {"utterances": len(rows), "alarms": len(fired), "right": len(right), "wer_median_without_alarm": middle,
            "wer_mean_without_alarm": _mean(fine), "wer_mean_with_alarm": _mean(fired),
            "off_by_half_without_alarm": len(off), "alarmed": fired, "temperature": options.temperature}  # fmt: skip


def _mean(rows: list[dict[str, Any]]) -> float | None:
    rates = [row["wer"] for row in rows if row.get("wer") is not None]
    return round(float(np.mean(rates)), 3) if rates else None


def main(options: Options) -> None:
    """Recordings, then speech."""
    recordings, speech = on_recordings(SnacCodec.load(PRESETS["tiny"].codec)), on_speech(options)
    columns = ("alarm", "reason", "ratio", "wer", "voice", "seed", "text")
    rows = [{c: round(v, 2) if isinstance(v := row.get(c), float) else v for c in columns} for row in speech["alarmed"]]
    del speech["alarmed"]
    show("guard", "tiny", {"recordings": recordings, "speech": speech}, rows or [dict.fromkeys(columns)], options.save)


if __name__ == "__main__":
    run(main, Options, __doc__)
