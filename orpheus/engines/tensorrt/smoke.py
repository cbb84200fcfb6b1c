"""Speak one text with TensorRT-LLM and say how fast it was: a merged folder in, a WAV and a line of JSON out.

Not run by this project, which has no machine for it; its tests run it on a stand-in for the package.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from orpheus import cli
from orpheus.audio import recordings
from orpheus.codec.snac import SnacCodec
from orpheus.config import SamplingOptions
from orpheus.engines.base import Engine
from orpheus.engines.tensorrt.engine import TrtllmEngine, check_merged
from orpheus.errors import UserError
from orpheus.format.prompt import Renderer
from orpheus.format.tokens import FrameStream
from orpheus.model.base import load_tokenizer
from orpheus.model.provenance import Provenance


@dataclass(frozen=True)
class SmokeOptions:
    """What to say, whose voice, and which merged model."""

    text: str = "Hey there, <giggles> how are you?"
    """What to say."""
    voice: str | None = None
    """Whose voice; None for a model with one speaker."""
    model: Path = Path("exported/merged")
    """Folder of the merged model (orpheus export --to merged)."""
    backend: Literal["pytorch", "tensorrt"] = "pytorch"
    """tensorrt builds an engine first; TensorRT-LLM has it up to 1.2."""
    out: Path = Path("generated_audio/trtllm.wav")
    """Where the speech is written; an older file is replaced."""
    device: str = "cuda"
    """Where the codec runs."""
    seed: int = 0
    """Of the tokens and of the codec's noise."""


def main(options: SmokeOptions) -> None:
    """Load, speak twice (the first time warms up), write the second, print its figures as JSON."""
    check_merged(options.model)
    made = Provenance.load(options.model)
    if made is None:
        raise UserError(f"'{options.model}' has no orpheus.json that names its codec: export it with this toolkit")
    started = time.perf_counter()
    engine = TrtllmEngine(options.model, made.layout, backend=options.backend)
    loaded_s = time.perf_counter() - started
    codec = SnacCodec.load(made.codec, device=options.device)
    prompt = Renderer(load_tokenizer(str(options.model)), made.layout).prompt(options.text, options.voice)
    speak(engine, codec, prompt, options.seed)
    samples, figures = speak(engine, codec, prompt, options.seed)
    engine.close()
    recordings.write(options.out, samples, overwrite=True)
    print(json.dumps({"engine": engine.name, "backend": options.backend, "loaded_s": round(loaded_s, 3), **figures}))


def speak(engine: Engine, codec: SnacCodec, prompt: list[int], seed: int) -> tuple[np.ndarray, dict[str, object]]:
    """One utterance, float32 [N], and its figures. UserError if the model says nothing."""
    sampling = SamplingOptions(seed=seed)
    frames, decoder = FrameStream(engine.layout), codec.streaming(seed=seed)
    chunks: list[np.ndarray] = []
    first_token_s = first_audio_s = None
    tokens, started = 0, time.perf_counter()
    for _, token_id in engine.stream([prompt], sampling, [seed]):
        tokens += 1
        first_token_s = first_token_s or time.perf_counter() - started
        frame = frames.push(token_id)
        if frame is not None:
            chunk = decoder.push(frame)
            if len(chunk):
                chunks.append(chunk)
                first_audio_s = first_audio_s or time.perf_counter() - started
    stop = frames.finish()
    if not frames.count:
        raise UserError(f"the model produced no audio: {stop}")
    samples = np.concatenate([*chunks, decoder.finish()])
    total_s = time.perf_counter() - started
    seconds = len(samples) / recordings.SAMPLE_RATE_HZ
    figures = {
        "first_token_ms": round(1000 * (first_token_s or 0), 2),
        "first_audio_ms": round(1000 * (first_audio_s or total_s), 2),
        "tokens": tokens,
        "tokens_per_s": round(tokens / total_s, 2),
        "seconds_of_speech": round(seconds, 3),
        "realtime_factor": round(total_s / seconds, 3),
        "finish_reason": str(stop.kind),
    }
    return samples, figures


if __name__ == "__main__":
    cli.run(main, SmokeOptions, __doc__)
