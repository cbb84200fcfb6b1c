"""Speculative decoding: a 4-bit copy guesses some ids, the model judges them in one pass, and nobody can tell.

An id x that the copy drew from q is kept with probability min(1, p(x) / q(x)), where p is the model's distribution; at
the first that is not kept, one is drawn from max(p - q, 0). What comes out is distributed as p, whatever q is
(Leviathan et al. 2023, arXiv 2211.17192, appendix A.1). So a draft decides how fast it is, never what is said.
`benchmarks/speculative.py` measures where it pays; LOG.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from orpheus.config import SamplingOptions
from orpheus.engines.base import check_lengths
from orpheus.engines.sampling import CANDIDATES, nucleus, scale
from orpheus.engines.torch.cpu import quick_products
from orpheus.engines.torch.engine import TorchEngine
from orpheus.engines.torch.llama import LlamaDecoder, why_not_llama
from orpheus.errors import UserError
from orpheus.format.tokens import FRAME_SLOTS, TokenLayout
from orpheus.model.base import LoadedModel

BLOCK = 4
"""How many ids are guessed at a time: the best of 1 to 6, measured (benchmarks/results/speculative_mid.json)."""


class SpeculativeEngine:
    """A `TorchEngine` that speaks single prompts faster on a CPU, by a cheaper model's guesses.

    The ids are distributed as the engine's own, but for one seed they are others. Several prompts at once, and framed
    decoding, are left to the engine itself: there the guesses cost more than they save.
    """

    name = "torch"

    def __init__(self, engine: TorchEngine, draft: LoadedModel, block: int = BLOCK) -> None:
        """draft: a model with the same ids, as `four_bit_copy` makes it. UserError: no Llama's forward pass."""
        if reason := why_not_llama(engine.loaded.model):
            raise UserError(f"a draft needs the project's own forward pass, but {reason}: use --draft none")
        self.engine, self.draft, self.block = engine, draft, block
        self.layout = engine.layout

    @property
    def context_length(self) -> int:
        """Most tokens, prompt and speech together."""
        return self.engine.context_length

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, seeds: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """Yield `(row, id)` as tokens are drawn. Raises UserError for a prompt that does not fit the context."""
        if len(prompts) > 1 or sampling.decoding != "strict":
            yield from self.engine.stream(prompts, sampling, seeds)
            return
        loaded, (prompt,) = self.engine.loaded, prompts
        check_lengths(prompts, sampling.max_new_tokens, loaded.context_length)
        room = len(prompt) + sampling.max_new_tokens + self.block + 1
        model, draft = Cached(loaded, room), Cached(self.draft, room, framed=True)
        place = 0
        for fresh in speculate(model, draft, model.vocabulary, prompt, sampling, self.block, seeds[0]):
            for token_id in fresh:
                yield 0, token_id
                place += 1
                if place == sampling.max_new_tokens or not self.layout.legal(token_id, place - 1):
                    return

    def close(self) -> None:
        """As the engine's."""
        self.engine.close()


class Source(Protocol):
    """Where guesses, or judgements, take their scores from."""

    def scores(self, ids: Sequence[int], count: int) -> Any:
        """The scores of what follows each of the last `count` ids, float32 [count, V], which the caller may change."""
        ...


class Cached(LlamaDecoder):
    """The engine's forward pass for one row, fed some ids at a time; what it knows already is not fed again."""

    def __init__(self, loaded: LoadedModel, room: int, layers: int | None = None, framed: bool = False) -> None:
        """room: most ids of the row. layers: run the first ones only, and then the norm and the head. framed: the ids
        that may not stand there have no score, and the head's rows for them are not read: enough for a guess."""
        super().__init__(loaded.model, 1, room)
        self.layers, self.cache = self.layers[:layers], self.cache[:layers]
        self.device, self.dtype = loaded.device, loaded.dtype
        self.layout = loaded.layout if framed else None
        self.vocabulary = int(self.embed.weight.shape[0])
        self.fed: list[int] = []

    def scores(self, ids: Sequence[int], count: int) -> Any:
        """The scores of what follows each of the last `count` ids, float32 [count, V]."""
        import torch

        known = min(common(self.fed, ids), len(ids) - count)
        fresh = torch.tensor(ids[known:], device=self.device)
        with torch.inference_mode(), quick_products(self.device, self.dtype, len(fresh)):
            if len(fresh) == 1:
                hidden = self.advance(fresh, torch.tensor([known], device=self.device), known + 1)
            else:
                hidden = self._extend(fresh, known)
            self.fed = list(ids)
            if self.layout is None:
                return self.logits(hidden[-count:], None)
            first = len(speech_in(ids, self.layout)) - count + 1
            return torch.cat([self._legal(hidden[row - count, None], first + row) for row in range(count)])

    def _legal(self, hidden: Any, place: int) -> Any:
        """The scores at a place of the speech, -inf where an id may not stand. [1, H] -> float32 [1, V]"""
        import torch

        assert self.layout is not None
        ranges = self.layout.continuations(place % FRAME_SLOTS)
        every = torch.full((1, self.vocabulary), -torch.inf)
        parts = self.logits(hidden, ranges).split([len(ids) for ids in ranges], dim=1)
        for ids, part in zip(ranges, parts, strict=True):
            every[:, ids.start : ids.stop] = part
        return every

    def _extend(self, ids: Any, first: int) -> Any:
        """Feed ids int64 [n] to the columns from `first` on; -> hidden states [n, H]."""
        import torch

        end = first + len(ids)
        columns = self.columns[first:end]
        mask = self.columns[:end] <= columns[:, None]

        def attend(q: Any, k: Any, v: Any, keys: Any, values: Any) -> Any:
            keys[:, :, first:end], values[:, :, first:end] = k, v
            return torch.nn.functional.scaled_dot_product_attention(
                q, keys[:, :, :end], values[:, :, :end], attn_mask=mask, enable_gqa=True
            )

        x = self.embed(ids[None])
        for layer, cache in zip(self.layers, self.cache, strict=True):
            x = self._layer(layer, x, (self.cos[columns], self.sin[columns]), cache, attend)
        return self.norm(x)[0]


