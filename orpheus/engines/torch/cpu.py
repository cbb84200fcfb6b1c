"""How a row is multiplied with a matrix on a CPU: with which kernel, and how the matrix lies."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from orpheus.threads import NARROW

MEASURED_ON = "AVX512"  # the capability (as PyTorch calls it) of the CPUs on which PyTorch's own kernel won

FEW_ROWS = 3  # so many rows of a narrow model go through it more quickly by a turned head and one thread

_lock = threading.Lock()
_users = 0  # steps under way that want oneDNN off; the switch goes back after the last
_before = True


@contextmanager
def quick_products(device: Any, dtype: Any, rows: int) -> Iterator[None]:
    """On a CPU with AVX-512, multiply one bfloat16 row with a matrix by PyTorch's own kernel instead of oneDNN's.

    It reads the weights nearly twice as fast (22 against 12 GB/s on one core of an AMD EPYC), with the same rounding;
    for two rows or more oneDNN is the faster one. The switch is the whole process's, so it is held for a step only.
    """
    global _users, _before
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    if rows != 1 or device.type != "cpu" or dtype != torch.bfloat16 or capability != MEASURED_ON:
        yield
        return
    onednn: Any = torch.backends.mkldnn
    with _lock:
        if _users == 0:
            _before, onednn.enabled = onednn.enabled, False
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                onednn.enabled = _before


class TurnedHead:
    """A narrow output head, [H, V] in memory, with a row that equals the one before it left out.

    For one row of hidden states, that of the embedded base ([32746, 192]) takes 5.8 ms as the model has it, 1.6 ms
    turned, and 0.2 ms without its equal rows: three quarters of the 4096 codes of each slot are never used there and
    share one row (an AMD EPYC without AVX-512).
    """

    def __init__(self, weight: Any) -> None:
        """weight: float32 [V, H], on the CPU."""
        import torch

        rows = weight.detach()
        new = torch.ones(len(rows), dtype=torch.bool)
        new[1:] = torch.from_numpy((rows.numpy()[1:] != rows.numpy()[:-1]).any(1))
        self.column = new.cumsum(0) - 1  # of each id
        self.weight = rows[new].t().contiguous()

    def logits(self, hidden: Any, rows: Sequence[range] | None) -> Any:
        """The scores of the ids in `rows`, in that order; None: of all. [B, H] -> [B, n]"""
        import torch

        if rows is None:
            return (hidden @ self.weight).index_select(1, self.column)
        parts = []
        for ids in rows:
            columns = self.column[ids.start : ids.stop]
            first, last = int(columns[0]), int(columns[-1])
            parts.append((hidden @ self.weight[:, first : last + 1]).index_select(1, columns - first))
        return torch.cat(parts, dim=1)


def turned_head(head: Any) -> TurnedHead | None:
    """A `TurnedHead` for a narrow float32 head on a CPU, None for any other."""
    import torch

    if type(head) is not torch.nn.Linear or head.bias is not None:
        return None
    weight = head.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or weight.shape[1] > NARROW:
        return None
    return TurnedHead(weight)
