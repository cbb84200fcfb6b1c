"""Utterances under way as one batch: draw an id, feed it, again; token by token, or a frame of tokens at a time.

All that changes from step to step is in tensors that stay where they are on the device, and no step reads one back.
So a whole frame can be recorded once as a CUDA graph and replayed (`frames.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orpheus.config import SamplingOptions
from orpheus.engines.sampling import CANDIDATES, SeenIds, draw_index, sample, scale, uniforms
from orpheus.format.tokens import FRAME_SLOTS, TokenLayout


class Batch:
    """Some rows, their decoder, and the state of their sampling."""

    def __init__(
        self, decoder: Any, layout: TokenLayout, sampling: SamplingOptions, vocabulary: int, device: Any
    ) -> None:
        """decoder: a `LlamaDecoder` or a `TransformersDecoder`. vocabulary: how many ids the model has."""
        import torch

        self.decoder, self.sampling, self.vocabulary, self.device = decoder, sampling, vocabulary, device
        framed = sampling.decoding == "framed"
        self.legal = [layout.continuations(slot) if framed else None for slot in range(FRAME_SLOTS)]
        self.ids_of = [
            None if ranges is None else torch.cat([torch.arange(r.start, r.stop, device=device) for r in ranges])
            for ranges in self.legal
        ]
        self.pad = layout.pad
        self.state: dict[str, Any] = {}

    def begin(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], room: int) -> None:
        """Run the prompts. Row r draws from `seeds[r]` alone. `room`: most tokens of a row, prompt included.

        Begun again with as many prompts and as much room, all tensors stay where they are.
        """
        import torch

        width = max(map(len, prompts))
        # Left padding: the last column is every row's last prompt token, so one column of logits serves all rows.
        ids = torch.tensor([[self.pad] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        padding = torch.tensor([width - len(p) for p in prompts], device=self.device)
        draws = torch.stack([uniforms(seed, room) for seed in seeds]).to(self.device)
        self.seen = SeenIds(prompts, room, self.device, None if self.ids_of[0] is None else self.vocabulary)
        fresh = {
            "hidden": self.decoder.prefill(ids, padding),
            "column": torch.tensor([width], device=self.device),  # where the next token stands
            "step": torch.zeros(1, dtype=torch.long, device=self.device),
            "draws": draws,
            "token": ids[:, -1].clone(),
            "frame": torch.zeros(len(prompts), FRAME_SLOTS + 1, dtype=torch.long, device=self.device),
            "seen": self.seen.table,
        }
        if self.state:
            for name, tensor in fresh.items():
                self.state[name].copy_(tensor)
        else:
            self.state = fresh
        self.seen.table = self.state["seen"]

    def draw(self, slot: int, count: int | None = -1) -> Any:
        """Draw the next id of each row, int64 [B]: `slot` is its place in the frame.

        count: -1 takes as many candidates as it needs (this asks the device); a number or None: those of
        `draw_index`, and the last column of `frame` counts the steps where they were too few.
        """
        state, ids = self.state, self.ids_of[slot]
        logits = self.decoder.logits(state["hidden"], self.legal[slot])
        logits = self.seen.penalise(logits, self.sampling.repetition_penalty, ids)
        uniform = state["draws"].gather(1, state["step"][:, None].expand(len(logits), 1))[:, 0]
        index, enough = self.choose(logits, uniform, count)
        if enough is not None:
            state["frame"][:, FRAME_SLOTS] += ~enough
        state["token"].copy_(index if ids is None else ids[index])
        self.seen.add(state["token"], state["column"])
        return state["token"]

    def choose(self, logits: Any, uniform: Any, count: int | None) -> tuple[Any, Any]:
        """Which score each row draws, int64 [B]; and bool [B], whether `count` was enough, None if it was not asked.

        logits: float32 [B, n], penalised, changed. uniform: float64 [B].
        """
        if count == -1 or self.sampling.temperature == 0:
            return sample(logits, self.sampling, uniform), None
        return draw_index(scale(logits, self.sampling), self.sampling.top_p, uniform, count)

    def advance(self, bound: int) -> None:
        """Feed the drawn ids. `bound`: a number of columns that holds all tokens so far, these included."""
        state = self.state
        state["hidden"].copy_(self.decoder.advance(state["token"], state["column"], bound))
        state["column"] += 1
        state["step"] += 1

    def frame(self, bound: int, count: int | None) -> None:
        """A whole frame: every slot drawn and fed, the ids put into `frame` [B, slots + 1]. Asks the device nothing."""
        self.state["frame"].zero_()
        for slot in range(FRAME_SLOTS):
            self.state["frame"][:, slot] = self.draw(slot, count)
            self.advance(bound)

    @property
    def count(self) -> int | None:
        """Candidates to try first in a frame: a short list of a whole vocabulary, all of a slot's few ids."""
        return CANDIDATES[-1] if self.ids_of[0] is None and self.sampling.top_p < 1 else None

    def snapshot(self) -> dict[str, Any]:
        """A copy of all that a step changes, but for the cache: what stands there from `column` on is overwritten."""
        return {name: tensor.clone() for name, tensor in self.state.items()}

    def restore(self, before: dict[str, Any]) -> None:
        """Go back to a snapshot."""
        for name, tensor in before.items():
            self.state[name].copy_(tensor)


def take(logits: Any, rows: Sequence[range]) -> Any:
    """The scores of the ids in `rows` out of those of the whole vocabulary. [B, V] -> [B, n]"""
    import torch

    return torch.cat([logits[:, r.start : r.stop] for r in rows], dim=1)
