"""Write a merged model as a .gguf file, and quantise it: llama.cpp's format, all in one file, tokenizer included.

Sources of the format: llama.cpp's `docs` on GGUF and `convert_hf_to_gguf.py` (`LlamaModel`): tensor names, the order of
the rows of q and k, `rope_freqs`; `src/llama-vocab.cpp`: the names of the pre-tokenizers. No part of it is copied, no
repository is needed: the package `gguf` lays out the file, llama-cpp-python holds the quantiser.
"""

from __future__ import annotations

import ctypes
import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from orpheus.engines.llamacpp.model import PROVENANCE_KEY, llama_cpp, log_lines, reason
from orpheus.errors import MissingPackage, UserError
from orpheus.model.base import LoadedModel
from orpheus.model.provenance import Provenance

PlainType = Literal["F32", "F16", "BF16"]
GgufType = Literal["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16", "BF16", "F32"]
PLAIN: tuple[PlainType, ...] = ("F32", "F16", "BF16")

# The expressions that split a text into words, and llama.cpp's names for them: the first for tokenizers that take a
# whole word from the vocabulary before they merge (`ignore_merges`, Llama 3's does), the second for others.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {LLAMA3_SPLIT: ("llama-bpe", "smaug-bpe"), "byte level": (None, "gpt-2")}

TENSORS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
         "lm_head.weight": "output.weight"}  # fmt: skip


def gguf() -> Any:
    """The package that lays out .gguf files. MissingPackage names the command that installs it."""
    try:
        import gguf as package
    except ImportError as error:
        raise MissingPackage("gguf", "writing a .gguf file", "pip install -r requirements-engines.txt") from error
    return package


def check_exportable(loaded: LoadedModel) -> None:
    """UserError for a model that is no plain Llama, and for a tokenizer that llama.cpp does not have."""
    config = loaded.model.config
    extra = [name for name in ("attention_bias", "mlp_bias") if getattr(config, name, False)]
    if config.model_type != "llama" or config.hidden_act != "silu" or extra:
        raise UserError(
            f"'{loaded.base}' is no plain Llama ({', '.join([config.model_type, config.hidden_act, *extra])}), and "
            "only these can be written as .gguf here: use --to merged"
        )
    rope = config.rope_parameters
    if rope["rope_type"] not in ("llama3", "default"):
        raise UserError(f"rotary embeddings of type '{rope['rope_type']}' can't be written as .gguf: use --to merged")
    pre_tokenizer(json.loads(loaded.tokenizer.backend_tokenizer.to_str()))


def write_gguf(loaded: LoadedModel, made: Provenance, path: Path, kind: PlainType) -> None:
    """Write a merged model without quantising it. Memory: the model's, and one tensor more."""
    package = gguf()
    config = loaded.model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = package.GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_name("Orpheus voice")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(package.LlamaFileType[f"{'ALL' if kind == 'F32' else 'MOSTLY'}_{kind}"])
    writer.add_quantization_version(package.GGML_QUANT_VERSION)
    writer.add_string(PROVENANCE_KEY, made.to_json())
    _add_tokenizer(writer, loaded, config.vocab_size)

    tensors = [(name, tensor) for name, tensor in loaded.model.state_dict().items() if not _tied(name, config)]
    for name, tensor in tensors:
        stored = "F32" if tensor.ndim == 1 else kind  # norms stay exact
        size = {"F32": 4, "F16": 2, "BF16": 2}[stored]
        # The package wants bytes, and shapes in bytes, for a type that NumPy does not have.
        shape = tuple(tensor.shape) if stored != "BF16" else (*tensor.shape[:-1], tensor.shape[-1] * size)
        dtype = np.dtype({"F32": "float32", "F16": "float16", "BF16": "uint8"}[stored])
        writer.add_tensor_info(gguf_name(name), shape, dtype, tensor.numel() * size,
                               raw_dtype=package.GGMLQuantizationType[stored])  # fmt: skip
    factors = rope_factors(config.rope_parameters, head_dim)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors:
        writer.write_tensor_data(_stored(name, tensor, config, kind))
    if factors is not None:
        writer.write_tensor_data(factors)
    writer.close()


def _tied(name: str, config: Any) -> bool:
    """Whether it is the output head of a model that uses its embedding for it: llama.cpp does the same by itself."""
    return name == "lm_head.weight" and bool(config.tie_word_embeddings)


