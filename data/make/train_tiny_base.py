"""Train the tiny Orpheus base model on the codes of the embedded speech. CPU or GPU, resumable.

    python train_tiny_base.py --codebooks work/codebooks.npz --work work --out work/base --minutes 60 --compile

The codes of a text are known without any recording, so this needs no codec, and no example comes twice.

The codec uses a part of the 4096 codes of each slot. The rows that are never a target share one trained row,
"never": a softmax over the used rows and `never` with log(count) added to its logit is exactly the softmax over the
whole vocabulary, at a fraction of the cost. A share of the positions takes the loss over the whole vocabulary from the
start, and in the last part all do, so that unconstrained sampling stays in its slot and stops by itself.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from tiny_lm import Sequences, TinyModel

SHORT_PART, SHORT_WORDS = 0.2, 3  # a new base begins with few words: where all is near, they are learnt sooner
TESTED = 8  # batches of held-out sentences, and of words in any order, that are measured at each save


def learning_rate(args: argparse.Namespace, done: float, step: int) -> float:
    """Warm-up, constant, then a linear fall to zero over the last 60 %."""
    return args.lr * min(1.0, (step + 1) / 100) * min(1.0, max(0.01, (1 - done) / 0.6))


class Run:
    """A training by the clock: its state in work/NAME.pt, the model in args.out after each save."""

    def __init__(
        self, args: argparse.Namespace, model: TinyModel, data: Sequences, tests: dict[str, list[Any]]
    ) -> None:
        import torch

        self.args, self.model, self.data, self.tests = args, model, data, tests
        self.optimisers = model.optimisers(args.lr)
        self.path: Path = args.work / f"{args.name}.pt"
        self.step, self.seen, self.before_s = 0, 0, 0.0
        if self.path.exists():
            state = torch.load(self.path, map_location=args.device, weights_only=False)
            model.lm.load_state_dict(state["model"])
            model.reader.load_state_dict(state["reader"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            self.step, self.seen, self.before_s = state["step"], state["seen"], state["seconds"]
            data.rng.seed(self.step)
            print(f"resumed at step {self.step}, {self.before_s / 60:.1f} minutes", flush=True)
        self.start_s = self.saved_s = time.time()

    @property
    def seconds(self) -> float:
        return self.before_s + time.time() - self.start_s

    @property
    def done(self) -> float:
        """Share of the minutes that is used up."""
        return self.seconds / (self.args.minutes * 60)

    def update(self, batch: tuple[Any, ...]) -> list[float]:
        """One step. Returns loss and reading loss."""
        import torch
        from tiny_lm import READ_WEIGHT

        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(self.args, self.done, self.step)
        share = 1.0 if self.done > 1 - self.args.full_part else self.args.full_share
        ids, slots, words = (part.to(self.args.device) for part in batch)
        loss, reading = self.model.losses(ids, slots, words, share)
        (loss + READ_WEIGHT * reading).backward()
        torch.nn.utils.clip_grad_norm_(self.model.lm.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step, self.seen = self.step + 1, self.seen + int((slots >= 0).sum())
        return [loss.item(), reading.item()]

    def train(self) -> None:
        import numpy as np

        means = None
        for batch in self.data.batches(self.args.tokens):
            if self.done >= 1:
                break
            self.data.longest = SHORT_WORDS if self.done < SHORT_PART and not self.args.start else 0
            latest = np.array(self.update(batch))
            means = latest if means is None else 0.98 * means + 0.02 * latest
            if self.step % 50 == 0:
                text = f"step {self.step} {100 * self.done:.1f} % loss {means[0]:.3f} reading {means[1]:.3f}"
                print(f"{text} {self.seen / 1e6:.2f} M {self.seen / self.seconds:.0f} tokens/s", flush=True)
            if time.time() - self.saved_s > self.args.save_every * 60:
                self.save()
                self.saved_s = time.time()
        self.save()

    def save(self) -> None:
        """State, model, and the held-out figures in the log."""
        import torch

        state: dict[str, Any] = {
            "model": self.model.lm.state_dict(),
            "reader": self.model.reader.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "seen": self.seen,
            "seconds": self.seconds,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)
        self.model.save(self.args.out)
        for name, batches in self.tests.items():
            figures = self.model.evaluate(batches)
            print(f"  {name}", {k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}, flush=True)


def main() -> None:
    """Parse the command line, prepare data and model, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codebooks", type=Path, required=True, help="written by codebooks.py")
    parser.add_argument("--work", type=Path, required=True, help="folder for the training state")
    parser.add_argument("--start", type=Path, help="a finished base that is trained further")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--name", default="base", help="name of the state file in --work")
    parser.add_argument("--minutes", type=float, default=60, help="length of the whole training")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens in a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--full-share", type=float, default=0.1, help="positions with whole-vocabulary loss at first")
    parser.add_argument("--full-part", type=float, default=0.3, help="last part of the training, with all of them")
    parser.add_argument("--save-every", type=float, default=5, help="minutes between held-out losses and saves")
    parser.add_argument("--compile", action="store_true", help="compile the layers (needs a C++ compiler)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    import grammar
    import torch
    from codebooks import Codebooks
    from tiny_lm import Sequences, TinyModel
    from tiny_tokenizer import make_tokenizer

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    texts = [grammar.sentence(rng) for _ in range(5000)]
    model = TinyModel(make_tokenizer(grammar.written_forms(), texts), args.device)
    if args.start:
        model.load(args.start)
    books = Codebooks.load(args.codebooks)
    tests = {}
    for name, scrambled in (("held-out sentences", 0.0), ("words in any order", 1.0)):
        batches = Sequences(model, books, seed=99, scrambled=scrambled, held_out=True).batches(2048)
        tests[name] = [next(batches) for _ in range(TESTED)]
    if args.compile:
        model.compile()
    print(model.describe(), flush=True)
    Run(args, model, Sequences(model, books, args.seed), tests).train()


if __name__ == "__main__":
    main()
