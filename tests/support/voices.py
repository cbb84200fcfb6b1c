"""Tiny trained things for tests: a codec on disk, an adapter folder, and an engine that plays a script."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from orpheus.config import LoraOptions, SamplingOptions
from orpheus.engines.base import Engine
from orpheus.format.tokens import Codes, TokenLayout


def save_codec(folder: Path) -> Path:
    """The tiny SNAC as a user would have it on disk."""
    from safetensors.torch import save_file

    from tests.support.codec_fixtures import TINY, tiny_snac

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY))
    save_file({k: v.contiguous().clone() for k, v in tiny_snac().state_dict().items()}, folder / "model.safetensors")
    return folder


def save_random_adapter(
    folder: Path,
    base_dir: Path | str,
    codec_dir: Path | str,
    voices: Sequence[str] = (),
    seed: int = 1,
    std: float = 0.3,
) -> Path:
    """An adapter with random A and B, so that base and adapted model differ."""
    import torch

    from orpheus.codec.snac import SnacCodec
    from orpheus.model.adapter import add_lora, save_adapter
    from orpheus.model.base import load_base
    from orpheus.model.provenance import Provenance

    base = load_base(str(base_dir), load_in_4bit=False)
    loaded = add_lora(base, LoraOptions(r=4), alpha=4, gradient_checkpointing=False, seed=seed)
    torch.manual_seed(seed)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    made = Provenance(base=str(base_dir), codec=str(codec_dir), layout=base.layout, voices=tuple(voices),
                      base_fingerprint=base.fingerprint, codec_identity=SnacCodec.load(codec_dir).identity)  # fmt: skip
    return save_adapter(loaded, folder, made)


def some_codes(frames: int, seed: int = 0) -> Codes:
    """Random codes of `frames` frames."""
    rng = np.random.default_rng(seed)
    return Codes(*(rng.integers(0, 4096, frames * rate) for rate in (1, 2, 4)))


def rows_of(
    engine: Engine, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, seeds: Sequence[int]
) -> list[list[int]]:
    """All ids that an engine draws, a list for each prompt."""
    rows: list[list[int]] = [[] for _ in prompts]
    for row, token_id in engine.stream(prompts, sampling, seeds):
        rows[row].append(token_id)
    return rows


class ScriptedEngine:
    """Yields given ids, row by row or interleaved, and obeys the stop rule as a real engine does."""

    name = "scripted"
    context_length = 2048

    def __init__(self, layout: TokenLayout, scripts: Sequence[Sequence[int]]) -> None:
        self.layout, self.scripts = layout, scripts
        self.closed = False

    def stream(self, prompts, sampling, seeds) -> Iterator[tuple[int, int]]:
        active = {row: 0 for row in range(len(prompts))}
        try:
            while active:
                for row in list(active):
                    at = active[row]
                    token = int(self.scripts[row][at])
                    active[row] += 1
                    if not self.layout.legal(token, at) or at + 1 == sampling.max_new_tokens:
                        del active[row]
                    yield row, token
        finally:
            self.closed = True

    def close(self) -> None:
        """It holds nothing."""
