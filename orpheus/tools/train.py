"""Fine-tune Orpheus TTS with LoRA on a voice, then speak with it.

    orpheus train                                    # GPU: Orpheus-3B on Elise; CPU: the embedded demo
    orpheus train --dataset my_recordings            # your own voice
    orpheus train --epochs 3 --resume                # go on after an interruption

In Python the same options are keywords: `orpheus.train(dataset="my_recordings", epochs=3)`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orpheus.cli import EXIT_INTERRUPTED, from_keywords
from orpheus.config import DEFAULT_PROMPTS, SftOptions, as_dict, filled, resumable
from orpheus.errors import UserError, check_folder
from orpheus.processes import environment_alone, is_main, rank, wait_for_all, world_size

if TYPE_CHECKING:
    from orpheus.codec.snac import SnacCodec
    from orpheus.data.corpus import Corpus
    from orpheus.model.base import LoadedModel
    from orpheus.model.provenance import Provenance
    from orpheus.training.choosing import Judge
    from orpheus.training.summary import TrainSummary

Value = TypeVar("Value")


def train(dataset: str | Path | None = None, **options: Any) -> TrainSummary:
    """Train an adapter and speak samples with it, as `orpheus train` does: for notebooks.

    Args:
        dataset: folder or hub id of the recordings; None: the preset's.
        options: the command's options as keywords, `max_steps=20` for --max-steps 20 (`orpheus.config.SftOptions`).
    Returns:
        What the training did: losses, steps, seconds. `interrupted` is True after Ctrl-C, with a checkpoint written.
    Raises:
        UserError: an option that does not exist or does not fit, or data, models or disks that do not.
    """
    if dataset is not None:
        options["dataset"] = str(dataset)
    return steps(from_keywords(SftOptions, options))


def main(options: SftOptions) -> None:
    """The command: exit code 130 after Ctrl-C."""
    if steps(options).interrupted:
        sys.exit(EXIT_INTERRUPTED)


def steps(options: SftOptions) -> TrainSummary:
    """Data -> codes -> model -> adapter -> samples. `orpheus_sft_unsloth.py` tells the same steps one by one."""
    from orpheus.training.checkpoints import alone_in

    options = settle(options)
    with alone_in(options.output_dir):
        summary = finished(options) or make(options)
    if is_main() and not summary.interrupted:
        present(options, speak_samples(options))
    return summary


def make(options: SftOptions) -> TrainSummary:
    """Train the adapter and save it."""
    model = load_model(options)
    codec, corpus = encode(options, model)
    model = adapt(options, model)
    summary = fit(options, model, codec, corpus)
    if is_main() and not summary.interrupted:  # all processes have the same adapter: one saves it
        save(options, model, codec, corpus, summary)
    return summary


def settle(options: SftOptions) -> SftOptions:
    """The options with every one that was left open filled in from its preset; what can't work is said now."""
    from orpheus.model.base import has_gpu
    from orpheus.model.pairs import codec_of

    check(options)
    model = options.model
    if model.base and not model.codec:  # a codec follows its base, not the preset of another
        options = replace(options, model=replace(model, codec=codec_of(model.base)))
    options = filled(options, has_gpu())
    if options.train.replay:
        from orpheus.tools.replay import replay_lines

        replay_lines(options, _set(options.model.base))  # whether the base has voices and tags to speak with
    if is_main():
        print(f"preset {options.model.preset}: base {options.model.base}, codec {options.model.codec}, "
              f"data {options.corpus.dataset}")  # fmt: skip
        warn_of_toy(_set(options.model.base))
    return options


def check(options: SftOptions) -> None:
    """What can't work is said now, by the small files alone: before PyTorch is loaded, let alone hours of training."""
    from orpheus.codec.snac import find_local
    from orpheus.data.early import check_source
    from orpheus.model.adapter import check_lora
    from orpheus.model.hub import local_folder

    check_lora(options.lora)
    check_source(options.corpus)
    if options.model.base:
        local_folder(options.model.base, "base model")
    if options.model.codec:
        find_local(options.model.codec)
    check_folder(options.output_dir, "--output-dir")
    check_folder(options.samples_dir, "--samples-dir")
    if options.train.patience and not options.train.gate_every:
        raise UserError(f"patience is {options.train.patience}, and it waits for gates: give --gate-every too")
    if options.train.push_to_hub:
        from orpheus.model.upload import check_upload

        check_upload(options.train.hub_repo_id)


