"""Tokens per second of our engine, strict and framed, beside `transformers.generate` with the same settings.

    python benchmarks/generate.py                             # the embedded model
    python benchmarks/generate.py --size mid                  # 4 layers of the real width, 156,940 ids; makes 1.8 GB
    python benchmarks/generate.py --size orpheus-3b --batches 1 4 16 64 --tokens 140       # a GPU

The contenders take turns, round by round, so that whatever else the machine does falls on all of them; each figure is
the best round. Counted are the tokens after the first frame, of all rows. On a CPU the speed-up is by processor
seconds, summed over threads, which hardly change when others compute too; on a GPU it is by the clock.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import LAYERS, Size, model_of
from benchmarks.machine import RESULTS, describe
from orpheus.cli import run
from orpheus.config import DEFAULT_PROMPTS, Decoding, SamplingOptions
from orpheus.errors import UserError
from orpheus.format.tokens import FRAME_SLOTS
from orpheus.model.provenance import write_json

READ_BYTES = 2**29  # the memory that is read to measure the bandwidth: more than any cache holds


@dataclass(frozen=True)
class Options:
    """Measure generation: our engine strict and framed, and transformers, in turns."""

    size: Size = "tiny"
    """tiny: the embedded base. mid, orpheus-3b: random weights of the real width, 4 or 28 layers, bfloat16."""
    base: str | None = None
    """The base: a hub id or a folder. Default: the size's, made in .cache/bench if it is not there."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    load_in_4bit: bool = False
    """Quantise the base to 4-bit NF4."""
    decoding: Literal["both", "strict", "framed"] = "both"
    """What our engine draws from: all ids, or those alone that may stand there (`orpheus.config.Decoding`)."""
    batches: tuple[int, ...] = (1,)
    """Rows spoken at once; each number is measured by itself."""
    tokens: int = 70
    """Tokens of each row in a round; the first frame, 7, is not counted."""
    rounds: int = 3
    """Turns of each contender."""
    save: bool = False
    """Write the figures to benchmarks/results as well."""

    def __post_init__(self) -> None:
        if self.tokens < 2 * FRAME_SLOTS or self.rounds < 1 or min(self.batches, default=0) < 1:
            raise UserError(f"tokens must be {2 * FRAME_SLOTS} or more, rounds and batches 1 or more")


@dataclass
class Turn:
    """What one round of one contender took."""

    tokens: int  # after the first frame, all rows
    wall_s: float
    processor_s: float
    first_frame_s: float  # from the call to the last token of the first frame


def tokens_per_second(engine: Any, prompt: list[int], sampling: SamplingOptions, rows: int, seed: int) -> Turn:
    """One round of our engine. The first row that ends ends the round: all of them draw while it is measured."""

    def steps() -> Iterator[bool]:
        legal = 0
        stream = engine.stream([prompt] * rows, sampling, range(seed, seed + rows))
        for row, token in stream:
            if not any(token in ids for ids in engine.layout.continuations(legal % FRAME_SLOTS)[:1]):
                stream.close()
                return
            if row == rows - 1:
                legal += 1
                yield True

    return timed_steps(steps(), rows)


def transformers_turn(loaded: Any, prompt: list[int], sampling: SamplingOptions, rows: int, seed: int) -> Turn:
    """One round of `model.generate` with the same settings, which draws on past any end."""
    import torch

    ids = torch.tensor([prompt] * rows, device=loaded.device)
    clock: list[tuple[float, float]] = []

    def tick(input_ids: Any, scores: Any, **_: Any) -> Any:
        if loaded.device.type == "cuda":
            torch.cuda.synchronize()
        clock.append((time.perf_counter(), time.process_time()))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    started = time.perf_counter(), time.process_time()
    torch.manual_seed(seed)
    loaded.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=sampling.temperature,
        top_p=sampling.top_p, top_k=0, repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=sampling.max_new_tokens, eos_token_id=None, pad_token_id=loaded.layout.pad,
        stopping_criteria=[tick],
    )  # fmt: skip
    return turn(started, clock, rows)


def timed_steps(steps: Iterator[bool], rows: int) -> Turn:
    """Time an iterator of steps, one token of every row each."""
    started = time.perf_counter(), time.process_time()
    return turn(started, [(time.perf_counter(), time.process_time()) for _ in steps], rows)


def turn(started: tuple[float, float], clock: list[tuple[float, float]], rows: int) -> Turn:
    """The figures of a round from the time of each step: whole frames only, since some engines hand out frames."""
    frames = len(clock) // FRAME_SLOTS
    if frames < 2:
        raise UserError(f"speech ended after {len(clock)} tokens, too few to measure: another base or more rounds")
    first, last = clock[FRAME_SLOTS - 1], clock[frames * FRAME_SLOTS - 1]
    return Turn((frames - 1) * FRAME_SLOTS * rows, last[0] - first[0], last[1] - first[1], first[0] - started[0])


def bytes_per_step(loaded: Any, decoding: str) -> int:
    """Bytes of weights that a step must read: all layers, and the output head's rows that it computes.

    The rows of the cache, and what 4-bit layers keep for their scales, are left out: a few percent.
    """
    model = loaded.model
    layers = sum(p.numel() * p.element_size() for p in model.model.layers.parameters())
    head = model.lm_head.weight
    rows = loaded.layout.slot_size if decoding == "framed" else len(head)
    return layers + rows * head.shape[1] * head.element_size()


