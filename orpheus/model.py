"""The base model and its LoRA adapter: load (Unsloth or transformers), quantise, attach, save, merge."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from orpheus.config import BASE_VOICES, LoraOptions
from orpheus.errors import MissingPackage, UserError
from orpheus.hub import fetch, local_folder
from orpheus.provenance import Provenance
from orpheus.tokens import TokenLayout

log = logging.getLogger(__name__)

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
FOUR_BIT_BELOW_BYTES = 12 * 2**30  # bf16 weights (6.6 GB), KV cache and codec want about this much
TIED = ("lm_head", "embed_tokens")


@dataclass
class LoadedModel:
    """A causal language model with all that is needed to feed it."""

    model: Any  # PreTrainedModel or PeftModel
    tokenizer: Any
    layout: TokenLayout
    base: str
    backend: Literal["unsloth", "transformers"]
    in_4bit: bool
    dtype: Any  # torch dtype of the arithmetic
    revision: str | None
    fingerprint: str
    voices: tuple[str, ...]  # what the base was trained on; empty: unknown

    @property
    def context_length(self) -> int:
        """Most tokens, prompt and speech together, that the model was built for."""
        return int(self.model.config.max_position_embeddings)

    @property
    def device(self) -> Any:
        """The torch device of the model's first parameter."""
        return next(self.model.parameters()).device


def has_gpu() -> bool:
    """Whether a CUDA GPU is present."""
    import torch

    return torch.cuda.is_available()


def free_memory() -> None:
    """Give the memory of models that are no longer used back to the GPU, for another process."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pick_device(device: str) -> str:
    """'auto' is cuda where present, else cpu; asking for a GPU that is not there is a UserError."""
    if device == "auto":
        return "cuda" if has_gpu() else "cpu"
    if device.startswith("cuda") and not has_gpu():
        raise UserError(
            f"device '{device}' was asked for, but PyTorch sees no CUDA GPU: use --device cpu, or install "
            "a CUDA build of torch and the driver"
        )
    return device


def compute_dtype(device: str) -> Any:
    """bfloat16 where the GPU has it, float16 on older ones (a T4), float32 on CPU, where 16 bit is often slower."""
    import torch

    if not device.startswith("cuda"):
        return torch.float32
    # `is_bf16_supported()` alone says yes for emulation on old cards; Ampere (8.0) has it in hardware.
    return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16


def pick_4bit(wish: bool | str, device: str) -> bool:
    """'auto' is 4-bit on a GPU with less than 12 GiB free, and 16-bit (32 on CPU) elsewhere."""
    if wish == "auto":
        if not device.startswith("cuda"):
            return False
        import torch

        return bool(torch.cuda.mem_get_info()[0] < FOUR_BIT_BELOW_BYTES)
    if not isinstance(wish, bool):
        raise UserError(f"load_in_4bit is {wish!r}, expected True, False or 'auto'")
    return wish


def load_base(
    base: str,
    *,
    load_in_4bit: bool = True,
    backend: str = "auto",
    device: str = "auto",
    max_seq_length: int = 2048,
    dtype: Any = None,
) -> LoadedModel:
    """Load a base model (hub id or folder) and its tokenizer.

    Args:
        base: hub id, or a folder with config.json, safetensors and the tokenizer.
        load_in_4bit: quantise the linear layers to NF4 with double quantisation (bitsandbytes).
        backend: "unsloth", "transformers", or "auto": Unsloth with a CUDA GPU.
        dtype: torch dtype of the weights (and of the arithmetic in 4 bit); None chooses for the device.
    Raises:
        UserError: the base can't be had, is no Llama-like causal model, or does not fit its tokenizer.
    """
    device = pick_device(device)
    if backend == "auto":
        backend = "unsloth" if device.startswith("cuda") else "transformers"
    folder = local_folder(base, "base model")
    source = str(folder or base)
    dtype = dtype or compute_dtype(device)
    if load_in_4bit:
        _need_bitsandbytes()
    if backend == "unsloth":
        model, tokenizer = _load_unsloth(source, load_in_4bit, dtype, max_seq_length)
    else:
        model, tokenizer = _load_transformers(source, load_in_4bit, dtype, device)
    layout = TokenLayout.from_tokenizer(tokenizer)
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < layout.audio_end:
        raise UserError(
            f"the base model '{base}' and its tokenizer don't fit: the model has {rows} token rows, the "
            f"tokenizer's audio ids reach {layout.audio_end - 1}. Use the files of one and the same model"
        )
    made = Provenance.load(folder) if folder else None
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        layout=layout,
        base=str(base),
        backend="unsloth" if backend == "unsloth" else "transformers",
        in_4bit=bool(getattr(model, "is_loaded_in_4bit", load_in_4bit)),
        dtype=dtype,
        revision=getattr(model.config, "_commit_hash", None),
        fingerprint=fingerprint(model),
        voices=(made.voices or made.base_voices) if made else BASE_VOICES.get(str(base), ()),
    )


def _load_transformers(base: str, in_4bit: bool, dtype: Any, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )

    def load() -> tuple[Any, Any]:
        tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,  # never unpickle weights
            attn_implementation="sdpa",
            **({"quantization_config": quantised} if in_4bit else {}),
        )
        return model, tokenizer

    model, tokenizer = fetch("base model", base, load, "use the embedded one: --model.preset tiny")
    if in_4bit and device == "cpu":
        _keep_differentiable(model)
    return model, tokenizer


def _keep_differentiable(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    It does so at the first pass in evaluation mode, for good, and the packed product has no gradient: one
    validation pass before or during training would silently cut off every gradient below (bitsandbytes 0.50).
    """
    import bitsandbytes

    for layer in model.modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def _load_unsloth(base: str, in_4bit: bool, dtype: Any, max_seq_length: int) -> tuple[Any, Any]:
    try:
        # Before transformers and peft: Unsloth replaces parts of them as it is imported.
        from unsloth import FastLanguageModel
    except ImportError as error:
        raise MissingPackage("unsloth", "training on a GPU", "pip install -r requirements.txt") from error
    except NotImplementedError as error:  # Unsloth's own way to say that it sees no GPU
        raise UserError("Unsloth needs a CUDA GPU and sees none: use --model.backend transformers") from error

    def load() -> tuple[Any, Any]:
        return FastLanguageModel.from_pretrained(
            model_name=base, max_seq_length=max_seq_length, dtype=dtype, load_in_4bit=in_4bit
        )

    return fetch("base model", base, load, "use the embedded one: --model.preset tiny")


