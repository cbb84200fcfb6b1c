"""Drafts for speculative decoding that are not in the engine, since they lose (LOG.md), and how often a guess is kept.

The rule itself and the 4-bit draft are in `orpheus/engines/torch/speculative.py`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from orpheus.engines.torch.speculative import common, speech_in
from orpheus.format.tokens import FRAME_SLOTS, TokenLayout


def overlap(p: Any, q: Any) -> Any:
    """How probable it is that an id drawn from q is kept: the sum of min(p, q). [n, V] twice -> [n]."""
    return torch.minimum(p, q).sum(-1)


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