def read_bandwidth(device: Any) -> float:
    """Bytes per second at which the device reads a large tensor, with the threads that generation has."""
    import torch

    numbers = torch.ones(READ_BYTES // 8, dtype=torch.int64, device=device)
    best = float("inf")
    for _ in range(3):
        started = time.process_time() if device.type == "cpu" else time.perf_counter()
        numbers.sum().item()
        now = time.process_time() if device.type == "cpu" else time.perf_counter()
        best = min(best, now - started)
    return READ_BYTES / best


def measure(options: Options) -> dict[str, Any]:
    """All figures, as plain JSON values."""
    import torch

    from orpheus.engines.torch.engine import TorchEngine
    from orpheus.format.prompt import Renderer
    from orpheus.model.base import load_base, pack_for_inference, pick_device

    device = pick_device(options.device)
    base = options.base or model_of(options.size, "base")
    dtype = torch.bfloat16 if options.size in LAYERS else None
    loaded = load_base(base, load_in_4bit=options.load_in_4bit, backend="transformers", device=device, dtype=dtype)
    pack_for_inference(loaded)
    engine = TorchEngine(loaded)
    prompt = Renderer(loaded.tokenizer, loaded.layout).prompt(DEFAULT_PROMPTS[1])
    by_clock = loaded.device.type != "cpu"
    read = read_bandwidth(loaded.device)
    results = []
    for rows in options.batches:
        contenders: dict[str, Callable[[int], Turn]] = {}
        for decoding in get_args(Decoding) if options.decoding == "both" else (options.decoding,):
            sampling = SamplingOptions(max_new_tokens=options.tokens, decoding=decoding)
            contenders[decoding] = partial(tokens_per_second, engine, prompt, sampling, rows)
        contenders["transformers"] = partial(transformers_turn, loaded, prompt, sampling, rows)
        turns: dict[str, list[Turn]] = {name: [] for name in contenders}
        for number in range(options.rounds):
            for name, contend in contenders.items():
                turns[name].append(contend(1 + number * rows))
        for name, played in turns.items():
            rates = {"tokens_per_s": max(t.tokens / t.wall_s for t in played),
                     "tokens_per_processor_s": max(t.tokens / t.processor_s for t in played)}  # fmt: skip
            moved = bytes_per_step(loaded, name)
            rate = rates["tokens_per_s" if by_clock else "tokens_per_processor_s"] / rows
            results.append({
                "contender": name, "rows": rows, **{k: round(v, 2) for k, v in rates.items()},
                "first_frame_s": round(min(t.first_frame_s for t in played), 3),
                "tokens": max(t.tokens for t in played),
                "weights_gb_per_step": round(moved / 1e9, 3), "share_of_bandwidth": round(moved * rate / read, 3),
            })  # fmt: skip
    return {
        "size": options.size, "device": str(loaded.device), "dtype": str(loaded.dtype).removeprefix("torch."),
        "in_4bit": loaded.in_4bit, "decoder": engine.decoder.name, "threads": torch.get_num_threads(),
        "speed_by": "clock" if by_clock else "processor seconds", "read_gb_per_s": round(read / 1e9, 1),
        "speedup_vs_transformers": speedups(results, by_clock), "results": results, **describe(),
    }  # fmt: skip


def speedups(results: list[dict[str, Any]], by_clock: bool) -> dict[str, float]:
    """Tokens per second over transformers' at the same number of rows: {"strict": 2.0, "framed x 4": 3.1, ...}."""
    key = "tokens_per_s" if by_clock else "tokens_per_processor_s"
    theirs = {r["rows"]: r[key] for r in results if r["contender"] == "transformers"}
    return {
        r["contender"] + (f" x {r['rows']}" if r["rows"] > 1 else ""): round(r[key] / theirs[r["rows"]], 2)
        for r in results
        if r["contender"] != "transformers"
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = ["| rows | contender | tokens/s | tokens/processor second | first frame, s | GB/step | of bandwidth |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in figures["results"]:
        lines.append(f"| {r['rows']} | {r['contender']} | {r['tokens_per_s']} | {r['tokens_per_processor_s']} | "
                     f"{r['first_frame_s']} | {r['weights_gb_per_step']} | "
                     f"{r['share_of_bandwidth']:.0%} |")  # fmt: skip
    return "\n".join(lines)


def main(options: Options) -> None:
    """Measure, print the table, then all figures as one line of JSON."""
    figures = measure(options)
    print(f"{figures['size']}, {figures['dtype']}{' 4-bit' if figures['in_4bit'] else ''}, {figures['device']}: "
          f"{figures['threads']} threads, reads {figures['read_gb_per_s']} GB/s; {figures['machine']['cpu']}, "
          f"commit {figures['commit'][:12]}\n{table(figures)}\nspeed-up over transformers, by {figures['speed_by']}: "
          + ", ".join(f"{name} {value}" for name, value in figures["speedup_vs_transformers"].items()))  # fmt: skip
    if options.save:
        name = f"generate_{options.size}{'_4bit' if options.load_in_4bit else ''}.json"
        print(f"saved: {write_json(RESULTS / name, figures).name}")
    print(json.dumps(figures))


if __name__ == "__main__":
    run(main, Options, __doc__)
