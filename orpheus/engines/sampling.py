"""How one id is drawn from a row of scores: repetition penalty, temperature, nucleus, inversion. Exact, and quick.

Nothing here reads a number back to the host unless a short list of candidates may be too short, so all of it can run
inside a CUDA graph (`draw_index` with one fixed list).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orpheus.config import SamplingOptions

CANDIDATES = (128, 1024)
"""Guesses at the size of the nucleus, tried in turn; a full sort follows only if the last holds less than top_p."""


def uniforms(seed: int, count: int) -> Any:
    """`count` numbers in [0, 1) that depend on the seed alone, not on the device or the rest of the batch.

    Returns float64 [count], on the CPU. Fewer numbers of the same seed are the first ones of more.
    """
    import torch

    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class SeenIds:
    """Which ids each row has seen, prompt included: what the repetition penalty applies to.

    Over the whole vocabulary it lists the ids, one column a token, and touches only their scores. Over a few ids of it
    (`among`) it keeps a mark for every id instead, since most of those seen have no score there at all.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], room: int, device: Any, marks: int | None) -> None:
        """room: most tokens of a row, prompt included. marks: keep one for each of so many ids; None lists the ids."""
        import torch

        width = max(map(len, prompts))
        # A row's own first id fills what is not in use: listed again, it changes nothing.
        listed = torch.tensor([[p[0]] * (width - len(p)) + list(p) for p in prompts], device=device)
        self.marked = marks is not None
        if marks is not None:
            self.table = torch.zeros(len(prompts), marks, dtype=torch.bool, device=device).scatter_(1, listed, True)
        else:
            self.table = torch.cat([listed, listed[:, :1].expand(-1, room - width)], dim=1)

    def add(self, token: Any, column: Any) -> None:
        """Note one new id per row. token: int64 [B]; column: int64 [B], or [1] for all, its place in the sequence."""
        if self.marked:
            self.table.scatter_(1, token[:, None], True)
        else:
            self.table.scatter_(1, column[:, None].expand(len(token), 1), token[:, None])

    def penalise(self, logits: Any, penalty: Any, among: Any = None) -> Any:
        """Make seen ids less likely (CTRL, Keskar et al. 2019, section 4.1).

        Args:
            logits: float32 [B, n], may be changed.
            penalty: a number, or float32 [B, 1].
            among: int64 [n], the id of each score (with marks); None: they are the whole vocabulary (with a list).
        Returns:
            The new scores, float32 [B, n].
        """
        import torch

        if isinstance(penalty, (int, float)) and penalty == 1:
            return logits
        if self.marked:
            seen = self.table.index_select(1, among)
            return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
        # All scores are read before one is written, so an id that is listed twice is penalised once.
        picked = logits.gather(1, self.table)
        return logits.scatter_(1, self.table, torch.where(picked < 0, picked * penalty, picked / penalty))


def sample(logits: Any, sampling: SamplingOptions, draw: Any) -> Any:
    """Draw one index per row, as transformers does after its penalty: temperature, top-p, multinomial.

    Args:
        logits: float32 [B, n], any set of scores, penalised already; changed.
        draw: float64 [B], one uniform number per row; the index is found by inverting the cumulative distribution
            over the nucleus, most likely first. Equal probabilities may stand in any order.
    Returns:
        int64 [B], positions in 0..n-1.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    return draw_in_turns(scale(logits, sampling), sampling.top_p, draw)


def draw_in_turns(probabilities: Any, top_p: Any, draw: Any, counts: Sequence[int] = CANDIDATES) -> Any:
    """`draw_index` with each of `counts`, and at last with all; of a row, the first whose nucleus lies within.

    So what a row draws does not depend on its neighbours. Returns int64 [B].
    """
    for turn, count in enumerate(counts, 1):
        if count < probabilities.shape[-1]:
            index, enough = draw_index(probabilities, top_p, draw, count)
            if bool(enough.all()):
                return index
            rest = (~enough).nonzero()[:, 0]
            wider = top_p if isinstance(top_p, (int, float)) else top_p[rest]
            index[rest] = draw_in_turns(probabilities[rest], wider, draw[rest], counts[turn:])
            return index
    return draw_index(probabilities, top_p, draw, None)[0]


def scale(logits: Any, sampling: Any) -> Any:
    """Probabilities at the temperature (above 0; a number, or float32 [B, 1]).

    logits: float32 [B, n], changed; returns float32 [B, n].
    """
    import torch

    return torch.softmax(logits.div_(sampling.temperature), dim=-1)


def draw_index(probabilities: Any, top_p: Any, draw: Any, count: int | None) -> tuple[Any, Any]:
    """Invert the cumulative distribution of the nucleus, looked for among the `count` most likely (None: among all).

    Args:
        probabilities: float32 [B, n].
        top_p: a number, or float64 [B, 1].
        draw: float64 [B].
    Returns:
        int64 [B], the index drawn; bool [B], whether the nucleus lies within `count` (where not, the index is wrong).
    """
    import torch

    top, ids, enough = nucleus(probabilities, top_p, count)
    cumulative = top.cumsum(-1)
    index = torch.searchsorted(cumulative, (draw * cumulative[:, -1])[:, None], right=True)
    last = (top > 0).sum(-1, keepdim=True) - 1
    return ids.gather(-1, torch.minimum(index, last))[:, 0], enough


def nucleus(probabilities: Any, top_p: Any, count: int | None) -> tuple[Any, Any, Any]:
    """The smallest set of ids that holds top_p, looked for among the `count` most likely (None: among all).

    Args:
        probabilities: float32 [B, n].
        top_p: a number, or float64 [B, 1].
    Returns:
        float64 [B, count], the probabilities, most likely first, 0 outside of the set; int64 [B, count], their ids;
        bool [B], whether the set lies within `count` (where not, it is too small).
    """
    import torch

    if count is None:
        top, ids = probabilities.sort(dim=-1, descending=True)
    else:
        top, ids = probabilities.topk(count, dim=-1)
    top = top.double()
    cumulative = top.cumsum(-1)
    enough = (cumulative[:, -1:] >= top_p)[:, 0]
    return torch.where(cumulative - top < top_p, top, 0.0), ids, enough  # the id that reaches top_p is in it
