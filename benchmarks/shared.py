"""Many listeners of one model: the running batch that they share, beside a thread of its own for each.

    python benchmarks/shared.py                               # the embedded model
    python benchmarks/shared.py --size mid --tokens 28        # 4 layers of the real width, 156,940 ids; makes 1.8 GB
    python benchmarks/shared.py --size orpheus-3b --streams 1 4 16 64 --tokens 140         # a GPU

Every stream is read by a thread. The contenders take turns, round by round; each figure is the best round. Counted are
the tokens of all streams, from the first call to the last token, prompts included. Speech is drawn `framed`, and a
stream whose row ends early asks for another, so that all draw until each has its tokens. Then, for the first frame of a
row that joins: all streams but one speak, and that one comes.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import LAYERS, Size, in_turns, model_of, seconds, show
from orpheus.cli import run
from orpheus.config import DEFAULT_PROMPTS, Decoding, SamplingOptions
from orpheus.errors import UserError
from orpheus.format.tokens import FRAME_SLOTS

OWN, SHARED = "own thread each", "shared batch"


@dataclass(frozen=True)
class Options:
    """Measure many streams at once: in a shared batch, and each by itself."""

    size: Size = "tiny"
    """tiny: the embedded base. mid, orpheus-3b: random weights of the real width, 4 or 28 layers, bfloat16."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    streams: tuple[int, ...] = (1, 4, 16)
    """Streams at the same time; each number is measured by itself."""
    tokens: int = 70
    """Tokens of each stream in a round."""
    decoding: Decoding = "framed"
    """What is drawn from: all ids, or those alone that may stand there (`orpheus.config.Decoding`)."""
    rounds: int = 3
    """Turns of each contender, and rows that join."""
    save: bool = False
    """Write the figures to benchmarks/results/shared_SIZE.json as well."""

    def __post_init__(self) -> None:
        if self.tokens < FRAME_SLOTS or self.rounds < 1 or min(self.streams, default=0) < 1:
            raise UserError(f"tokens must be {FRAME_SLOTS} or more, streams and rounds 1 or more")


def speak(engine: Any, prompt: list[int], sampling: SamplingOptions, tokens: int, seed: int) -> None:
    """Read one stream after another until there are so many tokens."""
    while tokens > 0:
        with closing(engine.stream([prompt], sampling, [seed])) as stream:
            for _ in stream:
                tokens -= 1
                if not tokens:
                    return
        seed += 1000


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """`work(0)`, `work(1)`, ... at once, until all are done."""
    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def first_frame_s(engine: Any, prompt: list[int], sampling: SamplingOptions, others: int) -> float:
    """Seconds from the call to the last id of the first frame of a row that comes while `others` speak."""
    stop = threading.Event()
    speaking = [threading.Event() for _ in range(others)]

    def talk(index: int) -> None:
        seed = index
        while not stop.is_set():
            with closing(engine.stream([prompt], sampling, [seed])) as stream:
                for _ in stream:
                    speaking[index].set()
                    if stop.is_set():
                        return
            seed += 1000

    def join(index: int) -> None:
        if index < others:
            talk(index)
            return
        for event in speaking:
            event.wait()
        try:
            started = time.perf_counter()
            with closing(engine.stream([prompt], sampling, [7])) as stream:
                for _ in range(FRAME_SLOTS):
                    next(stream)
                taken.append(time.perf_counter() - started)
        finally:
            stop.set()

    taken: list[float] = []
    in_threads(others + 1, join)
    return taken[0]


def main(options: Options) -> None:
    """Measure and show."""
    import torch

    from orpheus.engines.torch.engine import TorchEngine
    from orpheus.engines.torch.shared import share
    from orpheus.format.prompt import Renderer
    from orpheus.model.base import load_base, pick_device

    device = pick_device(options.device)
    dtype = torch.bfloat16 if options.size in LAYERS else None
    loaded = load_base(model_of(options.size, "base"), load_in_4bit=False, backend="transformers", device=device,
                       dtype=dtype)  # fmt: skip
    own = TorchEngine(loaded)
    prompt = Renderer(loaded.tokenizer, loaded.layout).prompt(DEFAULT_PROMPTS[1])
    sampling = SamplingOptions(max_new_tokens=options.tokens, decoding=options.decoding)
    rows: list[dict[str, Any]] = []
    gains = {}
    for count in options.streams:
        with closing(share(TorchEngine(loaded), count)) as shared:
            engines = {OWN: own, SHARED: shared}

            def contend(name: str, engines: Any = engines, count: int = count) -> None:
                in_threads(count, lambda seed: speak(engines[name], prompt, sampling, options.tokens, seed))

            spans = in_turns({name: partial(contend, name) for name in engines}, options.rounds, device)
            for name, span in spans.items():
                joins = [first_frame_s(engines[name], prompt, sampling, count - 1) for _ in range(options.rounds)]
                rows.append({
                    "streams": count, "contender": name, "tokens/s": round(count * options.tokens / span.wall_s, 1),
                    "tokens/processor s": round(count * options.tokens / span.cpu_s, 1),
                    "first frame of one that joins, s": round(sorted(joins)[len(joins) // 2], 3),
                })  # fmt: skip
            gains[str(count)] = round(seconds(spans[OWN], device) / seconds(spans[SHARED], device), 2)
    show("shared", options.size, {
        "speedup_vs_own_threads": gains, "decoding": options.decoding, "tokens": options.tokens,
        "device": str(loaded.device), "dtype": str(loaded.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(), "speed_by": "clock" if device != "cpu" else "processor seconds",
    }, rows, options.save)  # fmt: skip


if __name__ == "__main__":
    run(main, Options, __doc__)
