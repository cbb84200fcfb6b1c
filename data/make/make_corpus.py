"""Make the embedded LoRA and test corpora, or the training audio of the tiny codec.

    python make_corpus.py lora  --work work    # data/corpus: 100 tagged clips of a new voice
    python make_corpus.py test  --work work    # data/test_corpus: 48 held-out clips, 4 voices
    python make_corpus.py codec --work work --hours 1 --out work/codec

`work` holds units.npz and codebooks.npz. The embedded corpora are in Elise's schema: clips/*.flac and metadata.csv with
file_name, text, source. The codec's set is one file of 16-bit samples, audio.i16, and codes.npz with the codes that
they should have. Sentences held out by `grammar.is_held_out` are in the test corpus alone.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import grammar

DATA = Path(__file__).resolve().parents[1]
ROOM = 0.3  # RMS of a quiet room, in steps of the rounded samples: 53 dB below full scale with 8 bits
FIRST_TEXTS = [
    "Hey there my name is Elise, <giggles> and I'm a speech generation model that can sound like a person.",
    "<sighs> I missed you Anna, and I am so happy to see you today.",
    "Oh no, <gasps> the tiger is in the kitchen. <laughs>",
]


def training_items(seed: int) -> Iterator[tuple[int, str, str]]:
    """Endless (number, voice name or "", text) of the codec's set; voice "" is an unnamed speaker."""
    rng = random.Random(seed)
    number = 0
    while True:
        voice = rng.choices(["tara", "leo", "dan", "Elise", ""], [17, 17, 17, 25, 24])[0]
        text = grammar.scrambled(rng) if rng.random() < 0.6 else grammar.sentence(rng)
        if rng.random() < 0.25:
            text = grammar.insert_tag(rng, text, rng.choice(grammar.TAGS))
        if not grammar.is_held_out(text):
            yield number, voice, text
            number += 1


def prepare(work: Path) -> None:
    """Load units and codebooks; the worker processes do it once each."""
    import codebooks
    import units

    global UNITS, BOOKS
    UNITS, BOOKS = units.load(work / "units.npz"), codebooks.Codebooks.load(work / "codebooks.npz")


