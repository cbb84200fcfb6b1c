"""A voice as one model: the adapter folded into its base, as safetensors, and checked against both."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from orpheus.config import DEFAULT_PROMPTS
from orpheus.errors import UserError
from orpheus.export.check import Spoken, compare, speak, told
from orpheus.format.prompt import Renderer
from orpheus.model.adapter import attach_adapter, merge
from orpheus.model.base import LoadedModel, load_base
from orpheus.model.card import FILE_NAME as CARD
from orpheus.model.card import model_card
from orpheus.model.hub import local_folder
from orpheus.model.provenance import Provenance, own_sampling, own_words, versions


@dataclass(frozen=True)
class Source:
    """What is exported: a base, perhaps an adapter on it, and what is known of both."""

    base: str
    folder: Path | None
    codec: str
    made: Provenance | None
    device: str

    def load(self, dtype: Any = None) -> LoadedModel:
        """Base and adapter, not merged, not in 4 bit."""
        loaded = load_base(self.base, load_in_4bit=False, backend="transformers", device=self.device, dtype=dtype)
        if loaded.in_4bit:
            raise UserError(f"'{self.base}' is stored in 4 bit, and merging into it would lose: name the unquantised "
                            "base with --base")  # fmt: skip
        return attach_adapter(loaded, self.folder) if self.folder else loaded

    def provenance(self, loaded: LoadedModel) -> Provenance:
        """What the exported model says of itself."""
        made = self.made or Provenance(
            base=loaded.base, codec=self.codec, layout=loaded.layout, base_revision=loaded.revision,
            base_fingerprint=loaded.fingerprint, base_voices=loaded.voices,
        )  # fmt: skip
        merged = self.folder.resolve().name if self.folder else made.merged_from
        identity = made.codec_identity if self.codec == made.codec else None
        base = local_folder(self.base, "base model")
        words = own_words(base) or made.words  # a merged base has no words.txt of its own
        return replace(made, codec=self.codec, codec_identity=identity, merged_from=merged, versions=versions(),
                       sampling=own_sampling(base), words=words)  # fmt: skip


def export_merged(source: Source, out: Path, stored: str, check: bool) -> dict[str, Any]:
    """Write a folder with safetensors, tokenizer and provenance. Returns the figures of the check.

    stored: how numbers are stored, a dtype of PyTorch or 4bit.
    """
    import torch

    in_4bit = stored == "4bit"
    loaded, made = merged(source, torch.bfloat16 if in_4bit else getattr(torch, stored))
    prompts = check_prompts(loaded, made)
    whole = out.with_name("whole") if in_4bit else out
    save_model(loaded, made, whole)
    del loaded
    if in_4bit:
        save_model(load_base(str(whole), load_in_4bit=True, backend="transformers", device=source.device,
                             dtype=torch.bfloat16), made, out)  # fmt: skip
        shutil.rmtree(whole)
    if not check:
        return {"checked": False}
    from orpheus.engines.torch.engine import TorchEngine

    again = load_base(str(out), load_in_4bit=False, backend="transformers", device=source.device)
    spoken = speak(TorchEngine(again), torch_scores(again), prompts)
    del again
    return checked(source, spoken, stored)


def save_model(loaded: LoadedModel, made: Provenance, folder: Path) -> None:
    """Write a model to a folder, with its tokenizer, what it says of itself, and a model card if it has an adapter."""
    # So that other programs stop there too.
    loaded.model.generation_config.eos_token_id = loaded.layout.end_of_speech
    loaded.model.save_pretrained(folder, safe_serialization=True)
    loaded.tokenizer.save_pretrained(folder)
    made.save(folder)
    if made.merged_from:  # a base alone has a card of its own
        (folder / CARD).write_text(model_card(made), encoding="utf-8")


def merged(source: Source, dtype: Any) -> tuple[LoadedModel, Provenance]:
    """The adapter folded into the base in floating point, and what the result says of itself."""
    loaded = merge(source.load(dtype))
    wrong = next((n for n, p in loaded.model.named_parameters() if not bool(p.isfinite().all())), None)
    if wrong:
        raise UserError(f"{wrong} holds numbers that {str(dtype).removeprefix('torch.')} can't: use bfloat16 (--dtype, "
                        "or --type BF16)")  # fmt: skip
    return loaded, source.provenance(loaded)


def check_prompts(loaded: LoadedModel, made: Provenance) -> list[list[int]]:
    """The default prompts as ids, for the first voice that the model knows."""
    voices = made.voices if made.merged_from else made.voices or made.base_voices
    renderer = Renderer(loaded.tokenizer, loaded.layout)
    return [renderer.prompt(text, voices[0] if voices else None) for text in DEFAULT_PROMPTS]


def checked(source: Source, spoken: Spoken, kind: str) -> dict[str, Any]:
    """Compare with base and adapter as they were trained. Prints and returns the figures."""
    loaded = source.load()
    figures = compare(spoken, torch_scores(loaded), kind, exact=loaded.dtype.itemsize == 4)
    print(told(figures))
    return {"checked": True, **figures, "versions": versions()}


def torch_scores(loaded: LoadedModel) -> Any:
    """What a model expects after each of some ids, float32 [n, V], by transformers' forward pass."""
    import torch

    def scores(ids: Sequence[int]) -> np.ndarray:
        with torch.inference_mode():
            return (
                loaded.model(input_ids=torch.tensor([list(ids)], device=loaded.device)).logits[0].float().cpu().numpy()
            )

    return scores
