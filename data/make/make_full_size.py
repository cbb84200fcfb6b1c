"""Write stand-ins of the published size with RANDOM weights: for speed and memory. They speak no words.

    python data/make/make_full_size.py --out work/full                    # base (6.6 GB) and codec (80 MB)
    python data/make/make_full_size.py --out work/mid --layers 4          # the real width and vocabulary, 1.8 GB

`OUT/base` is a Llama of Orpheus-3B's shape with its token ids, `OUT/codec` a SNAC of the published shape. Both load as
the real ones do, take the same memory and compute as fast; what they say is noise. So loading, training, exporting and
speaking can be tried, and their speed and memory measured, on a machine that cannot reach the model hub.

The base is random but for a *clockwork* in its last layer: nine neurons that see which slot the last token belongs to
and raise the next slot's tokens. So it draws whole frames of random codes, and ends like the real one: after any frame
it may say end_of_speech, mostly within some tens of them (at temperature 0 after the first; at a high one it leaves the
slots).

Weights are written in pieces, so memory stays small whatever the size. Each tensor has a generator of its own: the
same seed gives the same bytes, on any number of workers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from tiny_tokenizer import SPLIT

from orpheus.audio.recordings import atomic_path
from orpheus.cli import one_line_errors
from orpheus.errors import UserError
from orpheus.format.tokens import CODEBOOK_SIZE, CUSTOM_TOKEN, FRAME_SLOTS, ORPHEUS
from orpheus.model.provenance import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The published config, as derivatives of canopylabs/orpheus-3b-0.1-ft carry it: Llama-3.2-3B with a larger vocabulary.
BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 156940, "tie_word_embeddings": True,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": False,
    "attention_dropout": 0.0, "mlp_bias": False, "initializer_range": 0.02, "use_cache": True, "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192},
    "bos_token_id": ORPHEUS.bos, "eos_token_id": ORPHEUS.bos + 1, "pad_token_id": ORPHEUS.pad,
    "transformers_version": "4.46.0",  # without one, transformers 5 warns of a faulty Mistral tokenizer
}  # fmt: skip
# The config of hubertsiuzdak/snac_24khz.
CODEC: dict[str, Any] = {
    "sampling_rate": 24000, "encoder_dim": 48, "encoder_rates": [2, 4, 8, 8], "decoder_dim": 1024,
    "decoder_rates": [8, 8, 4, 2], "attn_window_size": None, "codebook_size": CODEBOOK_SIZE, "codebook_dim": 8,
    "vq_strides": [4, 2, 1], "noise": True, "depthwise": True,
}  # fmt: skip

SHARD_BYTES = 10**9
PIECE = 2**22  # numbers drawn at a time: 16 MB as float32
WARNING = "random weights, for speed and memory: what it says is noise"


# ---- the base's weights ----


class Clockwork:
    """The part of the weights that is no noise: coordinates of the hidden state that only these weights touch.

    One coordinate for each slot, one for start_of_speech and one for 'may end here', the last of the hidden state. A
    token's row has `height` at its own coordinate; all layers leave them alone but the last MLP, where a neuron for
    each coordinate writes the next one. The final score is `MARGIN` for every token of the next slot, and the noise
    around it draws among them.
    """

    COUNT = FRAME_SLOTS + 2
    START, END = FRAME_SLOTS, FRAME_SLOTS + 1
    MARGIN = 40.0  # score of the slot that is due over all others: at temperature 0.6 nothing else is ever drawn
    END_SCORE = 2.8  # end_of_speech over a mean code of slot 0: above the best of 4096, so that greedy takes it
    GAIN = 10.0  # of a neuron: silu(10 x) is x or 0, nearly
    SHARE = 0.7  # of the last hidden state's norm that the clock makes; the rest is noise

    def __init__(self, config: dict[str, Any]) -> None:
        self.first = config["hidden_size"] - self.COUNT
        self.last_layer = config["num_hidden_layers"] - 1
        # The final norm makes the hidden state sqrt(hidden) long: that times share and height is the score.
        root = math.sqrt(config["hidden_size"])
        self.height = self.MARGIN / (self.SHARE * root)
        self.written = root * self.SHARE / math.sqrt(1 - self.SHARE**2)  # over noise of size 1 a coordinate

    def apply(self, name: str, rows: np.ndarray, start: int) -> None:
        """Set this piece of the tensor `name`, float32 [n, columns], its rows from `start` on, in place."""
        clock = slice(self.first, None)
        here = range(start, start + len(rows))
        if name == "model.embed_tokens.weight":
            rows[:, clock] = 0
            for slot in range(FRAME_SLOTS):
                ids = ORPHEUS.slot_range(slot)
                rows[max(0, ids.start - start) : max(0, ids.stop - start), self.first + slot] = self.height
            for token, coordinate in ((ORPHEUS.start_of_speech, self.START), (ORPHEUS.end_of_speech, 0),
                                      (ORPHEUS.end_of_speech, self.END)):  # fmt: skip
                if token in here:
                    rows[token - start, self.first + coordinate] = self.height
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            for row in set(here) & set(range(self.first, self.first + self.COUNT)):
                rows[row - start] = 0
        if f".{self.last_layer}.mlp." not in name:
            return
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            for neuron in set(here) & set(range(self.COUNT)):
                rows[neuron - start] = 0
                rows[neuron - start, self.first + neuron] = self.GAIN
            return
        rows[:, : self.COUNT] = 0
        # A neuron gives the square of what it reads, which the norm before it has made shorter.
        shorter = 1 + self.height**2 / (self.first + self.COUNT)
        scale = self.written * shorter / (self.GAIN * self.height) ** 2
        for neuron, target, factor in self._wheel():
            if self.first + target in here:
                rows[self.first + target - start, neuron] = factor * scale

    def _wheel(self) -> Iterator[tuple[int, int, float]]:
        """(neuron, coordinate it writes, factor)."""
        for slot in range(FRAME_SLOTS):
            yield slot, (slot + 1) % FRAME_SLOTS, 1.0
            yield slot, slot, -self.height / self.written  # its own turn is over
        yield self.START, 0, 1.0
        yield self.START, self.END, -1.0  # speech may not end before it began,
        yield FRAME_SLOTS - 1, self.END, self.END_SCORE / self.MARGIN  # but after any whole frame


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the base by name; the output head is the embedding (tied), so it is not among them."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    heads, kv = (config[n] * config["head_dim"] for n in ("num_attention_heads", "num_key_value_heads"))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        part = f"model.layers.{layer}"
        for name, rows, columns in (("q", heads, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, heads)):
            shapes[f"{part}.self_attn.{name}_proj.weight"] = (rows, columns)
        for name, rows, columns in (("gate", ffn, hidden), ("up", ffn, hidden), ("down", hidden, ffn)):
            shapes[f"{part}.mlp.{name}_proj.weight"] = (rows, columns)
        shapes[f"{part}.input_layernorm.weight"] = shapes[f"{part}.post_attention_layernorm.weight"] = (hidden,)
    return shapes | {"model.norm.weight": (hidden,)}


def pieces(name: str, shape: tuple[int, ...], config: dict[str, Any], seed: int) -> Iterator[np.ndarray]:
    """The tensor as bfloat16 bits (uint16), some rows at a time.

    Numbers are normal with variance 1 / inputs, so that all activations stay near 1; what the layers add to the hidden
    state is scaled to a sum near 1.
    """
    if len(shape) == 1:
        yield to_bfloat16(np.ones(shape, np.float32))  # a norm's weight
        return
    clockwork = Clockwork(config)
    generator = np.random.default_rng((seed, zlib.crc32(name.encode())))
    deviation = 1 / math.sqrt(shape[1])
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        deviation *= 1.2 / math.sqrt(config["num_hidden_layers"])
    step = max(1, PIECE // shape[1])
    for start in range(0, shape[0], step):
        rows = generator.standard_normal((min(step, shape[0] - start), shape[1]), np.float32)
        rows *= deviation
        clockwork.apply(name, rows, start)
        yield to_bfloat16(rows)


def to_bfloat16(numbers: np.ndarray) -> np.ndarray:
    """Float32 to the bits of bfloat16 (uint16), rounded to nearest, ties to even. Changes `numbers`."""
    bits = numbers.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).astype(np.uint16)


def write_base(folder: Path, config: dict[str, Any], seed: int, workers: int, progress: bool = True) -> None:
    """Write config.json, safetensors shards with their index, and the tokenizer. The index comes last."""
    from tqdm import tqdm

    shapes = tensor_shapes(config)
    sizes = {name: 2 * math.prod(shape) for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name in shapes:
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + sizes[name] > SHARD_BYTES:
            shards.append([])
        shards[-1].append(name)
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    write_json(folder / "config.json", config)
    write_tokenizer(folder, config["vocab_size"])
    total = sum(sizes.values())
    with tqdm(total=total, desc="base", unit="B", unit_scale=True, disable=not progress) as bar:

        def write(file: str, names: list[str]) -> None:
            with atomic_path(folder / file) as partial, partial.open("wb") as out:
                out.write(safetensors_header({name: shapes[name] for name in names}))
                for name in names:
                    for piece in pieces(name, shapes[name], config, seed):
                        out.write(piece)  # little-endian, as safetensors wants it and every machine we know has it
                        bar.update(piece.nbytes)

        with ThreadPoolExecutor(workers) as pool:  # NumPy draws and rounds outside Python's lock
            list(pool.map(write, files, shards))
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    write_json(folder / "README.json", {"note": WARNING, "seed": seed, "made_by": "data/make/make_full_size.py"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def safetensors_header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """The start of a safetensors file of bfloat16 tensors: its length (uint64), then JSON padded to 8 bytes.

    Source: huggingface/safetensors, README, "Format".
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


