"""Generation with PyTorch: prompts in, ids out, one by one on a CPU and a frame at a time on a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count
from typing import Any

from orpheus.config import SamplingOptions
from orpheus.engines.base import check_lengths
from orpheus.engines.batch import Batch
from orpheus.engines.torch.cpu import FEW_ROWS, quick_products
from orpheus.engines.torch.frames import BOUND_STEP, CudaGraphs, Frames
from orpheus.engines.torch.llama import LlamaDecoder, why_not_llama
from orpheus.engines.torch.transformers import TransformersDecoder
from orpheus.format.tokens import FRAME_SLOTS
from orpheus.model.base import LoadedModel
from orpheus.threads import NARROW, threads

log = logging.getLogger(__name__)


class TorchEngine:
    """Runs a `LoadedModel`, with or without an adapter, on whatever device it is on.

    On a GPU the memory and the CUDA graphs of the last batch are kept for the next one of the same shape.
    """

    name = "torch"

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.layout = loaded.layout
        self.narrow = loaded.device.type == "cpu" and loaded.model.get_input_embeddings().weight.shape[1] <= NARROW
        loaded.model.eval()
        reason = why_not_llama(loaded.model)
        if reason:
            log.info("speaking with transformers' forward pass, which is slower: %s", reason)
        self.decoder: type[LlamaDecoder] | type[TransformersDecoder] = TransformersDecoder if reason else LlamaDecoder
        self.by_frame = loaded.device.type == "cuda" and not reason
        self.record: Callable[[], Any] = CudaGraphs  # makes what records the frames of a batch
        self._idle: dict[Any, Frames] = {}

    @property
    def context_length(self) -> int:
        """Most tokens, prompt and speech together."""
        return self.loaded.context_length

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, seeds: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """Yield `(row, id)` as tokens are drawn. Raises UserError for a prompt that does not fit the context."""
        check_lengths(prompts, sampling.max_new_tokens, self.loaded.context_length)
        steps = (self._by_frame if self.by_frame else self._by_token)(prompts, sampling, seeds)
        active = set(range(len(prompts)))
        with closing(steps):
            for step, tokens in zip(range(sampling.max_new_tokens), steps, strict=False):
                for row, token_id in enumerate(tokens):
                    if row in active:
                        if not self.layout.legal(token_id, step):
                            active.discard(row)
                        yield row, token_id
                if not active:
                    return

    def close(self) -> None:
        """Free the memory of the last batch, on a GPU. The model is its owner's."""
        self._idle = {}

    def _by_token(
        self, prompts: Any, sampling: SamplingOptions, seeds: Sequence[int]
    ) -> Generator[list[int], None, None]:
        """One id of every row at a time, without end."""
        column = max(map(len, prompts))
        with self.computing(len(prompts), prompts=True):
            batch = self.batch(len(prompts), column + sampling.max_new_tokens, sampling)
            batch.begin(prompts, seeds, column + sampling.max_new_tokens)
        for step in count():
            with self.computing(len(prompts)):
                if step:
                    column += 1
                    batch.advance(column)
                tokens = batch.draw(step % FRAME_SLOTS).tolist()
            yield tokens

    def _by_frame(
        self, prompts: Any, sampling: SamplingOptions, seeds: Sequence[int]
    ) -> Generator[list[int], None, None]:
        """The same, computed a frame at a time: the host waits once for every id of it."""
        column = max(map(len, prompts))
        frame_columns = -(-sampling.max_new_tokens // FRAME_SLOTS) * FRAME_SLOTS  # the last frame is always whole
        room = -(-(column + frame_columns) // BOUND_STEP) * BOUND_STEP
        key = (len(prompts), room, sampling.temperature, sampling.top_p, sampling.repetition_penalty, sampling.decoding)
        # Taken out while it is in use: another stream may begin before this one ends.
        frames = self._idle.pop(key, None)
        self._idle.clear()
        with self.computing(len(prompts)):
            if frames is None:
                frames = Frames(self.batch(len(prompts), room, sampling), room, self.record())
            frames.batch.begin(prompts, seeds, room)
        try:
            while True:
                with self.computing(len(prompts)):
                    drawn = frames.run(column)
                column += FRAME_SLOTS
                yield from (list(tokens) for tokens in zip(*drawn, strict=True))
        finally:
            self._idle = {key: frames}

    def batch(self, rows: int, room: int, sampling: SamplingOptions, kind: type[Batch] = Batch) -> Any:
        """A batch of this model, not begun yet. room: most tokens of a row, prompt included."""
        model = self.loaded.model
        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        return kind(self.decoder(model, rows, room), self.layout, sampling, vocabulary, self.loaded.device)

    @contextmanager
    def computing(self, rows: int, prompts: bool = False) -> Iterator[None]:
        """Inference mode. Never around a yield: the caller's code must not run in it."""
        import torch

        device, dtype = self.loaded.device, self.loaded.dtype
        with (
            torch.inference_mode(),
            quick_products(device, dtype, 2 if prompts else rows),
            threads(1 if self.narrow and rows <= FEW_ROWS else None),
        ):
            yield
