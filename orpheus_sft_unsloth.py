"""Fine-tune Orpheus TTS with LoRA on a voice, then speak with it: the same as `orpheus train`, step by step.

    python orpheus_sft_unsloth.py                                    # GPU: Orpheus-3B on Elise; CPU: the embedded demo
    python orpheus_sft_unsloth.py --dataset my_recordings            # your own voice
    python orpheus_sft_unsloth.py --epochs 3 --resume                # go on after an interruption
    accelerate launch --multi_gpu --num_processes 8 orpheus_sft_unsloth.py --dataset my_recordings      # eight GPUs

The adapter goes to lora_model/, a few spoken samples to generated_audio/.
"""

from __future__ import annotations

import sys

from orpheus.cli import EXIT_INTERRUPTED, run
from orpheus.config import SftOptions
from orpheus.processes import is_main
from orpheus.tools.train import adapt, encode, finished, fit, load_model, present, save, settle, speak_samples
from orpheus.training.checkpoints import alone_in


def main(options: SftOptions) -> None:
    """Data -> codes -> model -> adapter -> samples."""
    # 1. What to do: every option that was left open takes its preset's figure. No two trainings share a folder.
    options = settle(options)
    with alone_in(options.output_dir):
        if not finished(options):
            make_adapter(options)

    # 6. Three samples, spoken in a fresh process: it proves that what was saved is all that is needed. And report.html.
    if is_main():  # with several GPUs all processes have the same adapter: one saves it and speaks
        present(options, speak_samples(options))


def make_adapter(options: SftOptions) -> None:
    """Train the adapter that the options describe, and save it."""
    # 2. The base model, in 4 bit. Before the data, because Unsloth must be imported before its dependencies.
    model = load_model(options)

    # 3. The recordings: checked, encoded to SNAC codes (seven tokens a frame), rendered to token sequences.
    codec, corpus = encode(options, model)

    # 4. The adapter: low-rank matrices beside the model's own, which stay as they are; trained on the sequences.
    model = adapt(options, model)
    summary = fit(options, model, codec, corpus)
    if summary.interrupted:
        sys.exit(EXIT_INTERRUPTED)  # a checkpoint is saved

    # 5. Saved in peft's format, with all that speaking needs to know.
    if is_main():
        save(options, model, codec, corpus, summary)


if __name__ == "__main__":
    run(main, SftOptions, __doc__)
