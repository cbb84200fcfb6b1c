"""A frame of tokens per round trip to the device, recorded once as a CUDA graph where that works."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from orpheus.engines.batch import Batch
from orpheus.format.tokens import FRAME_SLOTS

log = logging.getLogger(__name__)

BOUND_STEP = 256
"""Columns of the cache that a graph looks at, in steps: few graphs, and little attention to columns not yet filled."""

Replay = Callable[[], None]


class Frames:
    """Runs a batch frame by frame. Made once for a batch, and used again when the batch begins anew."""

    def __init__(self, batch: Batch, room: int, record: Callable[[Replay], Replay] | None) -> None:
        """room: as the batch's. record: makes a replay of a function, like `CudaGraphs`; None runs it as it is."""
        self.batch, self.room, self.record = batch, room, record
        self.count = batch.count
        self.replays: dict[tuple[int, int | None], Replay] = {}

    def run(self, column: int) -> list[list[int]]:
        """The next frame of ids of every row; `column` tokens are in the sequence before it. One wait for the device.

        Where a short list of candidates proves too short, the frame is drawn again from all of them: the same uniform
        numbers, the same ids as if that had been done at once.
        """
        bound = min(self.room, -(-(column + FRAME_SLOTS) // BOUND_STEP) * BOUND_STEP)
        before = self.batch.snapshot() if self.count is not None else None
        self._replay(bound)
        drawn = self.batch.state["frame"].tolist()
        if before is not None and any(row[FRAME_SLOTS] for row in drawn):
            self.count = None  # and for the rest of the batch: its distribution is flat
            self.batch.restore(before)
            self._replay(bound)
            drawn = self.batch.state["frame"].tolist()
        return [row[:FRAME_SLOTS] for row in drawn]

    def _replay(self, bound: int) -> None:
        key = (bound, self.count)

        def frame() -> None:
            self.batch.frame(*key)

        if self.record is None:
            frame()
            return
        if key not in self.replays:
            before = self.batch.snapshot()  # recording runs the frame
            try:
                self.replays[key] = self.record(frame)
            except RuntimeError as error:
                log.warning("no CUDA graph, so speaking is slower: %s", str(error).splitlines()[0])
                self.record = None
            self.batch.restore(before)
        self.replays.get(key, frame)()


class CudaGraphs:
    """Records functions as CUDA graphs. All of them share their scratch memory: only one runs at a time."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, run: Replay) -> Replay:
        """Record what `run` gives the GPU to do; the result does it again, with hardly any work for the CPU.

        Runs it once first, so that libraries set up what they can't while recording. RuntimeError: it can't be done.
        """
        import torch

        self.pool = self.pool or torch.cuda.graph_pool_handle()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            run()
        torch.cuda.current_stream().wait_stream(aside)
        graph: Any = torch.cuda.CUDAGraph()
        # Another thread, which decodes audio, may well ask for memory meanwhile: that is no part of this.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            run()
        return graph.replay
