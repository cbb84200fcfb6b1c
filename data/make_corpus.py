"""Make the embedded LoRA corpus, or the training audio of the tiny codec and the tiny base model.

    python data/make_corpus.py lora                                  # data/corpus: 120 tagged clips of a new voice
    python data/make_corpus.py base  --hours 12 --out work/base      # voices tara, leo, dan and unnamed speakers
    python data/make_corpus.py codec --hours 2  --out work/codec     # the same plus the new voice and nonsense words

Needs flite (`apt install flite`); the same options give the same texts and the same audio. The embedded corpus is
in Elise's schema: clips/*.flac and metadata.csv with file_name, text, source. The other two are one file of 16-bit
samples, audio.i16, and index.csv with start, stop, voice, text; sentences held out by `grammar.is_held_out` are
never in them (add --held-out to make the test sets).
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

sys.path.insert(0, str(Path(__file__).parent))

import grammar

HERE = Path(__file__).parent
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


def training_items(kind: str, seed: int, tag_share: float, held_out: bool) -> Iterator[tuple[int, str, str]]:
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
        elif grammar.is_held_out(text) != held_out:
            continue
        yield number, voice, text
        number += 1


def render(item: tuple[int, str, str], seed: int) -> tuple[str, str, bytes]:
    """(voice, text, int16 samples as bytes) of one item."""
    import synth

    number, name, text = item
    rng = random.Random(f"{seed}/{number}")
    voice = synth.VOICES[name] if name else synth.random_voice(rng)
    audio = synth.utter(text, voice, seed=rng.randrange(2**32))
    return name, text, synth.to_int16(audio).tobytes()


def make_training_set(args: argparse.Namespace) -> None:
    """Write audio.i16 and index.csv of about `args.hours` hours."""
    from functools import partial

    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    wanted = int(args.hours * 3600 * 24_000)
    items = training_items(args.kind, args.seed, args.tags, args.held_out)
    done, chunk = 0, 400
    with (
        ProcessPoolExecutor(args.workers) as pool,
        open(out / "audio.i16", "wb") as audio,
        open(out / "index.csv", "w", newline="", encoding="utf-8") as index,
    ):
        rows = csv.writer(index)
        rows.writerow(["start", "stop", "voice", "text"])
        while done < wanted:
            batch = [next(items) for _ in range(chunk)]
            for voice, text, samples in pool.map(partial(render, seed=args.seed), batch, chunksize=20):
                if done >= wanted:
                    break
                audio.write(samples)
                rows.writerow([done, done + len(samples) // 2, voice, text])
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


def make_lora_corpus(args: argparse.Namespace) -> None:
    """Write clips/NNNN.flac and metadata.csv."""
    import soundfile as sf
    import synth

    clips: Path = args.out / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    seconds = 0.0
    with open(args.out / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file_name", "text", "source"])
        for number, text in enumerate(lora_texts(args.clips, args.seed), 1):
            audio = synth.to_int16(synth.utter(text, synth.VOICES["Elise"], seed=args.seed + number))
            audio = (audio + 8) // 16 * 16  # 12 significant bits (57 dB below the speech): FLAC files half as large
            name = f"clips/{number:04d}.flac"
            sf.write(args.out / name, audio, 24_000, subtype="PCM_16", compression_level=1.0)
            rows.writerow([name, text, "Elise"])
            seconds += len(audio) / 24_000
    size = sum(path.stat().st_size for path in clips.iterdir())
    print(f"{args.clips} clips, {seconds:.0f} s, {size / 1e6:.2f} MB in {args.out}")


def main() -> None:
    """Parse the command line and make what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["lora", "base", "codec"])
    parser.add_argument("--out", type=Path, help="folder to write (default for lora: data/corpus)")
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--clips", type=int, default=120, help="clips of the LoRA corpus")
    parser.add_argument("--hours", type=float, default=1.0, help="hours of the base or codec set")
    parser.add_argument("--tags", type=float, default=0.5, help="share of base or codec sentences with a tag")
    parser.add_argument("--held-out", action="store_true", help="make a test set from the held-out sentences")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    if args.kind == "lora":
        args.out = args.out or HERE / "corpus"
        make_lora_corpus(args)
    elif args.out is None:
        parser.error(f"{args.kind} needs --out")
    else:
        make_training_set(args)


if __name__ == "__main__":
    main()