def finished(options: SftOptions) -> TrainSummary | None:
    """What this very training did if it is done already (--resume); None if there is something to train.

    UserError: the output folder holds another finished adapter, and --overwrite was not given.
    """
    from orpheus.training.checkpoints import is_finished

    folder = options.output_dir
    if not is_finished(folder, as_dict(options), resume=options.train.resume, overwrite=options.overwrite):
        return None
    from orpheus.training.summary import TrainSummary  # not before Unsloth where a model is loaded

    if is_main():
        print(f"this training is finished already: its adapter is in {folder} (--overwrite trains it again)")
    return TrainSummary.load(folder)


def warn_of_toy(base: str) -> None:
    """Say what a voice can't become that is trained on a base of few words."""
    from orpheus.model.hub import local_folder
    from orpheus.model.provenance import own_words

    if words := own_words(local_folder(base, "base model")):
        print(f"{base} is a toy that knows {len(words)} words: whatever it is trained on, it speaks these alone. "
              "For a real voice: --preset orpheus-3b, on a GPU (docs/training.md)")  # fmt: skip


def load_model(options: SftOptions) -> LoadedModel:
    """The base model, in 4 bit. Before the data, because Unsloth must be imported before its dependencies."""
    from orpheus.model.base import load_base

    return load_base(_set(options.model.base), load_in_4bit=_set(options.model.load_in_4bit),
                     backend=options.model.backend, max_seq_length=options.train.max_seq_length)  # fmt: skip


def encode(options: SftOptions, model: LoadedModel) -> tuple[SnacCodec, Corpus]:
    """The codec, and the recordings: checked, encoded to SNAC codes, rendered to token sequences."""
    from orpheus.codec.snac import SnacCodec
    from orpheus.data.corpus import encode_part, prepare
    from orpheus.data.encoding import Part
    from orpheus.format.prompt import Renderer

    codec = SnacCodec.load(_set(options.model.codec), device=str(model.device))
    renderer = Renderer(model.tokenizer, model.layout, options.train.train_on)
    longest = options.train.max_seq_length
    if world_size() > 1:  # each process encodes its share; then all find all codes
        encode_part(Part(rank(), world_size()), options.corpus, codec, renderer, max_seq_length=longest)
        wait_for_all()
    corpus = prepare(options.corpus, codec, renderer, max_seq_length=longest, seed=options.train.seed)
    if options.train.replay:
        from orpheus.data.replay import mixed
        from orpheus.tools.replay import speak_replay

        corpus = mixed(corpus, speak_replay(options, model, codec, renderer), renderer, longest)
    if is_main():
        print(corpus.summary())
        corpus.save_report(options.output_dir / "corpus_report.txt")
    return codec, corpus


def adapt(options: SftOptions, model: LoadedModel) -> LoadedModel:
    """The model with a fresh, trainable adapter."""
    from orpheus.model.adapter import add_lora

    return add_lora(model, options.lora, alpha=_set(options.lora.lora_alpha), seed=options.train.seed,
                    gradient_checkpointing=_set(options.train.gradient_checkpointing))  # fmt: skip


def fit(options: SftOptions, model: LoadedModel, codec: SnacCodec, corpus: Corpus) -> TrainSummary:
    """Train the adapter and print what that did. Ctrl-C leaves a checkpoint, and the summary says `interrupted`."""
    from orpheus.training import trainer

    identity = {"base": model.base, "data": corpus.data_hash, "replayed": corpus.replay.get("hash"),
                **resumable(options)}  # fmt: skip
    judge = gates(options, model, codec, corpus) if options.train.gate_every else None
    summary = trainer.train(model, corpus.train, corpus.validation, options.train, options.output_dir, identity, judge)
    if is_main():
        print(summary)
    if is_main() and summary.interrupted:
        summary.save(options.output_dir)
        print("interrupted: a checkpoint is saved; go on with the same command and --resume")
    return summary


