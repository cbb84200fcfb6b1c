"""Tokens trained per second, MFU and memory: packed, padded, and as Unsloth's notebook batches.

    python benchmarks/train.py                                    # the embedded model
    python benchmarks/train.py --size orpheus-3b --load-in-4bit   # a GPU; random weights of the published shape

Every contender runs in a process of its own (so its peak memory is its own) through the toolkit's own training, with
transformers + peft: `notebook` with batch 1 x 4 and a loss over all logits, `padded` and `packed` with the whole batch
in one pass and `orpheus.training.losses`. Two steps first, in which kernels are chosen, are not counted.

MFU (model FLOP utilisation) is the arithmetic that the mathematics asks for, per second, over the device's peak. A
frozen weight counts 4 for each token (2 forward, 2 for the gradient of its input), an adapter's weight 6, the output
head 4 for each token with a label, attention 12 x layers x heads x head size x half the clip's length. Recomputed
activations and padding are not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Size, model_of, show
from benchmarks.machine import ROOT, gpu, peak_rss_bytes, without_paths
from benchmarks.smoke import data as smoke_data
from orpheus.cli import run
from orpheus.config import LoraOptions, TrainOptions
from orpheus.errors import UserError
from orpheus.model.base import pick_device

CONTENDERS = ("notebook", "padded", "packed")
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "T4": 65e12}
"""Dense 16-bit peak by the name of the GPU, of the SXM versions where there are several (NVIDIA's data sheets)."""
WARM_STEPS = 2
TIME_LIMIT_S = 1200


@dataclass(frozen=True)
class Options:
    """Measure training: a LoRA of rank 64 on random codes, in clips as long as a read corpus has them."""

    size: Size = "tiny"
    """tiny: the embedded base. mid, orpheus-3b: random weights of the real width, 4 or 28 layers."""
    base: str | None = None
    """Folder or hub id of another base. Default: the size's."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    load_in_4bit: bool = False
    """Quantise the base to 4-bit NF4."""
    gradient_checkpointing: bool = False
    """Recompute activations, which saves memory and costs a third more arithmetic."""
    batch: int = 4
    """Clips in each optimiser step, for all contenders (the notebook's are 1 x 4)."""
    steps: int = 4
    """Steps that are timed."""
    clip_s: float | None = None
    """Mean length of the clips in seconds. Default: 9, with tiny 3."""
    contenders: tuple[str, ...] = CONTENDERS
    """Which to run: notebook, padded, packed."""
    save: bool = False
    """Write the figures to benchmarks/results/train_SIZE.json as well."""
    single: bool = False
    """Internal: run one contender in this process and print its figures."""

    def __post_init__(self) -> None:
        wrong = sorted(set(self.contenders) - set(CONTENDERS))
        if wrong or not self.contenders or self.batch < 1 or self.steps < 1:
            raise UserError(f"contenders are some of {', '.join(CONTENDERS)}; batch and steps 1 or more")


def flops(model: Any, lengths: list[int], labels: int) -> float:
    """The arithmetic of one pass forward and backward over clips of these lengths, `labels` of their tokens learnt."""
    config = model.config
    head = config.vocab_size * config.hidden_size
    trained = frozen = 0
    for name, parameter in model.named_parameters():
        # A 4-bit weight holds two numbers a byte; embedding and head are counted apart.
        count = parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
        if parameter.requires_grad:
            trained += count
        elif "embed_tokens" not in name and "lm_head" not in name:
            frozen += count
    width = config.num_attention_heads * config.head_dim * config.num_hidden_layers
    attention = sum(12.0 * width * length * length / 2 for length in lengths)
    return sum(lengths) * (4.0 * frozen + 6.0 * trained) + 4.0 * head * labels + attention


def peak_flops(card: dict[str, Any] | None) -> tuple[float | None, str]:
    """The device's peak, or None and the reason."""
    if card is None:
        return None, "no peak is known for a CPU"
    found = next((peak for name, peak in PEAK_FLOPS.items() if name in card["name"]), None)
    return found, f"dense 16-bit peak of the {card['name']}" if found else f"no peak is known for {card['name']}"


def measure(options: Options, work: Path) -> dict[str, Any]:
    """The figures of one contender, measured in this process."""
    import torch

    from orpheus.format.prompt import IGNORE, Renderer
    from orpheus.model.adapter import add_lora
    from orpheus.model.base import load_base
    from orpheus.training import trainer as training

    (contender,) = options.contenders
    base = load_base(options.base or model_of(options.size, "base"), load_in_4bit=options.load_in_4bit,
                     backend="transformers", device=pick_device(options.device))  # fmt: skip
    lora = LoraOptions()
    loaded = add_lora(base, lora, alpha=lora.r, seed=1, gradient_checkpointing=options.gradient_checkpointing)
    rows = 1 if contender == "notebook" else options.batch
    if contender == "notebook":
        setattr(training, "lean_loss_available", lambda: False)  # noqa: B010 - transformers' own loss, over all logits
    lengths = smoke_data.durations(
        options.steps * options.batch, options.clip_s or (3 if options.size == "tiny" else 9)
    )
    data = smoke_data.sequences(Renderer(base.tokenizer, base.layout), lengths, most=2048)
    settings = TrainOptions(epochs=1, learning_rate=2e-4, batch_size=rows, gradient_accumulation=options.batch // rows,
                            packing=contender == "packed", max_steps=WARM_STEPS, eval_every=0, save_every=0,
                            log_every=1, warmup_steps=1)  # fmt: skip
    none = data.select([])
    training.train(loaded, data, none, settings, work, {})
    if loaded.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    done = training.train(loaded, data, none, replace(settings, max_steps=options.steps), work, {})
    learnt = sum(label != IGNORE for row in data["labels"] for label in row)
    arithmetic = flops(loaded.model, data["length"], learnt) / done.seconds
    peak, note = peak_flops(gpu() if loaded.device.type == "cuda" else None)
    on_gpu = loaded.device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() if on_gpu else peak_rss_bytes()
    return {
        "contender": contender, "batch": f"{rows} x {settings.gradient_accumulation}",
        "tokens per s": round(sum(data["length"]) / done.seconds, 1), "s per step": round(done.seconds / done.steps, 3),
        "peak GB": round(memory / 1e9, 2), "TFLOP per s": round(arithmetic / 1e12, 3),
        "MFU": None if peak is None else round(arithmetic / peak, 3), "MFU of": note,
        "dtype": str(loaded.dtype).removeprefix("torch.") + (", 4-bit base" if loaded.in_4bit else ""),
    }  # fmt: skip


def main(options: Options) -> None:
    """Run each contender in a process of its own, and show."""
    work = ROOT / ".cache" / "bench" / "train"
    if options.single:
        print(json.dumps(measure(options, work)))
        return
    if options.base is None:
        model_of(options.size, "base")  # made once, before the clock runs
    rows = []
    for contender in options.contenders:
        command = [sys.executable, __file__, "--single", "--contenders", contender, "--size", options.size]
        command += ["--device", options.device, "--batch", str(options.batch), "--steps", str(options.steps)]
        command += ["--base", options.base] if options.base else []
        command += ["--clip-s", str(options.clip_s)] if options.clip_s else []
        command += [f"--{'' if options.load_in_4bit else 'no-'}load-in-4bit"]
        command += [f"--{'' if options.gradient_checkpointing else 'no-'}gradient-checkpointing"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, cwd=ROOT)
        if done.returncode != 0:
            raise UserError(f"{contender} failed: {without_paths(done.stderr.strip()[-500:])}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{contender}: {rows[-1]['tokens per s']} tokens/s", file=sys.stderr)
    best = max(row["tokens per s"] for row in rows)
    first = rows[0]["tokens per s"] if rows[0]["contender"] == "notebook" else None
    show("train", options.size, {
        "tokens_per_s": best, "speedup_vs_notebook": None if first is None else round(best / first, 2),
        "mfu": max((row["MFU"] for row in rows if row["MFU"] is not None), default=None), "mfu_of": rows[0]["MFU of"],
        "speed_by": "clock",
    }, rows, options.save)  # fmt: skip


if __name__ == "__main__":
    run(main, Options, __doc__)
