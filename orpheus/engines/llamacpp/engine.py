"""Generation with llama.cpp: prompts in, ids out, one prompt after another. Drawn as the engine for PyTorch draws.

The scores of the whole vocabulary come from llama.cpp; penalty, temperature, nucleus and the draws are this project's
own (`sampling.py`). So where the scores agree, the same seed gives the same ids, whatever engine computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from orpheus.config import SamplingOptions
from orpheus.engines.base import check_lengths
from orpheus.engines.batch import Batch, take
from orpheus.engines.llamacpp.model import LlamaCppContext, LlamaCppModel
from orpheus.format.tokens import FRAME_SLOTS


class LlamaCppEngine:
    """Runs a `LlamaCppModel`. The cache is kept from one prompt to the next, whose common beginning is not run again.

    It is only as large as the longest utterance so far could be: the published model's full context would take 15 GB.
    `stream` may be called from several threads: each stream has a context of its own, and one stays for the next.
    """

    name = "llamacpp"

    def __init__(self, model: LlamaCppModel, *, exact: bool = False) -> None:
        """exact: keep the cache in 32 bit, for comparisons."""
        self.model, self.exact = model, exact
        self.layout = model.layout
        self._idle: list[LlamaCppContext] = []  # at most one

    @property
    def context_length(self) -> int:
        """Most tokens, prompt and speech together."""
        return self.model.context_length

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, seeds: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """Yield `(row, id)` as tokens are drawn, row after row. UserError for a prompt that is too long."""
        check_lengths(prompts, sampling.max_new_tokens, self.model.context_length)
        context = self._context(max(map(len, prompts)) + sampling.max_new_tokens)
        try:
            for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
                yield from ((row, token_id) for token_id in self._row(context, prompt, sampling, seed))
        finally:
            self._idle = [context]

    def close(self) -> None:
        """Free the idle context. The model is freed with the last that has it."""
        self._idle = []

    def _context(self, length: int) -> LlamaCppContext:
        """The idle context, if it is long enough. It is taken out: another stream may begin before this one ends."""
        try:
            context = self._idle.pop()  # in one piece: two threads can't both have it
        except IndexError:
            pass
        else:
            if context.length >= length:
                return context
            del context
        return LlamaCppContext(self.model, length, exact=self.exact)

    def _row(
        self, context: LlamaCppContext, prompt: Sequence[int], sampling: SamplingOptions, seed: int
    ) -> Iterator[int]:
        """The ids that follow one prompt, the one that ends it included."""
        batch = Batch(Decoder(context), self.layout, sampling, len(self.model.tokenizer.tokens), "cpu")
        batch.begin([prompt], [seed], len(prompt) + sampling.max_new_tokens)
        for step in range(sampling.max_new_tokens):
            if step:
                batch.advance(len(prompt) + step)
            token_id = int(batch.draw(step % FRAME_SLOTS)[0])
            yield token_id
            if not self.layout.legal(token_id, step):
                return


class Decoder:
    """A context in the shape that `Batch` steps, for a batch of one. A 'hidden state' is its scores, [1, V]."""

    name = "llamacpp"

    def __init__(self, context: LlamaCppContext) -> None:
        self.context = context

    def prefill(self, ids: Any, padding: Any) -> Any:
        """Start anew with one prompt, int64 [1, P]. Returns the scores after it, float32 [1, V]."""
        prompt = ids[0].tolist()
        return self._feed(prompt[self.context.keep(prompt) :])

    def advance(self, token: Any, column: Any, bound: int) -> Any:
        """Feed one token, int64 [1]. Returns the scores after it, float32 [1, V]."""
        return self._feed(token.tolist())

    def _feed(self, ids: list[int]) -> Any:
        import torch

        return torch.from_numpy(self.context.feed(ids))[None]

    def logits(self, hidden: Any, rows: Sequence[range] | None) -> Any:
        """Scores of the ids in `rows`, or of all, float32 [1, n], which the caller may change."""
        return hidden.clone() if rows is None else take(hidden, rows)
