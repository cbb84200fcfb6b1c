"""Fine-tune Orpheus TTS with LoRA on a voice, then speak with it.

    python orpheus_sft_unsloth.py                                    # GPU: Orpheus-3B on Elise; CPU: the embedded demo
    python orpheus_sft_unsloth.py --dataset my_recordings            # your own voice
    python orpheus_sft_unsloth.py --epochs 3 --resume                # go on after an interruption
    accelerate launch --multi_gpu --num_processes 8 orpheus_sft_unsloth.py --dataset my_recordings      # eight GPUs

The adapter goes to lora_model/, a few spoken samples to generated_audio/.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from orpheus.cli import EXIT_INTERRUPTED, run
from orpheus.config import SftOptions, as_dict, filled, resumable
from orpheus.errors import UserError
from orpheus.processes import environment_alone, is_main, rank, wait_for_all, world_size


def main(options: SftOptions) -> None:
    """Data -> codes -> model -> adapter -> samples."""
    from orpheus.model.adapter import add_lora, check_lora, save_adapter
    from orpheus.model.base import free_memory, has_gpu, load_base

    # 1. What to do: every option that was left open takes its preset's figure.
    options = filled(options, has_gpu())
    check_lora(options.lora)
    if is_main():
        print(f"preset {options.model.preset}: base {options.model.base}, codec {options.model.codec}, "
              f"data {options.corpus.dataset}")  # fmt: skip
    if options.train.push_to_hub:
        from orpheus.model.upload import check_upload

        check_upload(options.train.hub_repo_id)  # now, not after hours of training

    # 2. The base model, in 4 bit. Before the data, because Unsloth must be imported before its dependencies.
    base = load_base(options.model.base, load_in_4bit=options.model.load_in_4bit, backend=options.model.backend,
                     max_seq_length=options.train.max_seq_length)  # fmt: skip

    # 3. The recordings: checked, encoded to SNAC codes, rendered to token sequences.
    from orpheus.codec.snac import SnacCodec
    from orpheus.data.corpus import encode_part, prepare
    from orpheus.data.encoding import Part
    from orpheus.format.prompt import Renderer

    codec = SnacCodec.load(options.model.codec, device=str(base.device))
    renderer = Renderer(base.tokenizer, base.layout, options.train.train_on)
    longest = options.train.max_seq_length
    if world_size() > 1:  # each process encodes its share; then all find all codes
        encode_part(Part(rank(), world_size()), options.corpus, codec, renderer, max_seq_length=longest)
        wait_for_all()
    corpus = prepare(options.corpus, codec, renderer, max_seq_length=longest, seed=options.train.seed)
    if is_main():
        print(corpus.summary())
        corpus.save_report(options.output_dir / "corpus_report.txt")

    # 4. The adapter, trained.
    from orpheus.model.hub import portable_name
    from orpheus.model.provenance import Provenance, versions
    from orpheus.training.checkpoints import remove_checkpoints
    from orpheus.training.trainer import train

    model = add_lora(base, options.lora, alpha=options.lora.lora_alpha, seed=options.train.seed,
                     gradient_checkpointing=options.train.gradient_checkpointing)  # fmt: skip
    identity = {"base": base.base, "data": corpus.data_hash, **resumable(options)}
    summary = train(model, corpus.train, corpus.validation, options.train, options.output_dir, identity)
    if not is_main():
        return  # all processes have the same adapter: one saves it and speaks
    print(summary)
    if summary.interrupted:
        summary.save(options.output_dir)
        print("interrupted: a checkpoint is saved; go on with the same command and --resume")
        sys.exit(EXIT_INTERRUPTED)

    # 5. Saved in peft's format, with all that speaking needs to know.
    save_adapter(model, options.output_dir, Provenance(
        base=base.base, base_revision=base.revision, base_fingerprint=base.fingerprint, base_voices=base.voices,
        codec=portable_name(options.model.codec), codec_identity=codec.identity, layout=base.layout,
        voices=corpus.voices, tags=corpus.tags, data_hash=corpus.data_hash,
        speech_statistics=corpus.statistics.as_dict(),
        config=as_dict(options), versions=versions(),
        results={"validation_loss": summary.validation_after, "steps": summary.steps, "seconds": summary.seconds},
    ))  # fmt: skip
    summary.save(options.output_dir)
    remove_checkpoints(options.output_dir)
    print(f"adapter: {options.output_dir}/adapter_model.safetensors, loss curve: {options.output_dir}/loss.png")
    if options.train.push_to_hub:
        from orpheus.model.upload import upload

        print(f"uploaded to {upload(options.output_dir, options.train.hub_repo_id)}")

    # 6. Speak, in a fresh process: it proves that what was saved is all that is needed.
    if options.speak_samples:
        del model, base, codec
        free_memory()
        speak = [sys.executable, str(Path(__file__).with_name("inference.py")), "--adapter", str(options.output_dir)]
        speak += ["--out", str(options.samples_dir), "--transcribe", "auto"]
        speak += ["--overwrite"] if options.overwrite_samples else []
        speak += ["--voice", corpus.voices[0]] if corpus.voices else []
        speak += ["--seed", str(options.train.seed)]  # so that two trainings can be compared by ear
        if subprocess.run(speak, check=False, env=environment_alone()).returncode != 0:
            raise UserError("the adapter is saved, but speaking the samples failed: see the line above")


if __name__ == "__main__":
    run(main, SftOptions, __doc__)