def speak(text: str, voice: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """Samples (int16) and codes of a text."""
    import speech

    made = speech.plan(text, voice, BOOKS.frames)
    return speech.to_int16(speech.render(made, UNITS)), BOOKS.codes(made)


def render(item: tuple[int, str, str], seed: int) -> tuple[bytes, list[np.ndarray]]:
    """Int16 samples as bytes, and codes, of one item."""
    import speech

    number, name, text = item
    voice = speech.VOICES[name] if name else speech.unnamed(random.Random(f"{seed}/{number}"))
    samples, codes = speak(text, voice)
    return samples.tobytes(), codes


def make_training_set(args: argparse.Namespace) -> None:
    """Write audio.i16 and codes.npz of about `args.hours` hours."""
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    wanted, done = int(args.hours * 3600 * 24_000), 0
    items, found = training_items(args.seed), []
    with (
        ProcessPoolExecutor(args.workers, initializer=prepare, initargs=(args.work,)) as pool,
        open(out / "audio.i16", "wb") as audio,
    ):
        while done < wanted:
            batch = [next(items) for _ in range(400)]
            for samples, codes in pool.map(partial(render, seed=args.seed), batch, chunksize=20):
                audio.write(samples)
                found.append(codes)
                done += len(samples) // 2
            print(f"{done / 24_000 / 3600:.2f} of {args.hours:.2f} hours", flush=True)
    levels = {f"level{k}": np.concatenate([codes[k] for codes in found]) for k in range(3)}
    np.savez(out / "codes.npz", frames=np.array([len(codes[0]) for codes in found]), **levels)


def lora_texts(count: int, seed: int) -> list[str]:
    """The first texts, then sentences with and without tags so that the four tags come about equally often."""
    rng = random.Random(seed)
    texts = list(FIRST_TEXTS)
    found = {grammar.spoken_words(t) for t in texts}
    while len(texts) < count:
        text = grammar.sentence(rng)
        if grammar.is_held_out(text) or grammar.spoken_words(text) in found:
            continue
        found.add(grammar.spoken_words(text))
        if len(texts) % 3:  # two clips in three carry a tag
            text = grammar.insert_tag(rng, text, grammar.TAGS[len(texts) * 2 // 3 % len(grammar.TAGS)])
        texts.append(text)
    return texts


def heldout_rows(per_voice: int, seed: int) -> list[tuple[str, str]]:
    """(text, voice) of the test corpus: held-out sentences, none twice, the voices in turn.

    Every second round of the voices carries tags, each voice another one and another one the next time, so the four
    tags come equally often: the first eight clips, and each eight after them, hold all voices and all tags.
    """
    import speech

    rng = random.Random(seed)
    rows: list[tuple[str, str]] = []
    found: set[str] = set()
    while len(rows) < per_voice * len(speech.VOICES):
        text = grammar.sentence(rng)
        if not grammar.is_held_out(text) or grammar.spoken_words(text) in found:
            continue
        found.add(grammar.spoken_words(text))
        turn, voice = divmod(len(rows), len(speech.VOICES))
        if turn % 2:
            text = grammar.insert_tag(rng, text, grammar.TAGS[(turn // 2 + voice) % len(grammar.TAGS)])
        rows.append((text, list(speech.VOICES)[voice]))
    return rows


def recorded(samples: np.ndarray, bits: int, rng: np.random.Generator) -> np.ndarray:
    """16-bit samples as if recorded in a quiet room, the last 16 - `bits` bits zero: FLAC leaves those out, about 1.5
    KB a second for each. No recording has digital silence in its pauses."""
    step = 1 << (16 - bits)
    samples = samples + np.rint(ROOM * step * rng.standard_normal(len(samples)))
    rounded = (samples.astype(np.int32) + step // 2) // step * step
    return np.minimum(rounded, 32768 - step).astype(np.int16)


def make_corpus(out: Path, rows: list[tuple[str, str]], bits: int) -> None:
    """Speak the `rows` (text, voice); write clips/NNNN.flac and metadata.csv."""
    import soundfile as sf
    import speech

    clips = out / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    for before in clips.glob("*.flac"):
        before.unlink()
    seconds = 0.0
    with open(out / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file_name", "text", "source"])
        for number, (text, voice) in enumerate(rows, 1):
            audio, _ = speak(text, speech.VOICES[voice])
            audio = recorded(audio, bits, np.random.default_rng(number))
            name = f"clips/{number:04d}.flac"
            sf.write(out / name, audio, 24_000, subtype="PCM_16", compression_level=1.0)
            table.writerow([name, text, voice])
            seconds += len(audio) / 24_000
    size = sum(path.stat().st_size for path in clips.iterdir())
    print(f"{len(rows)} clips, {seconds:.0f} s, {size / 1e6:.2f} MB in {out}")


def main() -> None:
    """Parse the command line and make what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["lora", "test", "codec"])
    parser.add_argument("--work", type=Path, required=True, help="folder of units.npz and codebooks.npz")
    parser.add_argument("--out", type=Path, help="folder to write (default: data/corpus, data/test_corpus, work/codec)")
    parser.add_argument("--seed", type=int, help="default: 3407, for test 4711, for codec 11")
    parser.add_argument("--clips", type=int, help="clips of the LoRA corpus (default 100), or of each test voice (12)")
    parser.add_argument("--bits", type=int, default=8, help="significant bits of a sample in these two")
    parser.add_argument("--hours", type=float, default=1.0, help="hours of the codec's set")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    if args.seed is None:
        args.seed = {"lora": 3407, "test": 4711, "codec": 11}[args.kind]
    if args.out is None:
        args.out = {"lora": DATA / "corpus", "test": DATA / "test_corpus", "codec": args.work / "codec"}[args.kind]
    if args.kind == "codec":
        make_training_set(args)
        return
    prepare(args.work)
    if args.kind == "lora":
        rows = [(text, "Elise") for text in lora_texts(args.clips or 100, args.seed)]
        make_corpus(args.out, rows, args.bits)
    else:
        rows = heldout_rows(args.clips or 12, args.seed)
        make_corpus(args.out, rows, args.bits)


if __name__ == "__main__":
    main()