def _need_bitsandbytes() -> None:
    # On CPU it warns about an optional kernel package, which the user can do nothing about.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingPackage("bitsandbytes", "4-bit loading") from error


def fingerprint(model: Any) -> str:
    """A hash that is the same for one base in 4, 16 and 32 bit, and another for other weights.

    Taken over the first embedding rows and the last norm, which quantisation leaves alone, rounded to bfloat16.
    """
    import torch

    rows = model.get_input_embeddings().weight[:256]
    norm = next(p for name, p in reversed(list(model.named_parameters())) if name.endswith("norm.weight"))
    digest = hashlib.sha256()
    for tensor in (rows, norm):
        digest.update(tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_lora(lora: LoraOptions) -> None:
    """Refuse what can't work: UserError for tied targets and impossible figures."""
    tied = [t for t in lora.targets if any(t.endswith(name) for name in TIED)]
    if tied:
        raise UserError(
            f"LoRA targets {', '.join(tied)}: in Orpheus lm_head and embed_tokens are one tied matrix, and "
            "merging would discard their adapter; leave them out"
        )
    if lora.r < 1 or not 0.0 <= lora.dropout < 1.0:
        raise UserError(f"LoRA r is {lora.r} and dropout {lora.dropout}, expected r of 1 or more and dropout in [0, 1)")
    if not lora.targets:
        raise UserError("LoRA has no target layers: name some, such as q_proj v_proj")


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
            target_modules=list(lora.targets),
            lora_alpha=alpha,
            lora_dropout=lora.dropout,
            bias="none",
            use_gradient_checkpointing="unsloth" if gradient_checkpointing else False,
            random_state=seed,
            use_rslora=lora.rslora,
        )
        return replace(loaded, model=model)

    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    names = {name.rsplit(".", 1)[-1] for name, _ in loaded.model.named_modules()}
    unknown = [t for t in lora.targets if t not in names]
    if unknown:
        raise UserError(
            f"LoRA targets {', '.join(unknown)} are not in this model; it has "
            f"{', '.join(sorted(n for n in names if n.endswith('_proj')))}"
        )
    base = loaded.model
    if loaded.in_4bit:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=gradient_checkpointing)
    elif gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    base.config.use_cache = False
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        use_rslora=lora.rslora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return replace(loaded, model=get_peft_model(base, config))


