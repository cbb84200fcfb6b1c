"""What a model's files hold is checked before anything is built from it: names, sizes, kinds of numbers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orpheus.errors import UserError
from orpheus.model.hub import fetch, local_folder
from orpheus.model.provenance import RESTORE, read_json

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
FLOATS = ("F64", "F32", "F16", "BF16")
MOST = {"num_hidden_layers": 1024, "hidden_size": 2**16, "intermediate_size": 2**20, "vocab_size": 2**22,
        "num_attention_heads": 2**12, "num_key_value_heads": 2**12, "head_dim": 2**12,
        "max_position_embeddings": 2**27}  # fmt: skip
"""The largest figures that are believed, several times those of any model so far."""
MOST_RANK, MOST_SCALE = 2**16, 2.0**24

Shapes = dict[str, tuple[int, ...]]


def base_config(base: str) -> dict[str, Any]:
    """The config.json of a base model (hub id or folder). UserError, one line, if it can't be had or is damaged."""
    folder = local_folder(base, "base model")
    if folder is None:
        from huggingface_hub import hf_hub_download

        path = fetch("base model", base, lambda: hf_hub_download(base, "config.json"), "use the embedded one")
        return read_json(Path(path), "fetch it again")
    return read_json(folder / "config.json", "use another base, or restore it")


def check_base(base: str) -> None:
    """Refuse a base by its small files, before anything is built from it.

    UserError, one line: figures that no model has, a quantisation that can't be read, shards outside of the folder (an
    index may name any path), integer weights, weights of another size than the config says.
    """
    config, what = base_config(base), f"the base model '{base}'"
    for name, most in MOST.items():
        value = config.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            raise UserError(f"{what} is damaged: {name} is {str(value)[:40]} in its config.json, expected 1 to {most}")
    quantised = config.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
    if method not in (None, "bitsandbytes"):
        raise UserError(f"{what} is quantised with {str(method)[:40]}, expected 16 or 32 bit, or bitsandbytes: name "
                        "the unquantised one")  # fmt: skip
    if folder := local_folder(base, "base model"):
        _check_headers(_headers(folder, what), config, what)


