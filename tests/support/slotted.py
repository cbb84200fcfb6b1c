"""A random model made to speak: its output head favours each step's own slot, in every way of computing it."""

from __future__ import annotations

from contextlib import contextmanager

import torch


class SlottedHead(torch.nn.Module):
    """An output head whose scores favour the slot that is due, counted from the last `restart`."""

    def __init__(self, head, layout, end_after=None) -> None:
        super().__init__()
        self.head, self.layout, self.end_after, self.step = head, layout, end_after, 0

    def forward(self, hidden):
        logits = self.head(hidden)
        slot = self.layout.slot_range(self.step % 7)
        logits[..., slot.start : slot.stop] += 50
        if self.end_after is not None and self.step >= self.end_after:
            logits[..., self.layout.end_of_speech] += 200
        self.step += 1
        return logits


@contextmanager
def slotted(model, layout, end_after=None):
    """Within it, the model (with or without an adapter) draws legal ids for a while. Yields the head."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    plain = base.lm_head
    base.lm_head = SlottedHead(plain, layout, end_after)
    try:
        yield base.lm_head
    finally:
        base.lm_head = plain