# ---- the base's tokenizer ----

# Llama 3's control tokens in order (meta-llama/llama-models); "" stands for the next <|reserved_special_token_N|>.
CONTROL = ("<|begin_of_text|>", "<|end_of_text|>", "", "", "<|finetune_right_pad_id|>", "", "<|start_header_id|>",
           "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>")  # fmt: skip
LETTERS = "\u0120etaoinshrdlcumwfgypbvkjxqz"  # by frequency in English; \u0120 is byte-level BPE's space


def build_tokenizer(vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with the published ids for everything but words.

    The text pieces are the 256 bytes, all pairs of letters, then pairs of pairs until there are as many as Llama has
    (so English takes about twice as many tokens as with Llama's own). Then Llama's 256 control tokens, then
    <custom_token_k>.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [a + b for a, b in product(LETTERS, repeat=2) if b != LETTERS[0]]
    merges = [(p[0], p[1]) for p in pairs]
    # The most frequent first: the sum of two ranks orders them.
    ranked = sorted(product(range(len(pairs)), repeat=2), key=sum)
    quads = ((pairs[i], pairs[j]) for i, j in ranked if LETTERS[0] not in pairs[j])
    merges += islice(quads, ORPHEUS.bos - len(pieces) - len(pairs))
    vocabulary = {piece: i for i, piece in enumerate(pieces + [a + b for a, b in merges])}
    if len(vocabulary) != ORPHEUS.bos:
        raise AssertionError(f"{len(vocabulary)} text pieces, expected {ORPHEUS.bos}")
    reserved = iter(range(ORPHEUS.custom_start))
    control = [CONTROL[i] if i < len(CONTROL) and CONTROL[i] else f"<|reserved_special_token_{next(reserved)}|>"
               for i in range(ORPHEUS.custom_start - ORPHEUS.bos)]  # fmt: skip
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    custom = [CUSTOM_TOKEN.format(k) for k in range(vocabulary_size - ORPHEUS.custom_start)]
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in custom])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{control[0]} $A",
        pair=f"{control[0]} $A {control[0]} $B",
        special_tokens=[(control[0], ORPHEUS.bos)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=control[0],
        eos_token="<|eot_id|>",
        pad_token=CUSTOM_TOKEN.format(ORPHEUS.pad - ORPHEUS.custom_start),
        model_max_length=BASE["max_position_embeddings"],
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def write_tokenizer(folder: Path, vocabulary_size: int) -> None:
    """tokenizer.json and tokenizer_config.json."""
    build_tokenizer(vocabulary_size).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    # transformers 5 writes a class name that earlier versions and other engines don't know.
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"})


# ---- the codec ----


def write_codec(folder: Path, seed: int) -> None:
    """config.json and model.safetensors of a SNAC with the published shape, float32."""
    import torch
    from safetensors.torch import save_file
    from snac import SNAC

    torch.manual_seed(seed)
    weights = SNAC(**CODEC).state_dict()
    with atomic_path(folder / "model.safetensors") as partial:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial)
    write_json(folder / "README.json", {"note": WARNING, "seed": seed, "made_by": "data/make/make_full_size.py"})
    write_json(folder / "config.json", CODEC)


