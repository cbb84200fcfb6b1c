"""The base model and its tokenizer: load with Unsloth or transformers, in 4, 16 or 32 bit; tell bases apart."""

from __future__ import annotations

import ctypes
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from orpheus.config import BASE_VOICES, Preset, resolve_preset
from orpheus.errors import MissingPackage, UserError
from orpheus.format.tokens import TokenLayout
from orpheus.model.checks import check_base, check_finite
from orpheus.model.hub import fetch, local_folder, portable_name
from orpheus.model.provenance import Provenance
from orpheus.model.with_unsloth import check_context, load_with_unsloth
from orpheus.processes import local_device, world_size

FOUR_BIT_BELOW_BYTES = 12 * 2**30  # bf16 weights (6.6 GB), KV cache and codec want about this much
LARGE_ON_CPU = 10**9  # parameters: Orpheus-3B in 32 bit takes 13.2 GB, and a laptop with 16 would swap


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
    fingerprint: tuple[float, ...]
    voices: tuple[str, ...]  # what the base was trained on; empty: unknown
    adapted_modules: int = 0  # how many an adapter changes, attached or merged

    @property
    def context_length(self) -> int:
        """Most tokens, prompt and speech together, that the model was built for."""
        return int(self.model.config.max_position_embeddings)

    @property
    def device(self) -> Any:
        """The torch device of the model's first parameter."""
        return next(self.model.parameters()).device


def has_gpu() -> bool:
    """Whether a CUDA GPU is present. PyTorch, which takes seconds to load, is asked only where there is a driver."""
    if "torch" not in sys.modules and not _has_driver():
        return False
    import torch

    return torch.cuda.is_available()


def preset_of(name: str) -> Preset:
    """The preset of that name; for `auto` the machine is asked. UserError: there is none such."""
    return resolve_preset(name, name == "auto" and has_gpu())


def _has_driver() -> bool:
    """Whether NVIDIA's (or AMD's) driver may be there: False only where PyTorch could find no GPU either."""
    if not sys.platform.startswith("linux") or Path("/dev/kfd").exists():
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def free_memory() -> None:
    """Give the memory of models that are no longer used back to the GPU, for another process."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pick_device(device: str) -> str:
    """'auto' is cuda where present, else cpu. UserError for another name, and for a GPU that is not there.

    Under `accelerate launch` 'cuda' is the process's own GPU.
    """
    check_device(device)
    if device == "auto":
        device = "cuda" if has_gpu() else "cpu"
    device = local_device(device)
    if device != "cpu" and not has_gpu():
        raise UserError(
            f"device '{device}' was asked for, but PyTorch sees no CUDA GPU: use --device cpu, or install "
            "a CUDA build of torch and the driver"
        )
    if ":" not in device:
        return device
    import torch

    if int(device[5:]) >= torch.cuda.device_count():
        raise UserError(f"device '{device}' was asked for, but there are {torch.cuda.device_count()} GPUs, from cuda:0")
    return device


def check_device(device: str) -> None:
    """UserError for what is no device's name; whether it is there, `pick_device` says."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UserError(f"unknown device '{device}': expected auto, cpu, cuda or cuda:N")


def compute_dtype(device: str, large: bool = False) -> Any:
    """bfloat16 where the GPU has it, float16 on older ones (a T4). On CPU float32, or bfloat16 for a `large` model.

    Not float16 on a CPU: its range is too small for some sums, and few CPUs compute in it.
    """
    import torch

    if not device.startswith("cuda"):
        return torch.bfloat16 if large else torch.float32
    # `is_bf16_supported()` alone says yes for emulation on old cards; Ampere (8.0) has it in hardware.
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def pick_4bit(wish: bool | str, device: str) -> bool:
    """'auto' is 4-bit on a GPU with less than 12 GiB free, and 16-bit (32 on CPU) elsewhere."""
    if wish == "auto":
        if not device.startswith("cuda"):
            return False
        import torch

        return bool(torch.cuda.mem_get_info(device)[0] < FOUR_BIT_BELOW_BYTES)
    if not isinstance(wish, bool):
        raise UserError(f"load_in_4bit is {wish!r}, expected True, False or 'auto'")
    return wish


