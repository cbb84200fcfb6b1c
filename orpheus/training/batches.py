"""Examples to batches: the collator (padded or packed) and the order in which clips are visited."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from orpheus.config import HUB_BASE
from orpheus.errors import UserError
from orpheus.format.prompt import IGNORE

if TYPE_CHECKING:
    from datasets import Dataset

    from orpheus.model.base import LoadedModel


@dataclass(frozen=True)
class Collator:
    """Examples to a batch: padded rows with an attention mask, or one packed row.

    Packed, all clips of the batch stand in one row without any padding, positions start again at 0 with each
    clip, and no mask is given: transformers then lets each clip attend to itself alone.
    """

    pad: int
    packing: bool = False

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """-> input_ids, labels, and attention_mask [B, T] or position_ids [1, sum T]; all int64."""
        import torch

        if self.packing:
            # The first token of a clip is nobody's successor: without this the clip before would predict it.
            labels = [[IGNORE, *e["labels"][1:]] for e in examples]
            return {
                "input_ids": torch.tensor([[i for e in examples for i in e["input_ids"]]]),
                "labels": torch.tensor([[i for row in labels for i in row]]),
                "position_ids": torch.tensor([[i for e in examples for i in range(len(e["input_ids"]))]]),
            }
        width = max(len(e["input_ids"]) for e in examples)

        def padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
            return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])

        return {
            "input_ids": padded([e["input_ids"] for e in examples], self.pad),
            "labels": padded([e["labels"] for e in examples], IGNORE),
            "attention_mask": padded([[1] * len(e["input_ids"]) for e in examples], 0),
        }


class LengthGrouped:
    """A sampler that puts clips of like length together, in an order that depends on seed and epoch alone.

    So a resumed run sees the very batches that an uninterrupted one would have seen.
    """

    GROUP = 50  # batches that are sorted together: long enough to save padding, short enough to stay random

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        batches = []
        for start in range(0, len(order), self.GROUP * self.batch_size):
            group = order[start : start + self.GROUP * self.batch_size]
            group = group[np.argsort(-self.lengths[group], kind="stable")]
            batches += [group[i : i + self.batch_size] for i in range(0, len(group), self.batch_size)]
        full = [b for b in batches if len(b) == self.batch_size]
        rest = [b for b in batches if len(b) < self.batch_size]  # at most one; last, so that it does not shift the rest
        return (int(i) for b in [*(full[k] for k in rng.permutation(len(full))), *rest] for i in b)


def check_known(loaded: LoadedModel, train_set: Dataset) -> None:
    """UserError for ids whose embedding is all zero: the base never learnt them, and LoRA can't teach them."""
    import torch

    rows = loaded.model.get_input_embeddings().weight
    used = torch.tensor(sorted({i for ids in train_set["input_ids"] for i in ids}), device=rows.device)
    unknown = used[rows.detach()[used].abs().amax(dim=1) == 0].tolist()
    if unknown:
        names = ", ".join(map(str, loaded.tokenizer.convert_ids_to_tokens(unknown[:3])))
        raise UserError(
            f"the base model '{loaded.base}' does not know {len(unknown)} of the tokens to be trained on ({names}"
            f"{', …' if len(unknown) > 3 else ''}): their embeddings are all zero. Use a base that speaks SNAC codes, "
            f"such as {HUB_BASE}"
        )