def _headers(folder: Path, what: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The kind (F16, BF16, I32, ...) and shape of each tensor of a model in safetensors: headers alone are read."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file() and not (folder / names[0]).is_file():
        shards = read_json(index, RESTORE).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise UserError(f"{index} is damaged: its weight_map names no files: {RESTORE}")
        names = sorted(set(shards.values()))
        outside = [name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", name)]
        if outside:
            raise UserError(f"{index} is refused: it names '{outside[0][:80]}', which is not a file of that folder")
    found = {}
    for path in (folder / name for name in names):
        if not path.is_file():
            raise UserError(f"{what} has no {path.name}: weights are read from safetensors alone")
        try:
            with safe_open(path, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (no dict)
                    part = tensors.get_slice(name)
                    found[name] = part.get_dtype(), tuple(part.get_shape())
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"base model: the folder {folder} can't be loaded: {path.name}: {error}") from error
    return found


def _check_headers(tensors: dict[str, tuple[str, tuple[int, ...]]], config: dict[str, Any], what: str) -> None:
    wholes = [name for name, (kind, _) in tensors.items() if kind not in FLOATS]
    if wholes and not config.get("quantization_config"):
        raise UserError(f"{what} holds {tensors[wholes[0]][0]} in {wholes[0]}, expected floating point: {RESTORE}")
    embedding = tensors.get("model.embed_tokens.weight")
    wanted = config.get("vocab_size"), config.get("hidden_size")
    layers = {int(part[2]) for name in tensors if (part := name.split("."))[:2] == ["model", "layers"]
              and part[2].isdecimal()}  # fmt: skip
    if embedding and embedding[1] != wanted:
        raise UserError(f"{what} does not fit its config.json: the embedding is {embedding[1]}, expected {wanted}")
    if layers and layers != set(range(config.get("num_hidden_layers") or 0)):
        raise UserError(f"{what} does not fit its config.json: it has the weights of {len(layers)} layers, expected "
                        f"{config.get('num_hidden_layers')}")  # fmt: skip


def check_finite(model: Any, base: str) -> None:
    """UserError for the first weight of a loaded model that is NaN or infinite, 4-bit ones included."""
    import torch

    for name, weight in model.named_parameters():
        state = getattr(weight, "quant_state", None)  # in 4 bit: the scales are infinite where a weight was
        parts = [weight] if state is None else [state.absmax, getattr(state, "offset", None)]
        for part in parts:
            if part is not None and part.is_floating_point() and not bool(part.sum(dtype=torch.float32).isfinite()):
                if weight.dtype == torch.float16:  # whose largest number is 65504: nothing need be wrong with the file
                    raise UserError(f"{name} of the base model '{base}' holds numbers that float16 can't: use bfloat16 "
                                    f"or, if it is damaged, {RESTORE}")  # fmt: skip
                raise UserError(f"the base model '{base}' is damaged: {name} holds NaN or infinity: {RESTORE}")


def tensors_of(path: Path, what: str) -> dict[str, Any]:
    """The tensors of a .safetensors file, floating and finite ones only. UserError, one line, for any other."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{what} is damaged ({error}): {RESTORE}") from error
    check_numbers(tensors, what)
    return tensors


def check_numbers(tensors: Mapping[str, Any], what: str) -> None:
    """UserError for the first tensor that is not floating point, or holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UserError(f"{what} is damaged: {name} is {_kind(tensor)}, expected floating point: {RESTORE}")
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{what} is damaged: {name} holds NaN or infinity: {RESTORE}")


def _kind(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_lora_file(folder: Path, model: Any, base: str) -> int:
    """See that an adapter's folder holds just what its adapter_config.json promises for this model.

    Every configured layer has its tensors, and every tensor its layer and shape: peft itself ignores what is missing
    or named otherwise, and the base would speak alone.

    Args:
        model: the base, from transformers.
        base: its name, for the message.
    Returns:
        How many modules the adapter changes.
    Raises:
        UserError: it does not fit, or is damaged, or is of a kind that can't be used.
    """
    what = f"the adapter in '{folder}'"
    config = lora_config(folder)
    found = tensors_of(folder / ADAPTER_WEIGHTS, what)
    wanted, embeddings = expected_shapes(model, config, what)
    got: Shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    hint = f"use the base it was trained on, or {RESTORE}"
    for name in got:  # peft may add the embeddings as they were when it was saved
        if name.endswith((".embed_tokens.weight", ".embed_tokens.base_layer.weight", ".lm_head.weight",
                          ".lm_head.base_layer.weight")):  # fmt: skip
            wanted.setdefault(name, embeddings)
    lacking = [name for name in wanted if name not in got]
    if lacking:
        raise UserError(f"{what} has no tensor for {len(lacking)} of the {len(wanted)} that its {ADAPTER_CONFIG} "
                        f"promises on '{base}' ({lacking[0]}; it has {next(iter(got), 'none')}): {hint}")  # fmt: skip
    for name, shape in got.items():
        if wanted.get(name) != shape:
            there = f"{ADAPTER_CONFIG} promises {wanted[name]}" if name in wanted else "there is no such layer"
            raise UserError(f"{what} does not fit the base '{base}': {name} is {shape}, {there}: {hint}")
    if not any(bool(tensor.any()) for name, tensor in found.items() if ".lora_A" not in name):
        raise UserError(f"{what} does nothing: all that it adds is zero. Train it, or speak with --no-adapter")
    return len({module_of(name) for name in got})


def module_of(name: str) -> str:
    """The module that a tensor of an adapter belongs to."""
    for mark in (".lora_", ".token_adapter", ".base_layer"):
        name = name.partition(mark)[0]
    return name.removesuffix(".weight").removesuffix(".bias")


def lora_config(folder: Path) -> dict[str, Any]:
    """The adapter_config.json of a folder, checked as far as that goes without its base. UserError, one line."""
    path = folder / ADAPTER_CONFIG
    config = read_json(path, RESTORE)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"the adapter in '{folder}' is of peft's kind {kind!r}, expected 'LORA': train it as LoRA")
    ranks = [config.get("r"), *_values(config, "rank_pattern", path)]
    if not all(isinstance(r, int) and not isinstance(r, bool) and 1 <= r <= MOST_RANK for r in ranks):
        raise UserError(
            f"{path} is damaged: ranks {ranks[:5]}, expected whole numbers from 1 to {MOST_RANK}: {RESTORE}"
        )
    scales = [config.get("lora_alpha"), *_values(config, "alpha_pattern", path)]
    if not all(isinstance(a, (int, float)) and 0 < abs(a) < MOST_SCALE for a in scales):
        raise UserError(f"{path} is damaged: lora_alpha is {scales[:5]}, expected a number other than 0: {RESTORE}")
    return config


def _values(config: dict[str, Any], name: str, path: Path) -> list[Any]:
    pattern = config.get(name) or {}
    if not isinstance(pattern, dict):
        raise UserError(f"{path} is damaged: {name} is {pattern!r}, expected names with numbers: {RESTORE}")
    return list(pattern.values())


def expected_shapes(model: Any, config: dict[str, Any], what: str) -> tuple[Shapes, tuple[int, ...]]:
    """What peft would save for this config on this model, and the shape of the embeddings. Nothing is allocated.

    UserError where peft can't make such an adapter for such a model.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    plain = type(model.config).from_dict({**model.config.to_dict(), "quantization_config": None})
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when the adapter is loaded
            base = AutoModelForCausalLM.from_config(plain)
            embeddings = tuple(base.get_input_embeddings().weight.shape)
            like = LoraConfig.from_peft_type(**(config | {"init_lora_weights": True, "inference_mode": True}))
            wrapped = get_peft_model(base, like, low_cpu_mem_usage=True)
            state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    except UserError:
        raise
    except Exception as error:  # peft's ways to refuse a config are many: ValueError, TypeError, KeyError, re.error
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what} can't be used with this base ({reason}): use the base it was trained on") from error
    return {name: tuple(tensor.shape) for name, tensor in state.items()}, embeddings
