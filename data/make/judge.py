"""What Whisper hears of the embedded voice: held-out sentences, words in any order, and what a visitor might type.

    python data/make/judge.py --work work                                        # the base, its three voices
    python data/make/judge.py --work work --adapter lora_model --voices Elise  # what `make demo` trained

`work` holds units.npz and codebooks.npz (make_corpus.py): the originals are made from them. Strict decoding, with the
base's own sampling. Prints word errors of the originals and of what is spoken, how utterances end, tags and pitch.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

EVERYDAY = [
    "Good morning, how are you today?",
    "I would like a cup of coffee, please.",
    "What time does the train leave?",
    "My brother wants to eat pizza with his friends.",
    "Can you help me find my phone?",
]


def texts_of(kind: str, count: int, seed: int) -> list[str]:
    """Sentences that no training set holds, with tags in every second one; or words in any order; or everyday ones."""
    import grammar

    rng = random.Random(seed)
    if kind == "everyday":
        return EVERYDAY
    if kind == "any order":
        return [grammar.scrambled(rng) for _ in range(count)]
    texts: dict[str, str] = {}
    while len(texts) < count:
        text = grammar.sentence(rng)
        if grammar.is_held_out(text):
            tagged = grammar.insert_tag(rng, text, grammar.TAGS[len(texts) // 2 % 4])
            texts.setdefault(text, tagged if len(texts) % 2 else text)
    return list(texts.values())


def originals(work: Path, texts: list[str], voices: list[str]) -> list[np.ndarray]:
    """The texts as the corpora have them: float32 [n]."""
    import make_corpus
    import speech

    make_corpus.prepare(work)
    rng = np.random.default_rng(0)
    spoken = [make_corpus.speak(text, speech.VOICES[voice])[0] for text, voice in zip(texts, voices, strict=True)]
    return [make_corpus.recorded(samples, 8, rng).astype(np.float32) / 32768 for samples in spoken]


def heard(recogniser: Any, texts: list[str], sounds: list[np.ndarray], show: bool) -> float:
    """Errors / words."""
    from orpheus.hearing.metrics import word_errors, words

    errors = total = 0
    for text, sound in zip(texts, sounds, strict=True):
        said = recogniser.transcribe(sound)
        wrong = word_errors(text, said)
        errors, total = errors + wrong, total + len(words(text))
        if show and wrong:
            print(f"    {text}  ->  {said}")
    return errors / total


def tag_rates(texts: list[str], sounds: list[np.ndarray]) -> str:
    """Share of the tags found where the text has them, and where it has not."""
    from orpheus.hearing.tags import KNOWN_TAGS, detect_tags

    pairs = []
    for text, sound in zip(texts, sounds, strict=True):
        found = {hit.tag for hit in detect_tags(sound)}
        pairs += [(tag in text, tag in found) for tag in KNOWN_TAGS]
    right, wrong = [hit for said, hit in pairs if said], [hit for said, hit in pairs if not said]
    return f"tags {np.mean(right):.3f} / {np.mean(wrong):.3f}" if right else "no tags"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of units.npz and codebooks.npz")
    parser.add_argument("--adapter", type=Path, help="a trained adapter (default: the base alone)")
    parser.add_argument("--voices", nargs="+", default=["tara", "leo", "dan"])
    parser.add_argument("--kinds", nargs="+", default=["held out", "any order", "everyday"])
    parser.add_argument("--count", type=int, default=48, help="sentences of a kind")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--show", action="store_true", help="print what was heard wrong")
    args = parser.parse_args()

    from orpheus.config import PRESETS, SamplingOptions
    from orpheus.hearing.metrics import median_f0_hz
    from orpheus.hearing.recognise import find_recogniser
    from orpheus.speak.inference import OrpheusInference
    from orpheus.speak.speech import Speech

    tiny = PRESETS["tiny"]
    tts = OrpheusInference(args.adapter, base=tiny.base, codec=tiny.codec, load_in_4bit=False)
    recogniser = find_recogniser("whisper")
    for kind in args.kinds:
        texts = texts_of(kind, args.count, args.seed)
        if kind == "everyday":
            texts, voices = texts * len(args.voices), [v for v in args.voices for _ in texts]
        else:
            voices = [args.voices[i % len(args.voices)] for i in range(len(texts))]
        plain = originals(args.work, texts, voices)
        spoken: list[Any] = [None] * len(texts)
        for voice in args.voices:
            places = [i for i, v in enumerate(voices) if v == voice]
            for at, one in zip(places, tts.attempt([texts[i] for i in places], voice, SamplingOptions(seed=args.seed)),
                               strict=True):  # fmt: skip
                spoken[at] = one
        sounds = [one.samples if isinstance(one, Speech) else np.zeros(2400, np.float32) for one in spoken]
        ends = [one.finish_reason if isinstance(one, Speech) else "failed" for one in spoken]
        ids = sum(len(s) // 2048 * 7 for s in sounds)
        print(f"{kind}: {len(texts)} texts, originals {heard(recogniser, texts, plain, False):.3f}, "
              f"spoken {heard(recogniser, texts, sounds, args.show):.3f}; {tag_rates(texts, sounds)}; "
              f"ended by end_of_speech {np.mean([end == 'end_of_speech' for end in ends]):.3f}, "
              f"out of slot {ends.count('out_of_range')} of {ids}", flush=True)  # fmt: skip
        for voice in args.voices:
            pairs = [(a, b) for a, b, v in zip(plain, sounds, voices, strict=True) if v == voice]
            pitch = [np.median([f for pair in pairs if (f := median_f0_hz(pair[i]))] or [0]) for i in (0, 1)]
            print(f"  {voice}: {pitch[1]:.0f} Hz, originals {pitch[0]:.0f}", flush=True)


if __name__ == "__main__":
    main()
