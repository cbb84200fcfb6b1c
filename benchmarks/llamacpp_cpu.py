"""How fast llama.cpp speaks on a CPU with a base of the published size, and what it needs.

    python data/make/make_full_size.py --out work/full
    python -m orpheus export --to gguf --base work/full/base --codec work/full/codec --out work/Q4_K_M.gguf
    python benchmarks/llamacpp_cpu.py --files work/Q4_K_M.gguf --threads 1 2

Every file and number of threads runs in a process of its own and goes through the project's engine, sampling included.
On shared cores look at the processor seconds: they are counted over all threads, and 82 tokens are a second of speech.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, ROOT, describe, own_memory_bytes, peak_rss_bytes, timed, without_paths
from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.cli import run
from orpheus.codec.snac import SAMPLES_PER_FRAME
from orpheus.config import DEFAULT_PROMPTS, SamplingOptions
from orpheus.errors import UserError
from orpheus.format.tokens import FRAME_SLOTS, ORPHEUS
from orpheus.model.provenance import write_json

TIME_LIMIT_S = 1800


@dataclass(frozen=True)
class Options:
    """Open .gguf files with llama.cpp and speak some frames with each."""

    files: tuple[str, ...] = ("work/Q4_K_M.gguf",)
    """The files, named by their type."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads to try."""
    tokens: int = 84
    """Tokens to generate; 7 are a frame."""
    out: Path = RESULTS / "llamacpp_cpu.json"
    """Where the figures go; those of other files in it are kept."""
    single: bool = False
    """Internal: measure the one file with the one number of threads in this process."""


def measure(path: Path, threads: int, tokens: int) -> dict[str, Any]:
    """The figures of one file, measured in this process. The codec is not among them."""
    from orpheus.engines.llamacpp.engine import LlamaCppEngine
    from orpheus.engines.llamacpp.model import LlamaCppModel
    from orpheus.format.prompt import Renderer

    with timed() as load:
        model = LlamaCppModel(path, threads=threads)
    prompt = Renderer(model.tokenizer, model.layout).prompt(DEFAULT_PROMPTS[0])
    engine = LlamaCppEngine(model)
    # Framed and in as many utterances as it takes: random weights end early.
    sampling = SamplingOptions(max_new_tokens=tokens, decoding="framed")
    first_s, drawn, wall_s, cpu_s, seed = 0.0, 0, 0.0, 0.0, 0
    while drawn < tokens:
        stream = engine.stream([prompt], sampling, [seed])
        with timed() as first:
            next(stream)
        first_s = first_s or first.wall_s  # later prompts are in the cache already
        with timed() as rest:
            count = sum(1 for _ in stream)
        drawn, wall_s, cpu_s, seed = drawn + count, wall_s + rest.wall_s, cpu_s + rest.cpu_s, seed + 1
    real_time = SAMPLE_RATE_HZ / SAMPLES_PER_FRAME * FRAME_SLOTS  # tokens a second
    return {
        "model": model.description,
        "file_gb": round(path.stat().st_size / 1e9, 3),
        "threads": threads,
        "load_s": round(load.wall_s, 1),
        "prompt_tokens": len(prompt),
        "first_token_s": round(first_s, 2),
        "tokens": drawn,
        "utterances": seed,
        "tokens_per_s": round(drawn / wall_s, 2),
        "tokens_per_processor_s": round(drawn / cpu_s, 2),
        "realtime_factor": round(real_time * wall_s / drawn, 2),
        "peak_rss_gb": round(peak_rss_bytes() / 1e9, 2),
        "own_gb": round((own_memory_bytes() or 0) / 1e9, 2) or None,
    }


def draw_ms(vocabulary: int, spread: float, rounds: int = 50) -> dict[str, float]:
    """Processor milliseconds of one draw from all ids: ours, and by llama.cpp's sampler with the same settings.

    spread: of the random scores; at 1 the nucleus holds thousands of ids, at 3 some tens, as in speech.
    """
    import ctypes

    import numpy as np
    import torch

    from orpheus.engines.llamacpp.model import llama_cpp
    from orpheus.engines.sampling import SeenIds, sample

    api, scores = llama_cpp(), np.random.default_rng(0).normal(scale=spread, size=vocabulary).astype(np.float32)
    settings = SamplingOptions()
    seen = SeenIds([list(range(400))], 400, "cpu", None)
    uniform = torch.tensor([0.5], dtype=torch.float64)

    def ours() -> None:
        sample(seen.penalise(torch.from_numpy(scores.copy())[None], settings.repetition_penalty), settings, uniform)

    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    for part in (api.llama_sampler_init_penalties(vocabulary, 400, settings.repetition_penalty, 0.0, 0.0),
                 api.llama_sampler_init_temp(settings.temperature), api.llama_sampler_init_top_p(settings.top_p, 1),
                 api.llama_sampler_init_dist(1)):  # fmt: skip
        api.llama_sampler_chain_add(chain, part)
    data = (api.llama_token_data * vocabulary)()
    rows = np.frombuffer(data, dtype=[("id", "<i4"), ("score", "<f4"), ("p", "<f4")])

    def theirs() -> None:
        rows["id"], rows["score"], rows["p"] = np.arange(vocabulary), scores, 0
        found = api.llama_token_data_array(data=data, size=vocabulary, selected=-1, sorted=False)
        api.llama_sampler_apply(chain, ctypes.byref(found))
        api.llama_sampler_accept(chain, data[found.selected].id)

    figures = {}
    for name, run_once in (("ours", ours), ("llama.cpp", theirs)):
        run_once()
        with timed() as span:
            for _ in range(rounds):
                run_once()
        figures[name] = round(1000 * span.cpu_s / rounds, 2)
    return figures


def main(options: Options) -> None:
    """Measure each file with each number of threads and write the figures."""
    if options.single:
        print(json.dumps(measure(Path(options.files[0]), options.threads[0], options.tokens)))
        return
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    for file in options.files:
        for threads in options.threads:
            command = [sys.executable, __file__, "--single", "--files", file, "--threads", str(threads)]
            done = subprocess.run([*command, "--tokens", str(options.tokens)], capture_output=True, text=True,
                                  timeout=TIME_LIMIT_S, cwd=ROOT)  # fmt: skip
            if done.returncode != 0:
                raise UserError(f"{file} failed: {without_paths(done.stderr.strip()[-300:])}")
            figures = json.loads(done.stdout.splitlines()[-1])
            print(f"{Path(file).stem}, {threads} threads: {figures['tokens_per_s']} tokens/s, "
                  f"{figures['tokens_per_processor_s']} a processor second, {figures['peak_rss_gb']} GB")  # fmt: skip
            about = describe()
            about["command"] = without_paths(about["command"], Path(file).resolve().parent)
            results.setdefault(Path(file).stem, {})[f"{threads} threads"] = figures | about
            write_json(options.out, results)
    results["draw_ms"] = {f"spread {s}": draw_ms(ORPHEUS.audio_end, s) for s in (1, 3)}
    write_json(options.out, results)
    print(f"figures: {options.out}")
    print(json.dumps(results))


if __name__ == "__main__":
    run(main, Options, __doc__)
