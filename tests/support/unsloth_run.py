"""One short training, in a process of its own, by either back end: what the tests of Unsloth compare.

    python -m tests.support.unsloth_run '{"backend": "unsloth", "base": "...", "out": "..."}'

The last line of output is the result as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass
class Run:
    """What to do. init: the file with the adapter's first weights, written if it is not there."""

    backend: str
    base: str
    out: str
    init: str
    in_4bit: bool = False
    dtype: str = "float32"
    checkpointing: bool = False
    rows: int = 1
    accumulation: int = 1
    steps: int = 4
    interrupt: int = 0  # Ctrl-C in the step after this one
    resume: bool = False
    max_seq_length: int = 512
    generate: int = 0  # so many ids by Unsloth's own generate, after training


def examples(loaded: Any, count: int, seed: int) -> Any:
    """Clips of one to three frames of few different codes, as a data set."""
    from datasets import Dataset

    from orpheus.format.prompt import Renderer
    from tests.support.voices import some_codes

    renderer = Renderer(loaded.tokenizer, loaded.layout, "speech")
    made = []
    for i in range(count):
        codes = some_codes(1 + i % 3, seed=seed + i)
        example = renderer.example("hi"[: 1 + i % 2], type(codes)(*(layer % 16 for layer in codes)))
        made.append({"input_ids": example.input_ids, "labels": example.labels, "length": len(example.input_ids)})
    return Dataset.from_list(made)


def same_start(model: Any, file: Path) -> None:
    """Give the adapter the weights of `file`; the first run writes them."""
    import torch
    from safetensors.torch import load_file, save_file

    adapter = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    if not file.exists():
        save_file({name: p.detach().float().clone().contiguous() for name, p in adapter.items()}, str(file))
    first = load_file(file)
    assert set(first) == set(adapter)
    with torch.no_grad():
        for name, parameter in adapter.items():
            parameter.copy_(first[name])


def main(run: Run) -> dict[str, Any]:
    """Load, add the adapter, train, save; what came out."""
    if run.backend == "unsloth":
        from tests.support import stand_in_gpu

        stand_in_gpu.install()
        from orpheus.model.with_unsloth import SETTINGS

        os.environ.update(SETTINGS)
        stand_in_gpu.after_import()
    import torch

    from orpheus.config import LoraOptions, SftOptions, filled
    from orpheus.model.adapter import add_lora, save_adapter
    from orpheus.model.base import load_base
    from orpheus.model.provenance import Provenance, versions
    from orpheus.training import trainer

    torch.set_num_threads(1)
    base = load_base(run.base, load_in_4bit=run.in_4bit, backend=run.backend, dtype=getattr(torch, run.dtype),
                     max_seq_length=run.max_seq_length)  # fmt: skip
    loaded = add_lora(base, LoraOptions(r=16), alpha=16, gradient_checkpointing=run.checkpointing, seed=7)
    same_start(loaded.model, Path(run.init))
    options = replace(
        filled(SftOptions(), False).train, max_steps=run.steps, batch_size=run.rows, warmup_steps=0, seed=3,
        gradient_accumulation=run.accumulation, eval_every=0, save_every=0, log_every=1, learning_rate=1.5e-3,
        resume=run.resume,
    )  # fmt: skip
    made: list[Any] = []
    make = trainer._make_trainer

    def spy(*args: Any) -> Any:
        made.append(make(*args))
        if run.interrupt:
            made[0].add_callback(_ctrl_c_after(run.interrupt))
        return made[0]

    trainer._make_trainer = spy
    folder = Path(run.out)
    summary = trainer.train(loaded, examples(base, 12, 0), examples(base, 3, 100), options, folder, {"it": 1})
    if not summary.interrupted:
        save_adapter(loaded, folder, Provenance(
            base=base.base, base_fingerprint=base.fingerprint, codec="none", layout=base.layout, versions=versions()
        ))  # fmt: skip
    history = [entry for entry in summary.history if "loss" in entry]
    return {
        "losses": [entry["loss"] for entry in history],
        "gradients": [entry["grad_norm"] for entry in history],
        "validation": [summary.validation_before, summary.validation_after],
        "slots": summary.validation_by_slot,
        "interrupted": summary.interrupted,
        "in_4bit": base.in_4bit,
        "trainer": [f"{c.__module__.partition('.')[0]}.{c.__name__}" for c in type(made[0]).__mro__],
        "scaler": type(made[0].accelerator.scaler).__name__,
        "layers": sorted({type(m).__name__ for m in loaded.model.modules()}),
        "generated": _generated(loaded, run.generate) if run.generate else [],
    }


def _generated(loaded: Any, count: int) -> list[int]:
    """The likeliest ids by Unsloth's `for_inference` and `generate`."""
    import torch
    from unsloth import FastLanguageModel

    prompt = torch.tensor([prompt_of(loaded)])
    FastLanguageModel.for_inference(loaded.model)
    ids = loaded.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count,
                                do_sample=False, use_cache=True, pad_token_id=loaded.layout.pad)  # fmt: skip
    return ids[0, prompt.shape[1] :].tolist()


def prompt_of(loaded: Any) -> list[int]:
    """The prompt whose continuations are compared."""
    from orpheus.format.prompt import Renderer

    return Renderer(loaded.tokenizer, loaded.layout).prompt("hi")


def _ctrl_c_after(step: int) -> Any:
    from transformers import TrainerCallback

    class CtrlC(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGINT)

    return CtrlC()


if __name__ == "__main__":
    print("\n" + json.dumps(main(Run(**json.loads(sys.argv[1])))))
