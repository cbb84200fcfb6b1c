"""The LoRA adapter on a base model: add a fresh one, attach a trained one, save, merge."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from orpheus.audio.recordings import atomic_path
from orpheus.config import LoraOptions
from orpheus.errors import UserError, disk_errors
from orpheus.model.base import LoadedModel, same_weights
from orpheus.model.card import FILE_NAME as CARD
from orpheus.model.card import evaluated, model_card
from orpheus.model.checks import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_lora_file, lora_config
from orpheus.model.hub import fetch, looks_like_path
from orpheus.model.provenance import FILE_NAME, Provenance

TIED = ("lm_head", "embed_tokens")


def check_lora(lora: LoraOptions) -> None:
    """Refuse what can't work: UserError for tied targets and impossible figures."""
    tied = [t for t in lora.target_modules if any(t.endswith(name) for name in TIED)]
    if tied:
        raise UserError(
            f"LoRA targets {', '.join(tied)}: in Orpheus lm_head and embed_tokens are one tied matrix, and "
            "merging would discard their adapter; leave them out"
        )
    if lora.r < 1 or not 0.0 <= lora.lora_dropout < 1.0:
        raise UserError(f"LoRA r is {lora.r}, dropout {lora.lora_dropout}; expected r of 1 or more, dropout in [0, 1)")
    if lora.lora_alpha is not None and lora.lora_alpha <= 0:
        raise UserError(f"LoRA alpha is {lora.lora_alpha}, expected above 0: with 0 the adapter does nothing")
    if not lora.target_modules:
        raise UserError("LoRA has no target layers: name some, such as q_proj v_proj")
    unknown = sorted(set(lora.target_modules) - set(LoraOptions.target_modules))
    if unknown:
        raise UserError(f"LoRA targets {', '.join(unknown)} are not in this model; it has "
                        f"{', '.join(sorted(LoraOptions.target_modules))}")  # fmt: skip


def add_lora(
    loaded: LoadedModel, lora: LoraOptions, *, alpha: int, gradient_checkpointing: bool, seed: int
) -> LoadedModel:
    """Put a fresh, trainable adapter on the base. Its first weights depend on `seed` alone."""
    check_lora(lora)
    if loaded.backend == "unsloth":
        from unsloth import FastLanguageModel

        model = FastLanguageModel.get_peft_model(
            loaded.model,
            r=lora.r,
            target_modules=list(lora.target_modules),
            lora_alpha=alpha,
            lora_dropout=lora.lora_dropout,
            bias="none",
            use_gradient_checkpointing="unsloth" if gradient_checkpointing else False,
            random_state=seed,
            use_rslora=lora.use_rslora,
        )
        return replace(loaded, model=model)

    import torch
    from peft import LoraConfig, get_peft_model

    base = loaded.model
    # Not peft's prepare_model_for_kbit_training: it turns the tied embedding, 482 M parameters, into float32.
    if gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    base.config.use_cache = False
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(lora.target_modules),
        use_rslora=lora.use_rslora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return replace(loaded, model=get_peft_model(base, config))


def trainable_parameters(model: Any) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def adapter_folder(adapter: str | Path) -> Path:
    """The folder of an adapter; one on the hub ('owner/name') is fetched into the local cache.

    UserError if there is none (the adapter was not trained yet, or the path is wrong).
    """
    folder = Path(adapter).expanduser()
    if not folder.exists() and str(adapter).count("/") == 1 and not looks_like_path(str(adapter)):
        folder = fetch("adapter", str(adapter), lambda: _download(str(adapter)), "train one")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"there is no adapter in '{adapter}' ({name} is missing): train one with "
                "`python orpheus_sft_unsloth.py`, or name its folder with --adapter"
            )
    return folder


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, allow_patterns=[ADAPTER_CONFIG, ADAPTER_WEIGHTS, FILE_NAME]))


