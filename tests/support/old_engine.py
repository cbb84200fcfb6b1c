"""The plain way to generate, kept to compare with: transformers' forward pass, and sampling in whole rows.

Simple on purpose: every score of the vocabulary is penalised, softmaxed, sorted.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache


def sample(logits, seen, options, draw):
    """logits float32 [B, V], seen bool [B, V], draw float64 [B] -> int64 [B]."""
    p = options.repetition_penalty
    logits = torch.where(seen, torch.where(logits < 0, logits * p, logits / p), logits)
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    top, ids = torch.softmax(logits / options.temperature, dim=-1).sort(dim=-1, descending=True)
    top = top.double()
    top = torch.where(top.cumsum(-1) - top < options.top_p, top, 0.0)
    cumulative = top.cumsum(-1)
    index = torch.searchsorted(cumulative, (draw * cumulative[:, -1])[:, None], right=True)
    last = (top > 0).sum(-1, keepdim=True) - 1
    return ids.gather(-1, torch.minimum(index, last))[:, 0]


@torch.inference_mode()
def generate(model, layout, prompts, options, seeds):
    """The ids of each row, up to and with the first that may not stand there. `framed`: other ids get no chance."""
    width, rows = max(map(len, prompts)), len(prompts)
    ids = torch.tensor([[layout.pad] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    count = options.max_new_tokens
    draws = torch.stack(
        [torch.rand(count, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    )
    seen = torch.zeros(rows, model.get_input_embeddings().weight.shape[0], dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen[row, list(prompt)] = True
    cache, spoken, active = DynamicCache(config=model.config), [[] for _ in prompts], set(range(rows))
    for step in range(count):
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                       use_cache=True, logits_to_keep=1).logits[:, -1].float()  # fmt: skip
        if options.decoding == "framed":
            legal = torch.zeros_like(seen[0])
            for ids_of_slot in layout.continuations(step % 7):
                legal[ids_of_slot.start : ids_of_slot.stop] = True
            logits = torch.where(legal, logits, -torch.inf)
        token = sample(logits, seen, options, draws[:, step])
        seen.scatter_(1, token[:, None], True)
        ids, mask = token[:, None], torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
        positions = positions[:, -1:] + 1
        for row in sorted(active):
            spoken[row].append(int(token[row]))
            if not layout.legal(spoken[row][-1], step):
                active.discard(row)
        if not active:
            break
    return spoken
