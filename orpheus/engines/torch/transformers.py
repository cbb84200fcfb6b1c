"""The slower way for models that are no plain Llama: transformers' own forward pass with its growing cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orpheus.engines.batch import take


class TransformersDecoder:
    """The same interface as `LlamaDecoder`, for any causal language model. A 'hidden state' is its logits, [B, V]."""

    name = "transformers"

    def __init__(self, model: Any, rows: int, room: int) -> None:
        """Takes what `LlamaDecoder` takes; nothing is set aside, since this cache grows."""
        self.model = model

    def prefill(self, ids: Any, padding: Any) -> Any:
        """Start anew with prompts int64 [B, P], left-padded by int64 [B]. Returns the logits after them, [B, V]."""
        import torch
        from transformers import DynamicCache

        self.mask = (torch.arange(ids.shape[1], device=ids.device) >= padding[:, None]).long()
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        self.cache = DynamicCache(config=self.model.config)
        return self._forward(ids)

    def advance(self, token: Any, column: Any, bound: int) -> Any:
        """Feed one token per row, int64 [B]. Returns the logits after it, [B, V]."""
        import torch

        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1
        return self._forward(token[:, None])

    def _forward(self, ids: Any) -> Any:
        return self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def logits(self, hidden: Any, rows: Sequence[range] | None) -> Any:
        """As `LlamaDecoder.logits`; the whole vocabulary was computed already, so `rows` only selects."""
        return (hidden if rows is None else take(hidden, rows)).float()