def load_base(
    base: str,
    *,
    load_in_4bit: bool = True,
    backend: str = "auto",
    device: str = "auto",
    max_seq_length: int | None = None,
    dtype: Any = None,
) -> LoadedModel:
    """Load a base model (hub id or folder) and its tokenizer.

    Args:
        base: hub id, or a folder with config.json, safetensors and the tokenizer.
        load_in_4bit: quantise the linear layers to NF4 with double quantisation (bitsandbytes).
        backend: "unsloth", "transformers", or "auto": Unsloth with a CUDA GPU, but transformers where several
            processes share the work (`accelerate launch`).
        max_seq_length: tokens of the longest clip that will be trained on; None: the base's own matter.
        dtype: torch dtype of the weights (and of the arithmetic in 4 bit); None chooses for the device, and on a
            CPU for the size: float32, but bfloat16 from a billion parameters on.
    Raises:
        UserError: the base can't be had, is no Llama-like causal model, does not fit its tokenizer or the length, or
            could not be loaded in 4 bit.
    """
    device = pick_device(device)
    # On CPU bitsandbytes (which peft imports too) warns of an optional kernel package; the user need not do anything.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if backend == "auto":
        backend = "unsloth" if device.startswith("cuda") and world_size() == 1 else "transformers"
    if backend == "unsloth" and world_size() > 1:
        raise UserError("several processes are for the transformers back end: leave out --backend unsloth")
    folder = local_folder(base, "base model")
    source = str(folder or base)
    check_base(str(base))
    if load_in_4bit:
        _need_bitsandbytes()
    if dtype is None:
        # Not beside Unsloth, which must be imported before transformers; it needs a GPU anyway.
        large = backend != "unsloth" and device == "cpu" and _parameters(source) >= LARGE_ON_CPU
        dtype = compute_dtype(device, large)
    if backend == "unsloth":
        model, tokenizer = load_with_unsloth(source, load_in_4bit, dtype, max_seq_length)
    else:
        model, tokenizer = _load_transformers(source, load_in_4bit, dtype, device)
        check_context(base, int(model.config.max_position_embeddings), max_seq_length)
    in_4bit = has_4bit_layers(model)
    if load_in_4bit and not in_4bit:  # Unsloth only prints that it does without
        raise UserError(
            f"the base model '{base}' was to be loaded in 4 bit, but none of its layers is: bitsandbytes can't be used "
            "on this machine (python -m bitsandbytes says why). Repair it, or train with --no-load-in-4bit"
        )
    check_finite(model, str(base))
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
        base=portable_name(base),
        backend="unsloth" if backend == "unsloth" else "transformers",
        in_4bit=in_4bit,
        dtype=dtype,
        revision=getattr(model.config, "_commit_hash", None),
        fingerprint=fingerprint(model, layout),
        voices=(made.voices or made.base_voices) if made else BASE_VOICES.get(str(base), ()),
    )


def load_tokenizer(base: str) -> Any:
    """The tokenizer of a base model (hub id or folder) without its weights. UserError if it can't be had."""
    from transformers import AutoTokenizer

    source = str(local_folder(base, "base model") or base)
    return _fetch_base(base, lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False))


def _fetch_base(base: str, load: Callable[[], Any]) -> Any:
    return fetch("base model", base, load, "use the embedded one: --preset tiny")