def attach_adapter(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """Load a trained adapter onto the base, for inference. UserError if the two do not fit."""
    made = Provenance.load(folder)
    if made and made.layout != loaded.layout:
        raise UserError(
            f"the adapter in '{folder}' was trained with another token layout (audio ids from "
            f"{made.layout.audio_start}) than '{loaded.base}' has ({loaded.layout.audio_start}): "
            f"use its own base, {made.base}"
        )
    modules = check_lora_file(folder, loaded.model, loaded.base)
    if made and made.base_fingerprint and not same_weights(made.base_fingerprint, loaded.fingerprint):
        raise UserError(
            f"the adapter in '{folder}' was trained on {made.base}, and '{loaded.base}' has other weights: "
            "use the base it was trained on"
        )
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")  # `merge` unties them
        model = PeftModel.from_pretrained(loaded.model, str(folder), is_trainable=False)
    return replace(loaded, model=model.eval(), adapted_modules=modules)


def read_shapes(folder: Path) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """An adapter's configuration and the shape of each of its matrices, without reading them. UserError: damaged."""
    from safetensors import SafetensorError, safe_open

    config = lora_config(folder)
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="numpy") as weights:
            return config, {name: weights.get_slice(name).get_shape() for name in list(weights.keys())}
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"the adapter in '{folder}' is damaged ({error}): restore it, or train again") from error


def save_adapter(loaded: LoadedModel, folder: Path, provenance: Provenance) -> Path:
    """Write the adapter in peft's standard format, with tokenizer, `orpheus.json` and model card, all or nothing.

    Everything is written to a folder beside it first and moved into place at the end.
    """
    import shutil

    temporary = folder / ".saving"
    remedy = "free some space or choose another --output-dir"
    try:
        with disk_errors(f"the adapter can't be written to '{folder}'", remedy):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            loaded.model.save_pretrained(temporary, safe_serialization=True)
            loaded.tokenizer.save_pretrained(temporary)
            (temporary / CARD).write_text(model_card(provenance), encoding="utf-8")  # instead of peft's empty one
            provenance.save(temporary)
            # safetensors makes its file readable by its owner alone; the others have the mode that the umask leaves.
            (temporary / ADAPTER_WEIGHTS).chmod((temporary / ADAPTER_CONFIG).stat().st_mode & 0o777)
            for file in sorted(temporary.iterdir(), key=lambda f: f.name == ADAPTER_WEIGHTS):
                file.replace(folder / file.name)  # the weights last: a folder that has them is complete
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def write_card(folder: Path) -> Path:
    """Write the model card anew, with what was measured since the adapter was saved (`card.evaluated`)."""
    made = Provenance.load(folder)
    assert made is not None  # `save_adapter` wrote it
    with atomic_path(folder / CARD) as partial:
        partial.write_text(model_card(made, evaluated(folder)), encoding="utf-8")
    return folder / CARD


def merge(loaded: LoadedModel) -> LoadedModel:
    """Fold the adapter into the weights, W + BA * scale, for faster generation. Not for a 4-bit base: it would lose."""
    if loaded.in_4bit:
        raise UserError("a 4-bit base can't take the adapter without loss: load the base in 16 bit to merge")
    if not hasattr(loaded.model, "merge_and_unload"):
        return loaded
    _untie(loaded.model.get_base_model())
    model = loaded.model.merge_and_unload(safe_merge=True).eval()
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False  # the adapter changed one of the two, or each in its own way
    return replace(loaded, model=model)


def _untie(model: Any) -> None:
    """Give the output head a matrix of its own if an adapter sits on it or on the embedding: the sum is for one."""
    import torch
    from peft.tuners.lora import LoraLayer

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not isinstance(head, LoraLayer) and not isinstance(embedding, LoraLayer):
        return
    inner = head.get_base_layer() if isinstance(head, LoraLayer) else head
    if isinstance(inner, torch.nn.Linear) and inner.weight is embedding.weight:
        inner.weight = torch.nn.Parameter(inner.weight.detach().clone(), requires_grad=False)
