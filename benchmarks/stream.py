"""Streaming decoder time per frame, beside the overlapping windows of other implementations.

    python benchmarks/stream.py                         # the published codec's shape, random weights
    python benchmarks/stream.py --size tiny

Theirs: for each frame SNAC decodes the last four frames and keeps 2048 samples of the middle
(canopyai/Orpheus-TTS, `orpheus_tts_pypi/orpheus_tts/decoder.py`). Ours: `StreamingDecoder`, in which each convolution
keeps its last inputs. The contenders take turns; a speed-up is by processor seconds on a CPU, by the clock on a GPU.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.common import Size, in_turns, model_of, seconds, show
from benchmarks.smoke.data import random_codes
from orpheus.cli import run
from orpheus.codec.snac import SAMPLES_PER_FRAME, SnacCodec
from orpheus.errors import UserError
from orpheus.model.base import pick_device

WINDOW = 4  # frames that the others decode for each frame of output
FRAME_MS = 1000 * SAMPLES_PER_FRAME / 24000


@dataclass(frozen=True)
class Options:
    """Measure the streaming decoder: one frame a chunk, larger chunks, many streams; and overlapping windows."""

    size: Size = "mid"
    """tiny: the embedded codec. mid, orpheus-3b: the published codec's shape, random weights."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    frames: int = 24
    """Frames decoded in a round."""
    chunks: tuple[int, ...] = (1, 4, 16)
    """Frames pushed at a time."""
    streams: tuple[int, ...] = (1, 4, 16)
    """Streams that get a frame each, in one call and one by one."""
    rounds: int = 3
    """Turns of each contender; the best counts."""
    save: bool = False
    """Write the figures to benchmarks/results/stream_SIZE.json as well."""

    def __post_init__(self) -> None:
        if self.frames < 2 * WINDOW or self.rounds < 1 or min((*self.chunks, *self.streams), default=0) < 1:
            raise UserError(f"frames must be {2 * WINDOW} or more; rounds, chunks and streams 1 or more")


def main(options: Options) -> None:
    """Measure and show."""
    import torch

    codec = SnacCodec.load(model_of(options.size, "codec"), pick_device(options.device))
    codes = random_codes(options.frames, seed=0)

    def ours(chunk: int) -> list[np.ndarray]:
        stream = codec.streaming()
        edges = [*range(0, options.frames, chunk), options.frames]
        return [*(stream.push(codes.slice(a, b)) for a, b in pairwise(edges)), stream.finish()]

    def theirs() -> int:
        decoded = 0
        for end in range(1, options.frames + 1):  # the first windows are shorter, as theirs
            window = codes.slice(max(0, end - WINDOW), end)
            layers = [torch.from_numpy(layer)[None].to(codec.device) for layer in window]
            with torch.inference_mode():
                codec._model.decode(layers)[0, 0, SAMPLES_PER_FRAME : 2 * SAMPLES_PER_FRAME].cpu().numpy()
            decoded += window.frames
        return decoded

    def together(count: int, at_once: bool) -> None:
        streams = [codec.streaming(seed) for seed in range(count)]
        for frame in (codes.slice(i, i + 1) for i in range(max(WINDOW, options.frames // 2))):
            if at_once:
                codec.push_many(streams, [frame] * count)
            else:
                for stream in streams:
                    stream.push(frame)

    named = {f"{chunk} frames a chunk": (lambda chunk=chunk: ours(chunk)) for chunk in options.chunks}
    spans = in_turns({"overlapping windows": theirs, **named}, options.rounds, codec.device)
    rows: list[dict[str, Any]] = []

    def row(name: str, span: Any, frames: int, decoded: float) -> float:
        spent = 1000 * seconds(span, codec.device) / frames
        rows.append({"contender": name, "ms per frame": round(spent, 2), "by the clock": round(
            1000 * span.wall_s / frames, 2), "of real time": round(spent / FRAME_MS, 3),
            "frames decoded per frame": decoded})  # fmt: skip
        return spent

    baseline = row("overlapping windows", spans["overlapping windows"], options.frames,
                   round(theirs() / options.frames, 2))  # fmt: skip
    spent = {name: row(name, spans[name], options.frames, 1.0) for name in named}
    for count in options.streams:
        turns = {name: (lambda many=many, count=count: together(count, many))
                 for name, many in (("one by one", False), ("in one call", True))}  # fmt: skip
        frames = max(WINDOW, options.frames // 2) * count
        for name, span in in_turns(turns, options.rounds, codec.device).items():
            row(f"{count} streams, {name}", span, frames, 1.0)
    whole = codec.decode(codes)
    error = max(float(np.abs(np.concatenate(ours(chunk)) - whole).max()) for chunk in options.chunks)
    speedup = baseline / spent[f"{options.chunks[0]} frames a chunk"]
    show("stream", options.size, {
        "speedup_vs_overlap": round(speedup, 2), "greatest_error_vs_whole": error, "device": str(codec.device),
        "threads": torch.get_num_threads(), "frames": options.frames,
        "speed_by": "clock" if codec.device.type == "cuda" else "processor seconds",
    }, rows, options.save)  # fmt: skip


if __name__ == "__main__":
    run(main, Options, __doc__)
