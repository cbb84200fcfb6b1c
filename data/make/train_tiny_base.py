"""Train the tiny Orpheus base model (data/tiny_orpheus) on codes of the tiny codec. CPU or GPU, resumable.

    python data/make/make_corpus.py base --hours 12 --seed 21 --out work/base
    python data/make/make_corpus.py base --hours 0.15 --seed 22 --held-out --out work/test
    python data/make/train_tiny_base.py --audio work/base --test work/test --work work --minutes 75

The codec's encoder must be final (work/fixed_codes.pt, or --codec data/tiny_codec); its decoder is not needed.

The tiny codec uses 1024 of the 4096 codes of each slot, so three quarters of the audio rows are never a target. They
share one trained row, "never": a softmax over the used rows and `never` with log(count) added to its logit is exactly
the softmax over the whole vocabulary, at a quarter of the cost. Most of the training takes each code's loss
within its slot (plus a share of positions over the whole vocabulary); the last part takes all over the whole
vocabulary, so that unconstrained sampling stays in its slot and stops by itself.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from tiny_lm import Sequences, TinyModel

DATA = Path(__file__).resolve().parents[1]


def learning_rate(args: argparse.Namespace, done: float, step: int) -> float:
    """Warm-up, constant, then a linear fall to zero over the last 60 %."""
    return args.lr * min(1.0, (step + 1) / 100) * min(1.0, max(0.01, (1 - done) / 0.6))


def train(args: argparse.Namespace, model: TinyModel, data: Sequences, test: Sequences) -> None:
    """Train for args.minutes in all; state in work/base.pt, the model in args.out after each save."""
    import numpy as np
    import torch
    from tiny_lm import READ_WEIGHT

    optimisers = model.optimisers(args.lr)
    state_file = args.work / f"{args.name}.pt"
    step, seen, before_s = 0, 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, map_location=args.device, weights_only=False)
        model.lm.load_state_dict(state["model"])
        model.reader.load_state_dict(state["reader"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        step, seen, before_s = state["step"], state["seen"], state["seconds"]
        data.rng.bit_generator.state = state["rng"]
        print(f"resumed at step {step}, {before_s / 60:.1f} minutes", flush=True)
    start_s = tested_s = time.time()

    def seconds() -> float:
        return before_s + time.time() - start_s

    def checkpoint() -> None:
        loss, per_slot, full = model.evaluate(test)
        print(f"  held-out loss {loss:.3f} per slot", [round(v, 2) for v in per_slot], f"full {full:.3f}", flush=True)
        with open(args.work / f"{args.name}.curve.csv", "a", encoding="utf-8") as curve:
            curve.write(f"{step},{seen},{seconds() / 60:.2f},{loss:.4f},{full:.4f}\n")
        state: dict[str, Any] = {
            "model": model.lm.state_dict(),
            "reader": model.reader.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "step": step,
            "seen": seen,
            "seconds": seconds(),
            "rng": data.rng.bit_generator.state,
        }
        torch.save(state, state_file.with_suffix(".tmp"))
        state_file.with_suffix(".tmp").replace(state_file)
        model.save(args.out)

    means = None
    while seconds() < args.minutes * 60:
        for batch in data.batches(args.tokens):
            done = seconds() / (args.minutes * 60)
            if done >= 1:
                break
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(args, done, step)
            share = 1.0 if done > 1 - args.full_part else args.full_share
            ids, slots, words = (part.to(args.device) for part in batch)
            loss, reading = model.losses(ids, slots, words, share)
            (loss + READ_WEIGHT * reading).backward()
            torch.nn.utils.clip_grad_norm_(model.lm.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            step, seen = step + 1, seen + int((slots >= 0).sum())
            latest = np.array([loss.item(), reading.item()])
            means = latest if means is None else 0.98 * means + 0.02 * latest
            if step % 50 == 0:
                rate = seen / seconds()
                text = f"step {step} {100 * done:.1f} % loss {means[0]:.3f} reading {means[1]:.3f}"
                print(f"{text} {rate:.0f} tokens/s", flush=True)
            if time.time() - tested_s > args.save_every * 60:
                checkpoint()
                tested_s = time.time()
    checkpoint()


def main() -> None:
    """Parse the command line, prepare data and model, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True, help="folder written by make_corpus.py base")
    parser.add_argument("--test", type=Path, required=True, help="the same with --held-out")
    parser.add_argument("--work", type=Path, required=True, help="folder for the training state")
    parser.add_argument("--codec", type=Path, help="codec folder (default: work/fixed_codes.pt)")
    parser.add_argument("--start", type=Path, help="a finished base (of the same codec) that is trained further")
    parser.add_argument("--out", type=Path, default=DATA / "tiny_orpheus")
    parser.add_argument("--name", default="base", help="name of the state file in --work")
    parser.add_argument("--minutes", type=float, default=75, help="length of the whole training")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens in a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--full-share", type=float, default=0.1, help="positions with whole-vocabulary loss at first")
    parser.add_argument("--full-part", type=float, default=0.4, help="last part of the training, with all of them")
    parser.add_argument("--save-every", type=float, default=5, help="minutes between held-out losses and saves")
    parser.add_argument("--compile", action="store_true", help="compile the layers (needs a C++ compiler)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    from dataclasses import replace

    import grammar
    import torch
    from audio_set import AudioSet
    from tiny_lm import Sequences, TinyModel
    from tiny_tokenizer import train_tokenizer
    from train_tiny_codec import SIZES, load_codec

    from orpheus.model.provenance import Provenance, versions

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    codec = load_codec(args.codec or args.work / "fixed_codes.pt")
    texts = grammar.sentences(seed=1, count=20_000, tag_share=0.5)
    texts = [f"{voice}: {text}" for text, voice in zip(texts, ["tara", "leo", "dan", "Elise"] * 5000, strict=True)]
    tokenizer = train_tokenizer(texts, pieces=856)
    model = TinyModel(tokenizer, SIZES, args.device)
    if args.start:
        model.load(args.start)
    sets, voices = {}, set()
    for name, folder in (("train", args.audio), ("test", args.test)):
        audio = AudioSet(folder)
        voices |= {voice for voice in audio.voices if voice}
        codes = audio.codes(codec, args.work / f"{args.name}_{name}_codes.npz")
        sets[name] = Sequences(model, audio, codes, args.seed)
    if args.compile:
        model.compile()
    print(f"{sets['train'].tokens / 1e6:.2f} M training tokens, {model.describe()}", flush=True)
    train(args, model, sets["train"], sets["test"])
    made = Provenance(base="embedded:tiny_orpheus", codec="embedded:tiny_codec", layout=model.layout)
    (args.out / "words.txt").write_text("\n".join(grammar.vocabulary()) + "\n", encoding="utf-8")
    replace(made, base_voices=tuple(sorted(voices)), versions=versions()).save(
        args.out
    )  # `--voice` is checked against these


if __name__ == "__main__":
    main()
