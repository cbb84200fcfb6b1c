"""Steps of the smoke test that compare logits: merged with unmerged weights, Unsloth with transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.smoke import data as smoke_data
from benchmarks.smoke.common import Settings, check, memory

if TYPE_CHECKING:
    from orpheus.model.base import LoadedModel

LOGITS = "logits.pt"
# 16 bit on a GPU: bfloat16 and float32 differ by 0.011 with 4 layers of the published width. 32 bit on a CPU.
LIMIT = {"cuda": 0.1, "cpu": 1e-3}


def merge_export(settings: Settings, name: str, *, adapter: str) -> dict[str, Any]:
    """The adapter folded into 16 (CPU: 32) bit weights, written as safetensors, reloaded: the logits stay."""
    from orpheus.model.adapter import merge
    from orpheus.model.base import load_base

    loaded = _adapted(settings, "transformers", adapter)
    adapted = logits(loaded)
    with loaded.model.disable_adapter():
        plain = logits(loaded)
    text = loaded.layout.custom_start
    merged = merge(loaded)
    folder = settings.folder(name)
    merged.model.save_pretrained(folder, safe_serialization=True, max_shard_size="2GB")
    merged.tokenizer.save_pretrained(folder)
    del loaded, merged
    again = logits(load_base(str(folder), load_in_4bit=False, backend="transformers", device=settings.device))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {"written_gb": round(size / 1e9, 2), "adapter_changes_logits_by": distance(plain, adapted, text),
            **_compare(adapted, again, text, settings), **memory(settings)}  # fmt: skip


def logits_transformers(settings: Settings, name: str, *, adapter: str) -> dict[str, Any]:
    """Base and adapter through transformers + peft; the logits are kept for `agree_unsloth`."""
    import torch

    settings.folder(name).mkdir(parents=True, exist_ok=True)
    found = logits(_adapted(settings, "transformers", adapter))
    torch.save(found, settings.folder(name) / LOGITS)
    return {"positions": len(found), **memory(settings)}


def agree_unsloth(settings: Settings, name: str, *, adapter: str, reference: str) -> dict[str, Any]:
    """The same base and adapter through Unsloth: are the logits those of transformers?"""
    import torch

    loaded = _adapted(settings, "unsloth", adapter)
    theirs = torch.load(settings.folder(reference) / LOGITS, weights_only=True)
    return {**_compare(theirs, logits(loaded), loaded.layout.custom_start, settings), **memory(settings)}


def _adapted(settings: Settings, backend: str, adapter: str) -> LoadedModel:
    from orpheus.model.adapter import attach_adapter
    from orpheus.model.base import load_base

    base = load_base(settings.base, load_in_4bit=False, backend=backend, device=settings.device)
    return attach_adapter(base, settings.folder(adapter))


def logits(loaded: LoadedModel) -> Any:
    """The logits of a prompt and ten frames, float32 [T, V] on the CPU."""
    import torch

    from orpheus.format.prompt import Renderer

    example = Renderer(loaded.tokenizer, loaded.layout).example("Hello there.", smoke_data.random_codes(10, 1))
    ids = torch.tensor([example.input_ids], device=loaded.device)
    with torch.inference_mode():
        return loaded.model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float().cpu()


def distance(a: Any, b: Any, text: int) -> float:
    """Root mean square of the difference over the spread of `a`, for the first `text` ids.

    Those of text, because a stand-in's audio ids have hand-set scores beside which differences would look small.
    """
    a, b = a[:, :text], b[:, :text]
    return round(float((a - b).square().mean().sqrt() / a.std()), 6)


def _compare(expected: Any, got: Any, text: int, settings: Settings) -> dict[str, Any]:
    """Their distance, and how often the most likely token is the same. `Failed` beyond `LIMIT`."""
    apart, limit = distance(expected, got, text), LIMIT["cuda" if settings.on_gpu else "cpu"]
    check(apart < limit, f"logits differ by {apart} of their spread, expected < {limit}")
    same = float((expected.argmax(-1) == got.argmax(-1)).float().mean())
    return {"logits_differ_by": apart, "limit": limit, "same_top_token": round(same, 4)}
