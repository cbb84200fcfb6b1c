"""The steps of gpu_smoke.py. Each runs in a process of its own, through the toolkit's own code:

    python -m benchmarks.smoke.steps STEP SETTINGS       (gpu_smoke.py does this; SETTINGS is JSON)

A step returns its figures, raises `Failed` when something is not as it must be, and leaves files for later steps in the
work folder. Its last line of output is the figures as JSON.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.common import synchroniser
from benchmarks.machine import timed
from benchmarks.smoke import data as smoke_data
from benchmarks.smoke.common import Settings, check, memory
from benchmarks.smoke.compare import agree_unsloth, logits_transformers, merge_export
from orpheus.config import DEFAULT_PROMPTS, PRESETS, LoraOptions, SamplingOptions, SftOptions, filled
from orpheus.format.tokens import FRAME_SLOTS, Stop

T4_BYTES = 15 * 10**9  # what is left of a T4's 16 GB for a program
T4_TRAINING_BYTES = 6 * 10**9  # what 4-bit training with Unsloth may take of it
MAX_SEQ_LENGTH = 2048


# ---- the codec ----


def encode(settings: Settings) -> dict[str, Any]:
    """An Elise-sized corpus through SNAC's encoder; then some of it back."""
    import numpy as np

    from orpheus.codec.snac import SnacCodec

    codec = SnacCodec.load(settings.codec, device=settings.device)
    seconds = smoke_data.durations(settings.clips, settings.clip_s)
    clips = [smoke_data.clip(s, seed) for seed, s in enumerate(seconds)]
    codec.encode(clips[:2])  # kernels are chosen at the first call
    with timed(synchroniser(settings.device)) as span:
        codes = codec.encode(clips)
    check([c.frames for c in codes] == [-(-len(c) // codec.samples_per_frame) for c in clips], "wrong frame counts")
    with timed(synchroniser(settings.device)) as decoding:
        decoded = codec.decode(codes[0])
    check(len(decoded) == codes[0].frames * codec.samples_per_frame, "wrong length after decoding")
    check(bool(np.isfinite(decoded).all()), "the decoded audio holds NaN")
    figures = {
        "clips": len(clips),
        "hours": round(float(seconds.sum()) / 3600, 2),
        "encode_s": round(span.wall_s, 1),
        "encoded_audio_s_per_s": round(float(seconds.sum()) / span.wall_s, 1),
        "decoded_audio_s_per_s": round(len(decoded) / codec.sample_rate_hz / decoding.wall_s, 1),
    }
    if settings.on_gpu:
        on_cpu = SnacCodec.load(settings.codec, device="cpu").encode(clips[:4])
        pairs = [(a, b) for x, y in zip(codes[:4], on_cpu, strict=True) for a, b in zip(x, y, strict=True)]
        same = sum(int((a == b).sum()) for a, b in pairs) / sum(len(a) for a, _ in pairs)
        figures["codes_equal_to_cpu"] = round(same, 5)
        check(same > 0.98, f"only {same:.1%} of the codes are those of the CPU")  # a few in a thousand are ties
    return figures | memory(settings)


# ---- training ----


def train_lora(
    settings: Settings,
    name: str,
    *,
    backend: str,
    in_4bit: bool,
    half: bool = False,
    limit_bytes: int = 0,
    longest: int = MAX_SEQ_LENGTH,
) -> dict[str, Any]:
    """Load, add LoRA, train some steps, save. `half`: what a T4 does, fp16 and the longest clips, in a T4's memory."""
    import torch

    if half and settings.on_gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, T4_BYTES / total))

    from orpheus.format.prompt import Renderer
    from orpheus.model.adapter import add_lora, save_adapter
    from orpheus.model.base import load_base
    from orpheus.model.provenance import Provenance, versions
    from orpheus.training.trainer import train

    with timed() as loading:
        base = load_base(settings.base, load_in_4bit=in_4bit, backend=backend, device=settings.device,
                         max_seq_length=MAX_SEQ_LENGTH, dtype=torch.float16 if half else None)  # fmt: skip
    after_load = memory(settings)
    options = filled(SftOptions(), has_gpu=settings.on_gpu)
    lora = LoraOptions()
    alpha = options.lora.lora_alpha or lora.r
    model = add_lora(base, lora, alpha=alpha, seed=options.train.seed,
                     gradient_checkpointing=bool(options.train.gradient_checkpointing))  # fmt: skip
    renderer = Renderer(base.tokenizer, base.layout)
    longest = min(longest, base.context_length)
    rows, accumulation = settings.batch
    seconds = smoke_data.durations(settings.train_steps * rows * accumulation, settings.clip_s)
    data = smoke_data.sequences(renderer, seconds, most=longest, fill=half)
    few = smoke_data.sequences(renderer, seconds[:2], most=longest, fill=settings.on_gpu, seed=10**6)
    # Not the tiny preset's rate: the codes are random, and a base that still speaks is wanted afterwards.
    rate = PRESETS["orpheus-3b"].learning_rate
    short = replace(options.train, learning_rate=rate, batch_size=rows, gradient_accumulation=accumulation,
                    max_steps=2, eval_every=0, save_every=0, log_every=1, warmup_steps=1)  # fmt: skip
    folder = settings.folder(name)
    # Two steps with validation, in which kernels are compiled and chosen; then the steps that are timed.
    warm = train(model, data, few, short, folder, {})
    timed_run = train(model, data, data.select([]), replace(short, max_steps=settings.train_steps), folder, {})
    losses = [entry["loss"] for run in (warm, timed_run) for entry in run.history if "loss" in entry]
    check(all(0 < loss < 100 for loss in losses), f"losses {losses}")  # NaN is not between them
    moved = max(float(p.detach().abs().max()) for n, p in model.model.named_parameters() if "lora_B" in n)
    check(moved > 0, "training changed nothing: every lora_B is still 0")
    save_adapter(model, folder, Provenance(
        base=base.base, base_fingerprint=base.fingerprint, base_voices=base.voices, codec=settings.codec,
        layout=base.layout, versions=versions(),
    ))  # fmt: skip
    used = memory(settings)
    if limit_bytes and settings.on_gpu:
        check(used["peak_gb"] * 1e9 < limit_bytes, f"peak memory {used['peak_gb']} GB, expected < {limit_bytes / 1e9}")
    return {
        "load_s": round(loading.wall_s, 1),
        "gb_after_load": after_load["peak_gb"],
        **used,
        "dtype": str(base.dtype).removeprefix("torch."),
        "trainable_parameters": timed_run.trainable_parameters,
        "steps": timed_run.steps,
        "batch": f"{rows} x {accumulation}",
        "tokens_per_clip": round(sum(data["length"]) / len(data)),
        "tokens_per_s": round(timed_run.tokens_per_s, 1),
        "seconds_per_step": round(timed_run.seconds / timed_run.steps, 3),
        "losses": [round(loss, 3) for loss in (losses[0], losses[-1])],
        "validation_loss": [round(v, 3) for v in (warm.validation_before, warm.validation_after) if v is not None],
    }


# ---- speaking ----


def speak(settings: Settings, name: str, *, adapter: str) -> dict[str, Any]:
    """Reload the adapter that an earlier step trained, speak, check the stop rules and the WAV files."""
    import soundfile

    from orpheus.speak.inference import OrpheusInference
    from orpheus.speak.names import output_paths

    with timed() as loading:
        tts = OrpheusInference(settings.folder(adapter), device=settings.device)
    engine, layout = tts.engine, tts.engine.layout
    voice = tts.base_voices[0] if tts.base_voices else None
    prompts = [tts.renderer.prompt(text, voice) for text in DEFAULT_PROMPTS]
    reasons = {}
    for temperature in (0.6, 0.0, 8.0):
        sampling = SamplingOptions(temperature=temperature, max_new_tokens=settings.tokens)
        ids = [token for _, token in engine.stream(prompts[:1], sampling, [1])]
        stop = layout.unflatten(ids)[1]
        reasons[str(temperature)] = str(stop.kind)
        by_itself = stop.kind is not Stop.END_OF_IDS
        check(stop.index == len(ids) - by_itself, f"went on after {stop} at temperature {temperature}")
        check(by_itself or len(ids) == settings.tokens, f"ended early without a reason: {stop}")
    sampling = SamplingOptions(max_new_tokens=settings.tokens, seed=3)
    out = settings.folder(name)
    expected = output_paths(out, len(prompts), overwrite=True)
    speeches = [tts.speak_to_files(DEFAULT_PROMPTS, out, voice, sampling, overwrite=True) for _ in range(2)]
    first, second = ({speech.index: speech for speech, _ in run} for run in speeches)
    for index, speech in first.items():
        info = soundfile.info(expected[index])
        frames = speech.codes.frames * tts.codec.samples_per_frame
        check((info.samplerate, info.channels, info.frames) == (24000, 1, frames), f"{expected[index].name}: {info}")
        same = [(a == b).all() for a, b in zip(speech.codes, second[index].codes, strict=True)]
        check(all(same), "the same seed gave other codes")
    return {
        "load_s": round(loading.wall_s, 1),
        **memory(settings),
        "stop_by_temperature": reasons,
        "finish_reasons": [first[i].finish_reason for i in sorted(first)],
        "audio_s": [round(first[i].duration_s, 2) for i in sorted(first)],
        "first_audio_s": round(min(s.timings.first_audio_s for s in second.values()), 3),
        "tokens_per_s": {str(rows): _generation_speed(settings, tts, rows) for rows in (1, 8)},
        "shared": _listeners(settings, engine, prompts),
    }


def _listeners(settings: Settings, engine: Any, prompts: list[list[int]]) -> dict[str, Any]:
    """Prompts from threads of their own on one running batch, as in the server; how many get the ids they get alone.

    All of them in 32 bit; in 16 bit on a GPU, rounding may differ (`orpheus.engines.torch.shared`).
    """
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import closing

    from orpheus.engines.torch.shared import share

    sampling = SamplingOptions(max_new_tokens=settings.tokens)

    def ids_of(source: Any, row: int) -> list[int]:
        return [token for _, token in source.stream([prompts[row]], sampling, [row])]

    rows = range(len(prompts))
    alone = [ids_of(engine, row) for row in rows]
    with closing(share(engine, len(prompts))) as shared, ThreadPoolExecutor(len(prompts)) as pool:
        with timed(synchroniser(settings.device)) as span:
            together = list(pool.map(lambda row: ids_of(shared, row), rows))
        stops = [engine.layout.unflatten(ids)[1] for ids in together]
    for ids, stop in zip(together, stops, strict=True):
        by_itself = stop.kind is not Stop.END_OF_IDS
        check(stop.index == len(ids) - by_itself and (by_itself or len(ids) == settings.tokens), f"it ended at {stop}")
    same = sum(ids == expected for ids, expected in zip(together, alone, strict=True))
    return {"rows": len(rows), "as_alone": same, "tokens_per_s": round(sum(map(len, together)) / span.wall_s, 1)}


def _generation_speed(settings: Settings, tts: Any, rows: int) -> float:
    """Tokens per second over all rows, while all of them are drawing."""
    prompt = tts.renderer.prompt(DEFAULT_PROMPTS[0], tts.base_voices[0] if tts.base_voices else None)
    stream = tts.engine.stream([prompt] * rows, SamplingOptions(max_new_tokens=settings.tokens), range(rows))
    for _ in range(rows * FRAME_SLOTS):  # the prompt's own pass, and the frame that a GPU hands out at once
        next(stream, None)
    count = 0
    with timed(synchroniser(settings.device)) as span:
        for _, token in stream:
            count += 1
            if tts.engine.layout.slot_of(token) is None:
                break  # a row has ended
    return round(count / span.wall_s, 1)


def generate_unsloth(settings: Settings, name: str, *, adapter: str) -> dict[str, Any]:
    """Unsloth's own way: from_pretrained on the adapter, for_inference, generate; then our decoding."""
    from unsloth import FastLanguageModel  # isort: skip  (before transformers)

    import torch

    from orpheus.codec.snac import SnacCodec
    from orpheus.format.prompt import Renderer
    from orpheus.format.tokens import TokenLayout

    with timed() as loading:
        model, tokenizer = FastLanguageModel.from_pretrained(
            model_name=str(settings.folder(adapter)),
            max_seq_length=MAX_SEQ_LENGTH,
            dtype=None,
            load_in_4bit=True,
            trust_remote_code=False,
        )
        FastLanguageModel.for_inference(model)
    layout = TokenLayout.from_tokenizer(tokenizer)
    prompt = torch.tensor([Renderer(tokenizer, layout).prompt(DEFAULT_PROMPTS[0])], device=settings.device)
    sampling = SamplingOptions()
    arguments = dict(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=True, use_cache=True,
                     temperature=sampling.temperature, top_p=sampling.top_p,
                     repetition_penalty=sampling.repetition_penalty, eos_token_id=layout.end_of_speech,
                     pad_token_id=layout.pad)  # fmt: skip
    torch.manual_seed(1)
    model.generate(**arguments, max_new_tokens=8)
    with timed(synchroniser(settings.device)) as span:
        ids = model.generate(**arguments, max_new_tokens=settings.tokens)[0, prompt.shape[1] :].tolist()
    codes, stop = layout.unflatten(ids)
    check(codes.frames > 0, f"no frame: {stop}")
    audio = SnacCodec.load(settings.codec, device=settings.device).decode(codes)
    return {"load_s": round(loading.wall_s, 1), **memory(settings), "tokens": len(ids), "stop": str(stop),
            "tokens_per_s": round(len(ids) / span.wall_s, 1), "audio_s": round(len(audio) / 24000, 2)}  # fmt: skip


# ---- the program ----


Function = Callable[..., dict[str, Any]]
FUNCTIONS: dict[str, Function] = {
    "train_unsloth_4bit": partial(train_lora, backend="unsloth", in_4bit=True),
    "train_unsloth_16bit": partial(train_lora, backend="unsloth", in_4bit=False),
    "train_peft_4bit": partial(train_lora, backend="transformers", in_4bit=True),
    "train_peft_16bit": partial(train_lora, backend="transformers", in_4bit=False),
    "t4_unsloth": partial(train_lora, backend="unsloth", in_4bit=True, half=True, limit_bytes=T4_TRAINING_BYTES),
    # Unsloth's loss, by its own choice, takes most memory here and not at the full length.
    "t4_unsloth_1700": partial(
        train_lora, backend="unsloth", in_4bit=True, half=True, limit_bytes=T4_TRAINING_BYTES, longest=1700
    ),
    "t4_peft": partial(train_lora, backend="transformers", in_4bit=True, half=True),
    "speak_peft": partial(speak, adapter="train_peft_4bit"),
    "speak_unsloth": partial(speak, adapter="train_unsloth_4bit"),
    "generate_unsloth": partial(generate_unsloth, adapter="train_unsloth_4bit"),
    "merge": partial(merge_export, adapter="train_peft_16bit"),
    "logits_transformers": partial(logits_transformers, adapter="train_peft_16bit"),
    "agree_unsloth": partial(agree_unsloth, adapter="train_peft_16bit", reference="logits_transformers"),
}


def main(step: str, settings: Settings) -> None:
    """Run one step and print its figures as one line of JSON."""
    logging.basicConfig(format="%(message)s")
    figures = encode(settings) if step == "encode" else FUNCTIONS[step](settings, step)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], Settings(**json.loads(sys.argv[2])))