def gguf_name(name: str) -> str:
    """transformers' name of a tensor as llama.cpp's: 'model.layers.0.mlp.up_proj.weight' -> 'blk.0.ffn_up.weight'."""
    if name in WHOLE:
        return WHOLE[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{TENSORS[rest.removesuffix('.weight')]}.weight"


def _stored(name: str, tensor: Any, config: Any, kind: PlainType) -> np.ndarray:
    """A tensor as it lies in the file."""
    import torch

    tensor = tensor.detach().cpu()
    for projection, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if name.endswith(f"{projection}.weight"):
            tensor = interleaved(tensor, heads)
    if tensor.ndim == 1 or kind == "F32":
        return tensor.float().contiguous().numpy()
    if kind == "BF16":
        return tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    return tensor.to(torch.float16).contiguous().numpy()


def interleaved(weight: Any, heads: int) -> Any:
    """Rows of q or k in llama.cpp's order. [heads * D, H] -> the same shape.

    Rotary embeddings turn pairs of numbers: transformers pairs the first half of a head with its second, llama.cpp
    neighbours.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def rope_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray | None:
    """What llama3's scaling divides each rotary frequency by, float32 [head_dim / 2]; None without scaling.

    Long waves are stretched by `factor`, short ones kept, and those between are blended (transformers'
    `_compute_llama3_parameters`).
    """
    if rope["rope_type"] == "default":
        return None
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for i in range(0, head_dim, 2):
        turns = original / (2 * math.pi * rope["rope_theta"] ** (i / head_dim))  # of this pair over the first context
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - kept) / factor + kept))
    return np.array(factors, np.float32)


def _add_tokenizer(writer: Any, loaded: LoadedModel, rows: int) -> None:
    """Vocabulary, merges and special ids. `rows`: of the embedding; what the tokenizer has no token for is unused."""
    kinds = gguf().TokenType
    layout, data = loaded.layout, json.loads(loaded.tokenizer.backend_tokenizer.to_str())
    tokens, types = [f"[UNUSED{i}]" for i in range(rows)], [kinds.UNUSED] * rows
    for text, token_id in data["model"]["vocab"].items():
        tokens[token_id], types[token_id] = text, kinds.NORMAL
    for added in data["added_tokens"]:
        token_id = added["id"]
        # Servers leave control tokens out of the text they send; speech is read from that text, so its codes are none.
        control = added["special"] and layout.slot_of(token_id) is None
        tokens[token_id], types[token_id] = added["content"], kinds.CONTROL if control else kinds.USER_DEFINED
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre(pre_tokenizer(data))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]])
    writer.add_bos_token_id(layout.bos)
    writer.add_eos_token_id(layout.end_of_speech)  # so that other programs stop there too
    writer.add_pad_token_id(layout.pad)
    writer.add_add_bos_token(False)  # a prompt has its one BOS in its second place


def pre_tokenizer(data: dict[str, Any]) -> str:
    """llama.cpp's name for the way a tokenizer.json splits text. UserError if it has none."""
    parts = data["pre_tokenizer"] or {}
    parts = parts.get("pretokenizers", [parts])
    splits = [p["pattern"].get("Regex") for p in parts if p.get("type") == "Split"]
    if [p.get("use_regex") for p in parts if p.get("type") == "ByteLevel"] == [True] and not splits:
        splits = ["byte level"]
    names = PRE_TOKENIZERS.get(splits[0]) if len(splits) == 1 else None
    name = names[0 if data["model"].get("ignore_merges") else 1] if names else None
    if data["model"]["type"] != "BPE" or data["normalizer"] or name is None:
        raise UserError("the base's tokenizer splits text in a way that llama.cpp does not have: use --to merged")
    return name


def quantise(source: Path, target: Path, kind: GgufType, threads: int) -> list[str]:
    """Quantise a plain .gguf file with llama.cpp's own quantiser.

    Returns what it said of tensors that could not have the type asked for: K types take rows of 256, and narrower ones
    get the next larger type. UserError if it fails; nothing is left then.
    """
    api = llama_cpp()
    options = api.llama_model_quantize_default_params()
    options.nthread, options.ftype = threads, getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind}")
    del log_lines[:]
    if api.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options)):
        target.unlink(missing_ok=True)
        raise UserError(f"llama.cpp can't quantise to {kind}: {reason()}")
    return [text for _, text in log_lines if "fallback" in text]
