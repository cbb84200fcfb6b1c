"""Make the embedded LoRA and test corpora, or the training audio of the tiny codec and the tiny base model.

    python data/make/make_corpus.py lora                                # data/corpus: 110 tagged clips of a new voice
    python data/make/make_corpus.py test                                # data/test_corpus: 48 held-out clips, 4 voices
    python data/make/make_corpus.py base  --hours 12 --out work/base    # voices tara, leo, dan and unnamed speakers
    python data/make/make_corpus.py codec --hours 2  --out work/codec   # the same plus the new voice and nonsense words

Needs flite (`apt install flite`); the same options give the same texts and the same audio. The embedded corpora are
in Elise's schema: clips/*.flac and metadata.csv with file_name, text, source. The other two are one file of 16-bit
samples, audio.i16, and index.csv with start, stop, voice, text, word_ends_s. Sentences held out by
`grammar.is_held_out` are in the test corpus alone (add --held-out to make larger test sets).
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import grammar

DATA = Path(__file__).resolve().parents[1]
DEFAULT_PROMPTS = [
    "Hey there my name is Elise, <giggles> and I'm a speech generation model that can sound like a person.",
    "<sighs> I missed you Anna, and I am so happy to see you today.",
    "Oh no, <gasps> the tiger is in the kitchen. <laughs>",
]


ONSETS = "b bl br d dr f fl g gr h j k l m n p pl r s sk st str t tr sh ch th v w y z -"
VOWELS = "a e i o u ay ee oh ow ar er or oy ai"
CODAS = "b d f g k l m n p r s t x nd nt st sh th ng lk -"


def nonsense(rng: random.Random) -> str:
    """A few made-up words: sound combinations that the grammar does not hold, for the codec."""
    parts = [part.split() for part in (ONSETS, VOWELS, CODAS)]
    words = []
    for _ in range(rng.randint(4, 7)):
        words.append("".join(rng.choice(part) for _ in range(rng.randint(1, 2)) for part in parts).replace("-", ""))
    return " ".join(words)


def training_items(
    kind: str, seed: int, tag_share: float, held_out: bool, scrambled_share: float
) -> Iterator[tuple[int, str, str]]:
    """Endless (number, voice name or "", text) of the base or codec set; voice "" is an unnamed random speaker."""
    rng = random.Random(seed)
    names = ["tara", "leo", "dan", ""]
    weights = [30, 30, 20, 20]
    if kind == "codec":
        names, weights = [*names, "Elise"], [20, 20, 15, 20, 25]
    number = 0
    while True:
        voice = rng.choices(names, weights)[0]
        text = grammar.tagged_sentence(rng, tag_share)
        if kind == "codec" and rng.random() < 0.4:
            text = nonsense(rng)
            if rng.random() < 0.15:
                text = grammar.insert_tag(rng, text, rng.choice(grammar.TAGS))
        elif scrambled_share and rng.random() < scrambled_share:
            text = grammar.scrambled(rng)
            if rng.random() < tag_share / 2:
                text = grammar.insert_tag(rng, text, rng.choice(grammar.TAGS))
        elif grammar.is_held_out(text) != held_out:
            continue
        yield number, voice, text
        number += 1


def render(item: tuple[int, str, str], seed: int) -> tuple[str, str, bytes, str]:
    """(voice, text, int16 samples as bytes, seconds at which its words end) of one item."""
    import synth

    number, name, text = item
    rng = random.Random(f"{seed}/{number}")
    voice = synth.VOICES[name] if name else synth.random_voice(rng)
    spoken = synth.utter(text, voice, seed=rng.randrange(2**32))
    ends = " ".join(f"{end_s:.2f}" for end_s in spoken.ends_s)
    return name, text, synth.to_int16(spoken.samples).tobytes(), ends


def make_training_set(args: argparse.Namespace) -> None:
    """Write audio.i16 and index.csv of about `args.hours` hours."""
    from functools import partial

    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    wanted = int(args.hours * 3600 * 24_000)
    items = training_items(args.kind, args.seed, args.tags, args.held_out, args.scrambled)
    done, chunk = 0, 400
    with (
        ProcessPoolExecutor(args.workers) as pool,
        open(out / "audio.i16", "wb") as audio,
        open(out / "index.csv", "w", newline="", encoding="utf-8") as index,
    ):
        rows = csv.writer(index)
        rows.writerow(["start", "stop", "voice", "text", "word_ends_s"])
        while done < wanted:
            batch = [next(items) for _ in range(chunk)]
            for voice, text, samples, ends in pool.map(partial(render, seed=args.seed), batch, chunksize=20):
                if done >= wanted:
                    break
                audio.write(samples)
                rows.writerow([done, done + len(samples) // 2, voice, text, ends])
                done += len(samples) // 2
            print(f"{done / 24_000 / 3600:.2f} of {args.hours:.2f} hours", flush=True)


def lora_texts(count: int, seed: int) -> list[str]:
    """The default prompts, then sentences with and without tags so that the four tags come about equally often."""
    rng = random.Random(seed)
    texts = list(DEFAULT_PROMPTS)
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
    import synth

    rng = random.Random(seed)
    rows: list[tuple[str, str]] = []
    found: set[str] = set()
    while len(rows) < per_voice * len(synth.VOICES):
        text = grammar.sentence(rng)
        if not grammar.is_held_out(text) or grammar.spoken_words(text) in found:
            continue
        found.add(grammar.spoken_words(text))
        turn, voice = divmod(len(rows), len(synth.VOICES))
        if turn % 2:
            text = grammar.insert_tag(rng, text, grammar.TAGS[(turn // 2 + voice) % len(grammar.TAGS)])
        rows.append((text, list(synth.VOICES)[voice]))
    return rows


def round_to_bits(samples: np.ndarray, bits: int) -> np.ndarray:
    """16-bit samples with the last 16 - `bits` bits zero: FLAC leaves those out, about 1.5 KB a second for each."""
    step = 1 << (16 - bits)
    rounded = (samples.astype(np.int32) + step // 2) // step * step
    return np.minimum(rounded, 32768 - step).astype(np.int16)


def make_corpus(out: Path, rows: list[tuple[str, str]], seed: int, bits: int) -> None:
    """Speak the `rows` (text, voice); write clips/NNNN.flac and metadata.csv."""
    import soundfile as sf
    import synth

    clips = out / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    seconds = 0.0
    with open(out / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file_name", "text", "source"])
        for number, (text, voice) in enumerate(rows, 1):
            audio = synth.to_int16(synth.utter(text, synth.VOICES[voice], seed=seed + number).samples)
            name = f"clips/{number:04d}.flac"
            sf.write(out / name, round_to_bits(audio, bits), 24_000, subtype="PCM_16", compression_level=1.0)
            table.writerow([name, text, voice])
            seconds += len(audio) / 24_000
    size = sum(path.stat().st_size for path in clips.iterdir())
    print(f"{len(rows)} clips, {seconds:.0f} s, {size / 1e6:.2f} MB in {out}")


def main() -> None:
    """Parse the command line and make what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["lora", "test", "base", "codec"])
    parser.add_argument(
        "--out", type=Path, help="folder to write (default: data/corpus for lora, data/test_corpus for test)"
    )
    parser.add_argument("--seed", type=int, help="default: 3407, for test 4711")
    parser.add_argument("--clips", type=int, help="clips of the LoRA corpus (default 110), or of each test voice (12)")
    parser.add_argument("--bits", type=int, help="significant bits of a sample in these two (default 10, for test 9)")
    parser.add_argument("--hours", type=float, default=1.0, help="hours of the base or codec set")
    parser.add_argument("--tags", type=float, default=0.5, help="share of base or codec sentences with a tag")
    parser.add_argument("--scrambled", type=float, default=0.0, help="share of base sentences with words in any order")
    parser.add_argument("--held-out", action="store_true", help="make a test set from the held-out sentences")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    if args.seed is None:
        args.seed = 4711 if args.kind == "test" else 3407
    if args.kind == "lora":
        rows = [(text, "Elise") for text in lora_texts(args.clips or 110, args.seed)]
        make_corpus(args.out or DATA / "corpus", rows, args.seed, args.bits or 10)
    elif args.kind == "test":
        rows = heldout_rows(args.clips or 12, args.seed)
        make_corpus(args.out or DATA / "test_corpus", rows, args.seed, args.bits or 9)
    elif args.out is None:
        parser.error(f"{args.kind} needs --out")
    else:
        make_training_set(args)


if __name__ == "__main__":
    main()
