"""Write a trained voice as one model that other programs and other engines can run.

    orpheus export --adapter lora_model --to merged --out merged_model
    orpheus export --adapter lora_model --to merged --dtype 4bit --out small_model
    orpheus export --adapter lora_model --to gguf --type Q4_K_M --out voice.gguf
    orpheus export --preset tiny --to gguf --type Q8_0 --out tiny.gguf                # the base model alone

The adapter is folded into the unquantised base. What was written is then checked against base and adapter; only an
export that passes takes its name.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from orpheus.codec.snac import find_local
from orpheus.config import PresetName, check_ranges
from orpheus.engines.llamacpp.model import core_count, llama_cpp
from orpheus.engines.tensorrt.engine import write_tensorrt_llm
from orpheus.errors import UserError, check_folder, disk_errors
from orpheus.export.check import Spoken, speak
from orpheus.export.gguf import PLAIN, GgufType, PlainType, check_exportable, gguf, quantise, write_gguf
from orpheus.export.merged import Source, check_prompts, checked, export_merged, merged
from orpheus.model.adapter import adapter_folder, read_shapes
from orpheus.model.base import check_device, preset_of
from orpheus.model.hub import local_folder
from orpheus.model.pairs import base_of, codec_of, known_of
from orpheus.model.provenance import Provenance, write_json

log = logging.getLogger(__name__)

Target = Literal["merged", "gguf", "tensorrt-llm"]


@dataclass(frozen=True)
class ExportOptions:
    """Write a trained voice as one model: safetensors (for TensorRT-LLM too), or a .gguf file for llama.cpp."""

    to: Target = "merged"
    """merged: a folder with safetensors, tokenizer and orpheus.json. gguf: one file for llama.cpp. tensorrt-llm:
    merged, with the files that serve it."""
    out: Path | None = None
    """Where to write. Default: exported/merged, exported/tensorrt-llm or exported/voice-TYPE.gguf. What exists is never
    overwritten."""
    adapter: str | None = None
    """Folder of the trained adapter. Default: none, the base alone."""
    preset: PresetName = "auto"
    """Without an adapter, whose base: orpheus-3b (hub) or tiny (embedded)."""
    base: str | None = None
    """Unquantised base model: hub id or folder. Default: the one the adapter was trained on."""
    codec: str | None = None
    """SNAC codec that belongs to it: hub id or folder. Default: the one the adapter was trained with."""
    dtype: Literal["bfloat16", "float16", "float32", "4bit"] = "bfloat16"
    """merged: how numbers are stored. 4bit: the layers' in NF4 (bitsandbytes), merged in bfloat16 before."""
    type: GgufType = "Q4_K_M"
    """gguf: how numbers are stored: about 5, 6, 7, 9, 16, 16 or 32 bits each."""
    device: str = "auto"
    """Where merging and checking are computed: auto, cpu, cuda or cuda:N."""
    threads: int = 0
    """gguf: processor threads for quantising and checking; 0: all cores that this process may use."""
    check: bool = True
    """Compare with the source, and speak 50 frames, before the export takes its name."""

    def __post_init__(self) -> None:
        check_ranges(self, threads=(0, math.inf))


def main(options: ExportOptions) -> None:
    """Source -> merged model -> file or folder -> check -> its name."""
    if options.to == "tensorrt-llm" and options.dtype == "4bit":
        raise UserError("TensorRT-LLM can't read bitsandbytes' 4 bit: leave out --dtype 4bit")
    name = f"voice-{options.type}.gguf" if options.to == "gguf" else options.to
    out = options.out or Path("exported") / name
    source = check(options, out)
    with disk_errors(f"can't write {out}", "free some space or choose another --out"), unfinished(out) as partial:
        if options.to == "gguf":
            record = export_gguf(source, partial, options)
        else:
            record = export_merged(source, partial, options.dtype, options.check)
        if options.to == "tensorrt-llm":
            write_tensorrt_llm(partial)
    write_json(out.with_name(f"{out.name}.check.json"), record)
    size = sum(f.stat().st_size for f in ([out] if out.is_file() else out.iterdir()))
    print(f"{out}: {size / 1e9:.3f} GB. Speak with it:  python inference.py --no-adapter --base {out}")


def check(options: ExportOptions, out: Path) -> Source:
    """What the options name. UserError for what can't work, before PyTorch is loaded."""
    check_device(options.device)
    refuse_existing(out)
    check_folder(out.parent, "the folder of --out")
    source = find_source(options)
    local_folder(source.base, "base model")
    find_local(source.codec)
    if source.folder:
        read_shapes(source.folder)
    return source


def refuse_existing(out: Path) -> None:
    """UserError for what is there already."""
    if os.path.lexists(out):
        raise UserError(f"{out} exists already: choose another --out, or delete it")


def find_source(options: ExportOptions) -> Source:
    """What the options name. UserError if that is nothing, or not enough."""
    folder = adapter_folder(options.adapter) if options.adapter else None
    base, codec, made = options.base, options.codec, Provenance.load(folder) if folder else None
    if folder:
        base = base or base_of(folder)
    elif base is None:
        if options.preset == "auto":
            raise UserError("name what to export: --adapter lora_model, or a base alone with --base or --preset")
        base = preset_of(options.preset).base
    if not base:
        raise UserError(f"the adapter in '{folder}' does not say which base it belongs to: name it with --base")
    made = made or known_of(base)
    codec = codec or (made.codec if made else codec_of(base))
    return Source(base, folder, codec, made, options.device)


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """A folder beside `out` to work in. What the block leaves there as `out.name` takes its place when it ends well.

    Whatever happens, `out` is whole or not there, and nothing else is left. UserError if it exists already.
    """
    refuse_existing(out)
    folder = out.with_name(f".{secrets.token_hex(6)}.partial")
    try:
        folder.mkdir(parents=True)
        yield folder / out.name
        (folder / out.name).replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def export_gguf(source: Source, out: Path, options: ExportOptions) -> dict[str, Any]:
    """Write a .gguf file. Returns the figures of the check."""
    import torch

    gguf()  # what is missing is said before the work begins
    if options.check or options.type not in PLAIN:
        llama_cpp()
    # What is quantised afterwards is kept in float16 till then: eight times as fine as bfloat16.
    plain: PlainType = next((kind for kind in PLAIN if kind == options.type), "F16")
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    loaded, made = merged(source, dtypes[plain])
    check_exportable(loaded)
    prompts = check_prompts(loaded, made)
    whole = out if plain == options.type else out.with_suffix(".plain")
    write_gguf(loaded, made, whole, plain)
    del loaded
    notes: list[str] = []
    if whole != out:
        notes = quantise(whole, out, options.type, options.threads or core_count())
        whole.unlink()
    for note in notes:
        log.info("llama.cpp: %s", note)
    if not options.check:
        return {"checked": False, "quantiser": notes}
    return checked(source, speak_gguf(out, options.threads, prompts), options.type) | {"quantiser": notes}


def speak_gguf(path: Path, threads: int, prompts: Sequence[list[int]]) -> Spoken:
    """Let a .gguf file speak, with a cache in 32 bit: what is checked is the file."""
    from orpheus.engines.llamacpp.engine import LlamaCppEngine
    from orpheus.engines.llamacpp.model import LlamaCppContext, LlamaCppModel

    model = LlamaCppModel(path, threads=threads)

    def scores(ids: Sequence[int]) -> np.ndarray:
        return LlamaCppContext(model, len(ids), exact=True).feed(ids, every=True)

    return speak(LlamaCppEngine(model, exact=True), scores, prompts)