def speculate(
    model: Source,
    draft: Source,
    vocabulary: int,
    prompt: Sequence[int],
    sampling: SamplingOptions,
    block: int,
    seed: int,
    rule: Callable[[Any, Any, Sequence[int], Sequence[float]], list[int]] | None = None,
) -> Iterator[list[int]]:
    """Continue the prompt without end; yields the ids that each pass of the model brought, 1 to `block` + 1 of them.

    rule: what to keep; None: `judge`.
    """
    import torch

    random = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    while True:
        uniforms = torch.rand(2 * block + 1, generator=random, dtype=torch.float64).tolist()
        guesses: list[Any] = []
        guessed = list(ids)
        for uniform in uniforms[:block]:
            guesses.append(distribution(draft.scores(guessed, 1), marks(guessed, vocabulary, 1), sampling)[0])
            guessed.append(pick(guesses[-1], uniform))
        p = distribution(model.scores(guessed, block + 1), marks(guessed, vocabulary, block + 1), sampling)
        fresh = (rule or judge)(p, torch.stack(guesses), guessed[len(ids) :], uniforms[block:])
        ids += fresh
        yield fresh


def judge(p: Any, q: Any, drafted: Sequence[int], uniforms: Sequence[float]) -> list[int]:
    """The ids that are kept, and one more of the model's own.

    Args:
        p: float64 [k + 1, V], the model's distributions of the drafted ids and of the one after them.
        q: float64 [k, V], those that the ids were drawn from.
        uniforms: k + 1 numbers in [0, 1): one for each id, and one for the draw at the end.
    """
    for place, (token, uniform) in enumerate(zip(drafted, uniforms[:-1], strict=True)):
        if uniform * q[place, token] >= p[place, token]:
            return [*drafted[:place], pick((p[place] - q[place]).clamp(min=0), uniforms[-1])]
    return [*drafted, pick(p[-1], uniforms[-1])]


def distribution(scores: Any, seen: Any, sampling: SamplingOptions) -> Any:
    """What strict decoding draws from: penalty, temperature, nucleus. Float64 [n, V], each row sums to 1.

    scores: float32 [n, V], changed. seen: bool [n, V], the ids that the penalty applies to. At temperature 0 all is
    on the best id.
    """
    import torch

    penalty = sampling.repetition_penalty
    scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    empty = torch.zeros(scores.shape, dtype=torch.float64)
    if sampling.temperature == 0:
        return empty.scatter_(1, scores.argmax(-1, keepdim=True), 1.0)
    probabilities = scale(scores, sampling)
    top, ids, enough = nucleus(probabilities, sampling.top_p, min(CANDIDATES[-1], scores.shape[-1]))
    if not bool(enough.all()):
        top, ids, _ = nucleus(probabilities, sampling.top_p, None)
    return empty.scatter_(1, ids, top / top.sum(-1, keepdim=True))


def pick(weights: Any, uniform: float) -> int:
    """An index drawn in proportion to weights float64 [V], by inversion of a uniform number in [0, 1)."""
    import torch

    cumulative = weights.cumsum(0)
    index = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
    return min(index, int(weights.nonzero()[-1]))  # rounding may lead past the end


def marks(ids: Sequence[int], vocabulary: int, count: int) -> Any:
    """Which ids were seen when each of the last `count` ids had been, bool [count, V]."""
    import torch

    seen = torch.zeros(count, vocabulary, dtype=torch.bool)
    seen[:, list(ids[: len(ids) - count + 1])] = True
    for row in range(1, count):
        seen[row:, ids[len(ids) - count + row]] = True
    return seen


def speech_in(ids: Sequence[int], layout: TokenLayout) -> list[int]:
    """What follows start_of_speech."""
    ids = list(ids)
    return ids[len(ids) - ids[::-1].index(layout.start_of_speech) :]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences have in common at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
