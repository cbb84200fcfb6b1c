"""Write a trained voice as one model that other programs and other engines can run.

    python -m orpheus export --adapter lora_model --to merged --out merged_model
    python -m orpheus export --adapter lora_model --to merged --dtype 4bit --out small_model
    python -m orpheus export --adapter lora_model --to gguf --type Q4_K_M --out voice.gguf
    python -m orpheus export --preset tiny --to gguf --type Q8_0 --out tiny.gguf      # the base model alone

The adapter is folded into the unquantised base. What was written is then checked against base and adapter; only an
export that passes takes its name.
"""

from __future__ import annotations

import logging
import math
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from orpheus.adapter import adapter_folder, attach_adapter, merge
from orpheus.config import DEFAULT_PROMPTS, PresetName, check_ranges, resolve_preset
from orpheus.engines.choose import known_of
from orpheus.engines.llamacpp_model import core_count, llama_cpp
from orpheus.engines.trtllm import write_tensorrt_llm
from orpheus.errors import UserError, disk_errors
from orpheus.export_check import Spoken, compare, speak, told
from orpheus.gguf_file import PLAIN, GgufType, PlainType, check_exportable, gguf, quantise, write_gguf
from orpheus.model import LoadedModel, has_gpu, load_base
from orpheus.prompt import Renderer
from orpheus.provenance import Provenance, versions, write_json

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
        return replace(made, codec=self.codec, codec_identity=identity, merged_from=merged, versions=versions())


def main(options: ExportOptions) -> None:
    """Source -> merged model -> file or folder -> check -> its name."""
    name = f"voice-{options.type}.gguf" if options.to == "gguf" else options.to
    out = options.out or Path("exported") / name
    source = find_source(options)
    with disk_errors(f"can't write {out}", "free some space or choose another --out"), unfinished(out) as partial:
        export = export_gguf if options.to == "gguf" else export_merged
        record = export(source, partial, options)
        if options.to == "tensorrt-llm":
            write_tensorrt_llm(partial)
    write_json(out.with_name(f"{out.name}.check.json"), record)
    size = sum(f.stat().st_size for f in ([out] if out.is_file() else out.iterdir()))
    print(f"{out}: {size / 1e9:.3f} GB. Speak with it:  python inference.py --adapter None --base {out}")


def find_source(options: ExportOptions) -> Source:
    """What the options name. UserError if that is nothing, or not enough."""
    folder = adapter_folder(options.adapter) if options.adapter else None
    base, codec, made = options.base, options.codec, Provenance.load(folder) if folder else None
    if folder:
        base = base or (made.base if made else None)
    elif base is None:
        if options.preset == "auto":
            raise UserError("name what to export: --adapter lora_model, or a base alone with --base or --preset")
        preset = resolve_preset(options.preset, has_gpu())
        base, codec = preset.base, codec or preset.codec
    made = made or known_of(base)
    codec = codec or (made.codec if made else None)
    if not base or not codec:
        missing = " and ".join(n for n, v in (("--base", base), ("--codec", codec)) if not v)
        raise UserError(
            f"'{options.adapter or base}' has no orpheus.json that tells its base and codec: give {missing}"
        )
    return Source(base, folder, codec, made, options.device)


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """A folder beside `out` to work in. What the block leaves there as `out.name` takes its place when it ends well.

    Whatever happens, `out` is whole or not there, and nothing else is left. UserError if it exists already.
    """
    if out.exists():
        raise UserError(f"{out} exists already: choose another --out, or delete it")
    folder = out.with_name(f".{secrets.token_hex(6)}.partial")
    try:
        folder.mkdir(parents=True)
        yield folder / out.name
        (folder / out.name).replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- the two forms ----


def export_merged(source: Source, out: Path, options: ExportOptions) -> dict[str, Any]:
    """Write a folder with safetensors, tokenizer and provenance. Returns the figures of the check."""
    import torch

    in_4bit = options.dtype == "4bit"
    if in_4bit and options.to == "tensorrt-llm":
        raise UserError("TensorRT-LLM can't read bitsandbytes' 4 bit: leave out --dtype 4bit")
    loaded, made = merged(source, torch.bfloat16 if in_4bit else getattr(torch, options.dtype))
    prompts = check_prompts(loaded, made)
    whole = out.with_name("whole") if in_4bit else out
    save_model(loaded, made, whole)
    del loaded
    if in_4bit:
        save_model(load_base(str(whole), load_in_4bit=True, backend="transformers", device=source.device,
                             dtype=torch.bfloat16), made, out)  # fmt: skip
        shutil.rmtree(whole)
    if not options.check:
        return {"checked": False}
    from orpheus.engines.torch_engine import TorchEngine

    again = load_base(str(out), load_in_4bit=False, backend="transformers", device=source.device)
    spoken = speak(TorchEngine(again), torch_scores(again), prompts)
    del again
    return checked(source, spoken, options.dtype)


def save_model(loaded: LoadedModel, made: Provenance, folder: Path) -> None:
    """Write a model to a folder, with its tokenizer and what it says of itself."""
    # So that other programs stop there too.
    loaded.model.generation_config.eos_token_id = loaded.layout.end_of_speech
    loaded.model.save_pretrained(folder, safe_serialization=True)
    loaded.tokenizer.save_pretrained(folder)
    made.save(folder)


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
    from orpheus.engines.llamacpp_engine import LlamaCppEngine
    from orpheus.engines.llamacpp_model import LlamaCppContext, LlamaCppModel

    model = LlamaCppModel(path, threads=threads)

    def scores(ids: Sequence[int]) -> np.ndarray:
        return LlamaCppContext(model, len(ids), exact=True).feed(ids, every=True)

    return speak(LlamaCppEngine(model, exact=True), scores, prompts)


# ---- what both need ----


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
