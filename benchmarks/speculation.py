"""Speculative decoding: a cheap draft guesses some ids, the model judges them in one pass, and nobody can tell.

An id x that the draft drew from q is kept with probability min(1, p(x) / q(x)), where p is the model's distribution; at
the first that is not kept, one is drawn from max(p - q, 0). What comes out is distributed as p, whatever q is
(Leviathan et al. 2023, arXiv 2211.17192, appendix A.1). So a draft decides how fast it is, never what is said. Ids are
kept with probability `overlap(p, q)`.

It is no part of the engine (yet): `benchmarks/speculative.py` measures where it would pay, LOG.md has the figures.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from orpheus.config import SamplingOptions
from orpheus.engines.cpu import quick_products
from orpheus.engines.llama import LlamaDecoder
from orpheus.engines.sampling import CANDIDATES, nucleus, scale
from orpheus.model import LoadedModel
from orpheus.tokens import FRAME_SLOTS, TokenLayout


def distribution(scores: Any, seen: Any, sampling: SamplingOptions) -> Any:
    """What strict decoding draws from: penalty, temperature (above 0), nucleus. Float64 [n, V], each row sums to 1.

    scores: float32 [n, V], changed. seen: bool [n, V], the ids that the penalty applies to.
    """
    penalty = sampling.repetition_penalty
    scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    probabilities = scale(scores, sampling)
    top, ids, enough = nucleus(probabilities, sampling.top_p, min(CANDIDATES[-1], scores.shape[-1]))
    if not bool(enough.all()):
        top, ids, _ = nucleus(probabilities, sampling.top_p, None)
    return torch.zeros(scores.shape, dtype=torch.float64).scatter_(1, ids, top / top.sum(-1, keepdim=True))


def overlap(p: Any, q: Any) -> Any:
    """How probable it is that an id drawn from q is kept: the sum of min(p, q). [n, V] twice -> [n]."""
    return torch.minimum(p, q).sum(-1)


def pick(weights: Any, uniform: float) -> int:
    """An index drawn in proportion to weights float64 [V], by inversion of a uniform number in [0, 1)."""
    cumulative = weights.cumsum(0)
    index = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
    return min(index, int(weights.nonzero()[-1]))  # rounding may lead past the end


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


class Cached(LlamaDecoder):
    """The engine's forward pass for one row, fed some ids at a time; what it knows already is not fed again."""

    def __init__(self, loaded: LoadedModel, room: int, layers: int | None = None, framed: bool = False) -> None:
        """room: most ids of the row. layers: run the first ones only, and then the norm and the head. framed: the ids
        that may not stand there have no score, and the head's rows for them are not read: enough for a guess."""
        super().__init__(loaded.model, 1, room)
        self.layers, self.cache = self.layers[:layers], self.cache[:layers]
        self.device, self.dtype = loaded.device, loaded.dtype
        self.layout = loaded.layout if framed else None
        self.fed: list[int] = []

    def scores(self, ids: Sequence[int], count: int) -> Any:
        """The scores of what follows each of the last `count` ids, float32 [count, V]."""
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
        assert self.layout is not None
        ranges = self.layout.continuations(place % FRAME_SLOTS)
        every = torch.full((1, len(self.head.weight)), -torch.inf)
        parts = self.logits(hidden, ranges).split([len(ids) for ids in ranges], dim=1)
        for ids, part in zip(ranges, parts, strict=True):
            every[:, ids.start : ids.stop] = part
        return every

    def _extend(self, ids: Any, first: int) -> Any:
        """Feed ids int64 [n] to the columns from `first` on; -> hidden states [n, H]."""
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


class Source(Protocol):
    """Where a draft takes its scores from. A `Cached` model is one."""

    def scores(self, ids: Sequence[int], count: int) -> Any: ...


class Grams:
    """Counts of what followed the last ids in the same slot: in the row's own speech, or in a corpus."""

    def __init__(
        self, layout: TokenLayout, vocabulary: int, orders: Sequence[int], corpus: Sequence[list[int]] = ()
    ) -> None:
        """orders: how many ids back it looks; all of these count alike. corpus: ids of speech; none: the row's own."""
        self.layout, self.vocabulary, self.orders = layout, vocabulary, orders
        self.table: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        self.follows = not corpus  # whether the table is that of the row's own speech
        self.known: list[int] = []
        for speech in corpus:
            for place in range(len(speech)):
                self._count(speech, place, 1)

    def scores(self, ids: Sequence[int], count: int) -> Any:
        """The logarithm of how often each id came, float32 [count, V]; in a slot without any all its ids are alike."""
        speech = speech_in(ids, self.layout)
        return torch.stack([self._after(speech[: len(speech) - back]) for back in range(count - 1, -1, -1)])

    def _after(self, speech: list[int]) -> Any:
        if self.follows:
            same = common(self.known, speech)
            for place in range(same, len(self.known)):
                self._count(self.known, place, -1)
            for place in range(same, len(speech)):
                self._count(speech, place, 1)
            self.known = speech
        weights = torch.zeros(self.vocabulary)
        for order in self.orders:
            counts = +self.table.get(self._key(speech, len(speech), order), Counter())
            if counts:
                share = torch.tensor(list(counts.values()), dtype=torch.float32)
                weights[list(counts)] += share / share.sum()
        if not weights.any():
            slot = self.layout.slot_range(len(speech) % FRAME_SLOTS)
            weights[slot.start : slot.stop] = 1.0
        return weights.log()

    def _count(self, speech: list[int], place: int, number: int) -> None:
        for order in self.orders:
            if order <= place:
                self.table[self._key(speech, place, order)][speech[place]] += number

    def _key(self, speech: list[int], place: int, order: int) -> tuple[int, ...]:
        """The slot of a place in the speech, and the `order` ids before it."""
        return (place % FRAME_SLOTS, *speech[max(0, place - order) : place])


def speech_in(ids: Sequence[int], layout: TokenLayout) -> list[int]:
    """What follows start_of_speech."""
    ids = list(ids)
    return ids[len(ids) - ids[::-1].index(layout.start_of_speech) :]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences have in common at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def marks(ids: Sequence[int], vocabulary: int, count: int) -> Any:
    """Which ids were seen when each of the last `count` ids had been, bool [count, V]."""
    seen = torch.zeros(count, vocabulary, dtype=torch.bool)
    seen[:, list(ids[: len(ids) - count + 1])] = True
    for row in range(1, count):
        seen[row:, ids[len(ids) - count + row]] = True
    return seen


def speculate(
    model: Source,
    draft: Source,
    vocabulary: int,
    prompt: Sequence[int],
    sampling: SamplingOptions,
    block: int,
    seed: int,
    rule: Callable[[Any, Any, Sequence[int], Sequence[float]], list[int]] = judge,
) -> Iterator[list[int]]:
    """Continue the prompt without end; yields the ids that each pass of the model brought, 1 to `block` + 1 of them."""
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
        fresh = rule(p, torch.stack(guesses), guessed[len(ids) :], uniforms[block:])
        ids += fresh
        yield fresh
