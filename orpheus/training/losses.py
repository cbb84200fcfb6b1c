"""The loss without the logits: cross entropy over all ids, some rows at a time, and only where something is learnt.

A model of speech has 156,940 ids, so the logits of one clip of 24 s are 1.3 GB in float32, their gradient as much.
PyTorch's `linear_cross_entropy` (2.13) takes the last hidden states instead, computes the logits of a few rows, their
loss and their gradient, and forgets them: what is kept has the size of the hidden states. Positions without a label
(prompts, padding) are taken out before. Unsloth has a loss of the same kind of its own.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from orpheus.format.prompt import IGNORE

ROWS = 256  # positions whose logits are held at once: 161 MB in float32


def lean_loss_available() -> bool:
    """Whether this PyTorch has what `use_lean_loss` needs."""
    import torch

    return hasattr(torch.nn.functional, "linear_cross_entropy")


def use_lean_loss(model: Any) -> None:
    """Let a causal model of transformers (or its peft model), called with labels, compute its loss that way.

    It then returns a dict: `loss`, as it was (the mean over the labels, or the sum by `num_items_in_batch`), and in
    evaluation mode `token_losses`, float32 [B, T] (0 at the first and at ignored ones), in place of logits. Called
    without labels, as in generation, nothing changes.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    if causal.get_output_embeddings().bias is not None:
        raise TypeError("the output head has a bias: Orpheus has none")
    usual = causal.forward

    def forward(self: Any, *arguments: Any, labels: Any = None, num_items_in_batch: Any = None, **inputs: Any) -> Any:
        if labels is None:
            return usual(*arguments, **inputs)
        hidden = self.model(*arguments, **inputs).last_hidden_state
        head = self.get_output_embeddings().weight
        return _loss(hidden, head, labels, num_items_in_batch, by_token=not self.training)

    causal.forward = MethodType(forward, causal)


def _loss(hidden: Any, head: Any, labels: Any, num_items: Any, by_token: bool) -> dict[str, Any]:
    """hidden [B, T, D], head [V, D], labels [B, T]; position t predicts the label at t + 1."""
    import torch
    from torch.nn import functional as F

    learnt = labels[:, 1:] != IGNORE
    # In the head's precision, as the head itself would compute.
    rows, targets = hidden[:, :-1][learnt].to(head.dtype), labels[:, 1:][learnt]
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=ROWS, chunking_method=None)

    def entropy(reduction: str) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # the types are chosen here
            return F.linear_cross_entropy(rows, head, targets, reduction=reduction, options=options)

    if not by_token:
        return {"loss": entropy("sum").float() / (len(targets) if num_items is None else num_items)}
    single = entropy("none").float()
    losses = torch.zeros(labels.shape, dtype=torch.float32, device=labels.device)
    losses[:, 1:][learnt] = single
    return {"loss": single.sum() / (len(targets) if num_items is None else num_items), "token_losses": losses}
