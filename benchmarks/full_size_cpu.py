"""What a model of the published size needs on a CPU: memory, time to load, tokens per second.

    python data/make/make_full_size.py --out work/full
    python benchmarks/full_size_cpu.py --base work/full/base --codec work/full/codec

Every mode runs in a process of its own (so its peak memory is its own) and goes through the project's loading and
generation: a prompt, some tokens at the default sampling, the codec. On shared cores look at the processor seconds:
they are counted over all threads and hardly change when others compute too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, ROOT, Span, describe, own_memory_bytes, peak_rss_bytes, timed, without_paths
from orpheus.cli import run
from orpheus.config import DEFAULT_PROMPTS, SamplingOptions
from orpheus.errors import UserError
from orpheus.model.provenance import write_json

MODES = ("default", "bfloat16", "float32", "4bit", "4bit-bfloat16")
TIME_LIMIT_S = 3600


@dataclass(frozen=True)
class Options:
    """Load a base on a CPU in several ways and speak a few frames with each."""

    base: str = "work/full/base"
    """Folder of the base model."""
    codec: str = "work/full/codec"
    """Folder of the codec."""
    modes: tuple[str, ...] = ("default", "4bit")
    """How to load it: default, bfloat16, float32 (16 or 32 bit), 4bit, 4bit-bfloat16 (arithmetic in 16 bit)."""
    tokens: int = 28
    """Tokens to generate; 7 are a frame."""
    out: Path = RESULTS / "full_size_cpu.json"
    """Where the figures go; those of other bases and modes in it are kept."""
    name: str = "full"
    """What the figures are filed under."""
    single: bool = False
    """Internal: run one mode in this process and print its figures."""


def measure(options: Options) -> dict[str, Any]:
    """The figures of one mode, measured in this process."""
    import torch

    from orpheus.codec.snac import SnacCodec
    from orpheus.engines.torch.engine import TorchEngine
    from orpheus.format.prompt import Renderer
    from orpheus.model.base import load_base, pack_for_inference

    (mode,) = options.modes
    dtype = getattr(torch, mode.removeprefix("4bit-"), None)
    with timed() as load:
        loaded = load_base(options.base, load_in_4bit=mode.startswith("4bit"), device="cpu", dtype=dtype)
        pack_for_inference(loaded)
    loaded_rss = peak_rss_bytes()
    prompt = Renderer(loaded.tokenizer, loaded.layout).prompt(DEFAULT_PROMPTS[0])
    stream = TorchEngine(loaded).stream([prompt], SamplingOptions(max_new_tokens=options.tokens), [1])
    with timed() as first:
        ids = [next(stream)[1]]
    with timed() as rest:
        ids += [token for _, token in stream]
    codes, stop = loaded.layout.unflatten(ids)
    codec = SnacCodec.load(options.codec)
    with timed() as decode:
        audio = codec.decode(codes)

    def per_s(count: int, span: Span) -> dict[str, float]:
        return {"wall": round(count / span.wall_s, 2), "processor": round(count / span.cpu_s, 2)}

    return {
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "dtype": str(loaded.model.get_input_embeddings().weight.dtype).removeprefix("torch."),
        "in_4bit": loaded.in_4bit,
        "threads": torch.get_num_threads(),
        "load_s": round(load.wall_s, 1),
        "load_processor_s": round(load.cpu_s, 1),
        "peak_rss_gb_after_load": round(loaded_rss / 1e9, 2),
        "peak_rss_gb": round(peak_rss_bytes() / 1e9, 2),
        "own_gb_at_the_end": round((own_memory_bytes() or 0) / 1e9, 2) or None,
        "prompt_tokens": len(prompt),
        "first_token_s": round(first.wall_s, 2),
        "tokens": len(ids),
        "tokens_per_s": per_s(len(ids) - 1, rest) if len(ids) > 1 else None,
        "stop": str(stop),
        "frames": codes.frames,
        "audio_s": round(len(audio) / codec.sample_rate_hz, 3),
        "codec_decode_s": round(decode.wall_s, 2),
    }


def main(options: Options) -> None:
    """Run each mode in a process of its own and write the figures."""
    wrong = sorted(set(options.modes) - set(MODES))
    if wrong or not options.modes:
        raise UserError(f"modes {', '.join(wrong) or 'none'}: expected some of {', '.join(MODES)}")
    if options.single:
        print(json.dumps(measure(options)))
        return
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    for mode in options.modes:
        print(f"{options.name}, {mode}: ", end="", flush=True)
        command = [sys.executable, __file__, "--single", "--modes", mode, "--tokens", str(options.tokens)]
        command += ["--base", options.base, "--codec", options.codec]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, cwd=ROOT)
        if done.returncode != 0:
            raise UserError(f"mode {mode} failed: {without_paths(done.stderr.strip()[-300:])}")
        figures = json.loads(done.stdout.splitlines()[-1])
        print(f"{figures['peak_rss_gb']} GB, loaded in {figures['load_s']} s, {figures['tokens_per_s']} tokens/s")
        results.setdefault(options.name, {})[mode] = figures | describe()
        write_json(options.out, results)
    print(f"figures: {options.out}")


if __name__ == "__main__":
    run(main, Options, __doc__)