def _parameters(base: str) -> int:
    """How many parameters a base has, by its config.json alone: nothing is allocated."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _fetch_base(base, lambda: AutoConfig.from_pretrained(base, trust_remote_code=False))
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def _load_transformers(base: str, in_4bit: bool, dtype: Any, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )

    def load() -> tuple[Any, Any]:
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base,
            output_loading_info=True,
            trust_remote_code=False,  # a base is data: its own Python is never run, nor asked about
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,  # never unpickle weights
            attn_implementation="sdpa",
            **({"quantization_config": quantised} if in_4bit else {}),
        )
        model, loading = loaded
        if missing := sorted(loading["missing_keys"]):  # they would be random
            raise UserError(f"the base model '{base}' lacks {len(missing)} of its weights, such as {missing[0]}")
        return model, tokenizer

    model, tokenizer = _fetch_base(base, load)
    if has_4bit_layers(model):  # by our wish, or as it is stored
        _compute_in(model, dtype)
        if device == "cpu":
            _keep_differentiable(model)
    return model, tokenizer


def has_4bit_layers(model: Any) -> bool:
    """Whether linear layers are in 4 bit, whatever the model or the one who loaded it says."""
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:
        return False
    return any(isinstance(layer, Linear4bit) for layer in model.modules())


def _compute_in(model: Any, dtype: Any) -> None:
    """Let 4-bit layers compute in `dtype`, whatever was written down where they were quantised."""
    import bitsandbytes

    for layer in model.modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            layer.compute_dtype = dtype


def _keep_differentiable(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    It does so at the first pass in evaluation mode, for good, and the packed product has no gradient: one
    validation pass before or during training would silently cut off every gradient below (bitsandbytes 0.50).
    `pack_for_inference` allows it again where nothing is trained.
    """
    import bitsandbytes

    for layer in model.modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def pack_for_inference(loaded: LoadedModel) -> int:
    """Let bitsandbytes repack the 4-bit layers for its CPU kernel. Returns how many layers were packed.

    The kernel multiplies from the packed weights without unfolding them first: about 20 times as fast for one row. For
    good: the product has no gradient, so the model can't be trained any more. Does nothing (0) but on a CPU with
    AVX512-BF16, for a 4-bit model that computes in bfloat16, as the kernel does.
    """
    import torch

    if not loaded.in_4bit or loaded.device.type != "cpu" or loaded.dtype != torch.bfloat16:
        return 0
    import bitsandbytes

    if not bitsandbytes.functional.has_avx512bf16():
        return 0
    packed = 0
    for layer in loaded.model.modules():
        if not isinstance(layer, bitsandbytes.nn.Linear4bit) or not _packable(layer):
            continue
        layer.support_avx512bf16_for_cpu = True
        with torch.no_grad():  # the layer packs itself when it is first used: now, not in the first utterance
            layer(torch.zeros(1, layer.in_features, dtype=torch.bfloat16))
        packed += 1
    return packed


def four_bit_copy(loaded: LoadedModel) -> LoadedModel:
    """The model with its layers' products in 4 bit (NF4), for guessing. Embedding, head and norms are shared with it.

    Takes a quarter of the layers' memory on top: 1.6 GB for Orpheus-3B. MissingPackage without bitsandbytes.
    """
    import copy

    import torch

    _need_bitsandbytes()
    import bitsandbytes

    # What is noted as copied already is not copied: the weights.
    copied = copy.deepcopy(loaded.model, {id(parameter): parameter for parameter in loaded.model.parameters()})
    for name, layer in list(copied.named_modules()):
        if type(layer) is not torch.nn.Linear or layer is copied.get_output_embeddings():
            continue
        small = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=loaded.dtype, quant_type="nf4",
            device="meta",
        )  # fmt: skip
        weight: Any = bitsandbytes.nn.Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4")
        small.weight, small.bias = weight.to(loaded.device), layer.bias
        copied.set_submodule(name, small)
    copied.eval()
    if loaded.device.type == "cpu":
        _keep_differentiable(copied)
    result = replace(loaded, model=copied, in_4bit=True)
    pack_for_inference(result)
    return result


def _packable(layer: Any) -> bool:
    """Whether the kernel takes a layer of this shape: rows in blocks of 32, columns in whole quantisation blocks."""
    return not layer.training and layer.out_features % 32 == 0 and layer.in_features % layer.weight.blocksize == 0


def _need_bitsandbytes() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingPackage("bitsandbytes", "4-bit loading") from error


def fingerprint(model: Any, layout: TokenLayout) -> tuple[float, ...]:
    """Some numbers that tell one base from another, nearly the same in 4, 16 and 32 bit (`same_weights`).

    Taken from the audio rows of the embedding, which every Orpheus fine-tune changes, and from the last norm:
    quantisation leaves both alone.
    """
    rows = model.get_input_embeddings().weight[layout.audio_start : layout.audio_end : layout.slot_size]
    norm = next(p for name, p in reversed(list(model.named_parameters())) if name.endswith("norm.weight"))
    numbers = [*rows[:, :8].flatten().tolist(), *norm[:8].tolist()]
    return tuple(float(f"{number:.4g}") for number in numbers)


def same_weights(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two fingerprints differ by no more than 16-bit rounding does."""
    import numpy as np

    return len(a) == len(b) and bool(np.allclose(a, b, rtol=0.01, atol=1e-4))