def trainable_parameters(model: Any) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def adapter_folder(adapter: str | Path) -> Path:
    """The folder of an adapter; UserError if there is none (the adapter was not trained yet, or the path is wrong)."""
    folder = Path(adapter).expanduser()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"there is no adapter in '{adapter}' ({name} is missing): train one with "
                "`python orpheus_sft_unsloth.py`, or name its folder with --adapter"
            )
    return folder


def attach_adapter(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """Load a trained adapter onto the base, for inference. UserError if the two do not fit."""
    made = Provenance.load(folder)
    if made and made.layout != loaded.layout:
        raise UserError(
            f"the adapter in '{folder}' was trained with another token layout (audio ids from "
            f"{made.layout.audio_start}) than '{loaded.base}' has ({loaded.layout.audio_start}): "
            f"use its own base, {made.base}"
        )
    _check_shapes(loaded, folder)
    if made and made.base_fingerprint and made.base_fingerprint != loaded.fingerprint:
        raise UserError(
            f"the adapter in '{folder}' was trained on {made.base}, and '{loaded.base}' has other weights "
            f"(fingerprint {loaded.fingerprint}, expected {made.base_fingerprint}): use the base it was "
            "trained on"
        )
    from peft import PeftModel

    model = PeftModel.from_pretrained(loaded.model, str(folder), is_trainable=False)
    return replace(loaded, model=model.eval())


def _check_shapes(loaded: LoadedModel, folder: Path) -> None:
    """Every adapter matrix must find a layer of its shape: peft itself ignores layers that are missing."""
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / ADAPTER_WEIGHTS, framework="numpy") as weights:
            names = list(weights.keys())
            shapes = {name: weights.get_slice(name).get_shape() for name in names}
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"the adapter in '{folder}' is damaged ({error}): restore it, or train again") from error
    layers = dict(loaded.model.named_modules())
    for name, shape in shapes.items():
        path, _, side = name.removeprefix("base_model.model.").rpartition(".lora_")
        layer = layers.get(path)
        size = getattr(layer, "in_features" if side.startswith("A") else "out_features", None)
        if size is None or size != shape[1 if side.startswith("A") else 0]:
            raise UserError(
                f"the adapter in '{folder}' does not fit the base '{loaded.base}': {name} is "
                f"{tuple(shape)}, the base has {'no such layer' if layer is None else f'{size} features'}; "
                "use the base it was trained on"
            )


def save_adapter(loaded: LoadedModel, folder: Path, provenance: Provenance) -> Path:
    """Write the adapter in peft's standard format, with the tokenizer and `orpheus.json`, all or nothing.

    Everything is written to a folder beside it first and moved into place at the end.
    """
    import shutil

    temporary = folder / ".saving"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        loaded.model.save_pretrained(temporary, safe_serialization=True)
        loaded.tokenizer.save_pretrained(temporary)
        (temporary / "README.md").unlink(missing_ok=True)  # peft's empty model card
        provenance.save(temporary)
        for file in sorted(temporary.iterdir(), key=lambda f: f.name == ADAPTER_WEIGHTS):
            file.replace(folder / file.name)  # the weights last: a folder that has them is complete
    except OSError as error:
        raise UserError(
            f"the adapter can't be written to '{folder}': {error.strerror or error}; free some space or "
            "choose another --output-dir"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def merge(loaded: LoadedModel) -> LoadedModel:
    """Fold the adapter into the weights, W + BA * scale, for faster generation. Not for a 4-bit base: it would lose."""
    if loaded.in_4bit:
        raise UserError("a 4-bit base can't take the adapter without loss: load the base in 16 bit to merge")
    if not hasattr(loaded.model, "merge_and_unload"):
        return loaded
    return replace(loaded, model=loaded.model.merge_and_unload(safe_merge=True).eval())
