"""Generation with PyTorch: one forward pass per step for a batch of prompts, sampling over the full vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from orpheus.config import SamplingOptions
from orpheus.engines.base import check_length
from orpheus.model import LoadedModel

NUCLEUS_CANDIDATES = 1024  # a first guess at the nucleus; a full sort follows only if it holds less than top_p


class TorchEngine:
    """Runs a `LoadedModel`, with or without an adapter, on whatever device it is on."""

    name = "torch"

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.layout = loaded.layout
        loaded.model.eval()

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, seeds: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """Yield `(row, id)` as tokens are drawn. Raises UserError for a prompt that does not fit the context."""
        import torch
        from transformers import DynamicCache

        for prompt in prompts:
            check_length(prompt, sampling.max_new_tokens, self.loaded.context_length)
        model, device = self.loaded.model, self.loaded.device
        width = max(map(len, prompts))
        # Left padding: the last column is every row's last prompt token, so one column of logits serves all rows.
        ids = torch.tensor([[self.layout.pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        draws = torch.stack([_uniform(seed, sampling.max_new_tokens) for seed in seeds]).to(device)
        seen = SeenIds(prompts, self._vocabulary(), device)
        cache = DynamicCache(config=model.config)
        active = set(range(len(prompts)))

        for step in range(sampling.max_new_tokens):
            with torch.inference_mode():  # not around the yield: the caller's code must not run in it
                logits = model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
                token = sample(logits.float(), seen.mask, sampling, draws[:, step])
                seen.add(token)
                ids = token[:, None]
                mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
                positions = positions[:, -1:] + 1
            for row, token_id in enumerate(token.tolist()):
                if row in active:
                    if not self.layout.legal(token_id, step):
                        active.discard(row)
                    yield row, token_id
            if not active:
                return

    def _vocabulary(self) -> int:
        return int(self.loaded.model.get_input_embeddings().weight.shape[0])


def _uniform(seed: int, count: int) -> Any:
    """`count` numbers in [0, 1) that depend on the seed alone, not on the device or the rest of the batch. [count]"""
    import torch

    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class SeenIds:
    """Which ids each row has seen, prompt included: what the repetition penalty applies to."""

    def __init__(self, prompts: Sequence[Sequence[int]], vocabulary: int, device: Any) -> None:
        import torch

        self.mask = torch.zeros(len(prompts), vocabulary, dtype=torch.bool, device=device)
        for row, prompt in enumerate(prompts):
            self.mask[row, torch.tensor(list(prompt), device=device)] = True

    def add(self, token: Any) -> None:
        """Mark one new id per row. token: int64 [B]."""
        self.mask.scatter_(1, token[:, None], True)


def sample(logits: Any, seen: Any, sampling: SamplingOptions, draw: Any) -> Any:
    """Draw one id per row, as transformers does: repetition penalty, temperature, top-p, multinomial.

    Args:
        logits: float32 [B, V].
        seen: bool [B, V], ids the penalty applies to (CTRL, Keskar et al. 2019, section 4.1).
        draw: float64 [B], one uniform number per row; the id is found by inverting the cumulative distribution.
    Returns:
        int64 [B].
    """
    import torch

    if sampling.repetition_penalty != 1.0:
        p = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits < 0, logits * p, logits / p), logits)
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    size = probabilities.shape[-1]
    top, ids = probabilities.topk(min(NUCLEUS_CANDIDATES, size), dim=-1)
    if top.shape[-1] < size and bool((top.sum(-1) < sampling.top_p).any()):
        top, ids = probabilities.sort(dim=-1, descending=True)
    top = top.double()
    before = top.cumsum(-1) - top
    top = torch.where(before < sampling.top_p, top, 0.0)  # the smallest set that reaches top_p, its last id included
    cumulative = top.cumsum(-1)
    index = torch.searchsorted(cumulative, (draw * cumulative[:, -1])[:, None], right=True)
    last = (top > 0).sum(-1, keepdim=True) - 1
    return ids.gather(-1, torch.minimum(index, last))[:, 0]