def gates(options: SftOptions, model: LoadedModel, codec: SnacCodec, corpus: Corpus) -> Judge:
    """What hears the adapter while it is trained: it speaks a battery of texts, as users will."""
    from orpheus.evaluate.training import TrainingJudge

    return TrainingJudge(model, codec, corpus, provenance(options, model, codec, corpus), options.train.seed)


def save(options: SftOptions, model: LoadedModel, codec: SnacCodec, corpus: Corpus, summary: TrainSummary) -> None:
    """Write the adapter in peft's format, with all that speaking needs to know, and its model card."""
    from orpheus.model.adapter import save_adapter
    from orpheus.training.checkpoints import remove_checkpoints

    made = provenance(options, model, codec, corpus)
    save_adapter(model, options.output_dir, replace(made, results=summary.results()))
    summary.save(options.output_dir)
    remove_checkpoints(options.output_dir)
    (options.output_dir / "report.html").unlink(missing_ok=True)  # that of the adapter before
    print(f"adapter: {options.output_dir}/adapter_model.safetensors, loss curve: {options.output_dir}/loss.png")


def provenance(options: SftOptions, model: LoadedModel, codec: SnacCodec, corpus: Corpus) -> Provenance:
    """What the adapter is made from, and all that speaking with it needs to know."""
    from orpheus.data.seen import seen
    from orpheus.model.card import terms_of
    from orpheus.model.hub import portable_name
    from orpheus.model.provenance import Provenance, versions

    return Provenance(
        base=model.base, base_revision=model.revision, base_fingerprint=model.fingerprint, base_voices=model.voices,
        codec=portable_name(_set(options.model.codec)), codec_identity=codec.identity, layout=model.layout,
        voices=corpus.voices, tags=corpus.tags, data=corpus.about(str(options.corpus.dataset)),
        data_hash=corpus.data_hash, seen=seen(corpus.trained), base_terms=terms_of(model.base, model.revision),
        speech_statistics=corpus.statistics.as_dict(), config=as_dict(options), versions=versions(),
    )  # fmt: skip


def speak_samples(options: SftOptions) -> list[Path]:
    """Speak in a fresh process: it proves that what was saved is all that is needed. Returns the files."""
    from orpheus.model.base import free_memory
    from orpheus.model.provenance import Provenance
    from orpheus.speak.names import output_paths

    if not options.speak_samples:
        return []
    free_memory()
    files = output_paths(options.samples_dir, len(DEFAULT_PROMPTS), options.overwrite_samples)
    made = Provenance.load(options.output_dir)
    speak = [sys.executable, "-m", "orpheus", "speak", "--adapter", str(options.output_dir)]
    speak += ["--out", str(options.samples_dir), "--transcribe", "auto"]
    speak += ["--overwrite"] if options.overwrite_samples else []
    speak += ["--voice", made.voices[0]] if made and made.voices else []
    speak += ["--seed", str(options.train.seed)]  # so that two trainings can be compared by ear
    if subprocess.run(speak, check=False, env=_environment(), stdin=subprocess.DEVNULL).returncode != 0:
        raise UserError("the adapter is saved, but speaking the samples failed: see the line above")
    return files


def present(options: SftOptions, samples: list[Path]) -> None:
    """Write report.html beside the adapter, with its samples, and the card anew; upload all if that was asked for."""
    from orpheus.model.adapter import write_card
    from orpheus.model.upload import upload
    from orpheus.tools.report import FILE_NAME, write_report

    folder = options.output_dir
    write_card(folder)
    print(f"report: {write_report(folder, samples, folder / FILE_NAME)}, model card: {folder}/README.md")
    if options.train.push_to_hub:
        with tempfile.TemporaryDirectory() as temporary:  # nobody's recordings leave this machine
            report = write_report(folder, samples, Path(temporary) / FILE_NAME, recordings=False)
            print(f"uploaded to {upload(folder, _set(options.train.hub_repo_id), report)}")


def _set(value: Value | None) -> Value:
    """An option that `settle` has filled in, or refused."""
    assert value is not None
    return value


def _environment() -> dict[str, str]:
    """That of a program alone, which finds this package even where it is not installed and the folder is another."""
    environment = environment_alone()
    where = [str(Path(__file__).resolve().parents[2]), environment.get("PYTHONPATH")]
    return environment | {"PYTHONPATH": os.pathsep.join(filter(None, where))}