# ---- the program ----


def prepare_folder(folder: Path, needed_bytes: int, overwrite: bool) -> None:
    """An empty folder with room for `needed_bytes`; UserError if it holds files (unless `overwrite`) or is too full."""
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise UserError(f"{folder} exists and is not empty: choose another --out, or give --overwrite")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 1.05 * needed_bytes:
        raise UserError(f"{folder} needs {needed_bytes / 1e9:.1f} GB and has {free / 1e9:.1f} GB free: free some space")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for base/ and codec/")
    parser.add_argument("--what", choices=("base", "codec", "both"), default="both")
    parser.add_argument("--layers", type=int, default=BASE["num_hidden_layers"], help="layers of the base (default 28)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="shards written at once")
    parser.add_argument("--overwrite", action="store_true", help="delete what is in OUT/base and OUT/codec first")
    args = parser.parse_args()
    with one_line_errors():
        if args.layers < 1 or args.workers < 1 or args.seed < 0:
            raise UserError("--layers and --workers are 1 or more, --seed 0 or more")
        config = BASE | {"num_hidden_layers": args.layers}
        parameters = sum(math.prod(shape) for shape in tensor_shapes(config).values())
        if args.what != "codec":
            prepare_folder(args.out / "base", 2 * parameters, args.overwrite)
        if args.what != "base":
            prepare_folder(args.out / "codec", 10**8, args.overwrite)
            write_codec(args.out / "codec", args.seed)
            print(f"{args.out / 'codec'}: SNAC 24 kHz; {WARNING}")
        if args.what != "codec":
            write_base(args.out / "base", config, args.seed, args.workers)
            print(f"{args.out / 'base'}: {parameters:,} parameters; {WARNING}")


if __name__ == "__main__":
    main()
