"""LoRA training on prepared sequences: collator, trainer, loss per slot, checkpoints, summary.

The data sets hold finished sequences (`input_ids`, `labels`, `length`); nothing is tokenised or cut here.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orpheus.config import TrainOptions
from orpheus.errors import UserError, disk_errors
from orpheus.format.prompt import IGNORE
from orpheus.format.tokens import FRAME_SLOTS, TokenLayout
from orpheus.model.adapter import trainable_parameters
from orpheus.model.base import LoadedModel
from orpheus.model.provenance import read_json, write_json
from orpheus.processes import is_main, wait_for_all, world_size
from orpheus.training.batches import Collator, LengthGrouped, check_known
from orpheus.training.checkpoints import FOLDER as CHECKPOINT_FOLDER
from orpheus.training.checkpoints import Interrupt, find_checkpoint, may_be_damage, stop_on_interrupt
from orpheus.training.losses import lean_loss_available, use_lean_loss

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

LOG_FILE = "training_log.json"
NLL_ROWS = 256  # positions whose log-probabilities are taken at once: bounds the memory of a validation pass


@dataclass
class TrainSummary:
    """What a training did. Losses are natural-log cross entropy per token; memory is the peak in bytes.

    `seconds` and `tokens` are those of this session (a resumed training has had others), validation included.
    """

    steps: int
    interrupted: bool
    seconds: float
    tokens: int
    trainable_parameters: int
    peak_memory_bytes: int
    train_loss: float
    validation_before: float | None = None
    validation_after: float | None = None
    validation_by_slot: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of text and speech trained on per second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @classmethod
    def load(cls, folder: Path) -> TrainSummary:
        """Read it from the training_log.json that `save` wrote. UserError if there is none, or it is damaged."""
        path = folder / LOG_FILE
        try:
            return cls(**read_json(path, "train again with --overwrite"))
        except TypeError as error:
            raise UserError(f"{path} is damaged ({error}): train again with --overwrite") from error

    def save(self, folder: Path) -> None:
        """Write training_log.json and the loss curves, loss.png, into `folder`."""
        write_json(folder / LOG_FILE, asdict(self))
        plot_losses(self.history, folder / "loss.png")

    def __str__(self) -> str:
        lines = [
            f"{self.steps} steps in {self.seconds:.0f} s ({self.tokens_per_s:.0f} tokens/s)",
            f"{self.trainable_parameters:,} parameters trained, peak memory {self.peak_memory_bytes / 2**30:.2f} GiB",
            f"training loss {self.train_loss:.3f}",
        ]
        if self.validation_after is not None:
            before = f"{self.validation_before:.3f} -> " if self.validation_before is not None else ""
            lines.append(
                f"validation loss {before}{self.validation_after:.3f}; by slot "
                + " ".join(f"{loss:.2f}" for loss in self.validation_by_slot)
            )
        return "\n".join(lines)


def train(
    loaded: LoadedModel,
    train_set: Dataset,
    validation_set: Dataset,
    options: TrainOptions,
    folder: Path,
    identity: dict[str, Any],
) -> TrainSummary:
    """Train the adapter on `loaded` in place.

    Under `accelerate launch` each process calls this with the same arguments: they share each step's batches, and all
    end with the same adapter. The first one writes the files.

    Args:
        loaded: a base with a trainable adapter (`model.add_lora`).
        train_set, validation_set: columns input_ids, labels (lists of int, equal lengths) and length; the
            validation set may be empty.
        options: with every None filled in (`config.filled`).
        folder: checkpoints and TensorBoard files go here.
        identity: what a checkpoint must agree on to be resumed (data, base, adapter shape).
    Returns:
        The summary; `interrupted` is True after Ctrl-C, with a checkpoint written.
    Raises:
        UserError: nothing to train on, checkpoints that don't belong to this run, a full disk.
    """
    if len(train_set) == 0:
        raise UserError("there is no clip to train on")
    check_known(loaded, train_set)
    if options.packing and loaded.backend == "unsloth":
        raise UserError(
            "packing is for the transformers back end, and Unsloth is in use: leave out --packing, "
            "or choose --backend transformers"
        )
    if is_main():  # the others look at what it has cleaned up
        checkpoint = find_checkpoint(folder / CHECKPOINT_FOLDER, options.resume, identity)
    wait_for_all()
    if not is_main():
        checkpoint = find_checkpoint(folder / CHECKPOINT_FOLDER, options.resume, identity, writes=False)
    trainer = _make_trainer(loaded, train_set, validation_set, options, folder)
    started = time.perf_counter()
    keep = "earlier checkpoints are kept, go on with --resume when there is space"
    with disk_errors(f"the training can't write its files to {folder}", keep), stop_on_interrupt() as interrupt:
        progress = _progress(interrupt)
        trainer.add_callback(progress)
        _run(trainer, checkpoint, progress)
        # Ctrl-C in the very last step interrupts nothing: the training is done.
        interrupted = bool(interrupt) and trainer.state.global_step < trainer.state.max_steps
        if len(validation_set) and not interrupted and trainer.state.global_step not in _eval_steps(trainer):
            trainer.evaluate()
    tokens = int(trainer.state.num_input_tokens_seen) - progress.tokens_before
    return _summarise(loaded, trainer, interrupted, time.perf_counter() - started, tokens)


def _run(trainer: Any, checkpoint: Path | None, progress: Any) -> None:
    """Train, from a checkpoint if there is one. UserError for one that can't be read: that fails in many ways."""
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Exception as error:
        if checkpoint is None or progress.stepped or not may_be_damage(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"can't resume from {checkpoint}: {reason}. Delete it: --resume goes on from the one before "
                        "it, or from the beginning") from error  # fmt: skip


# ---- the trainer ----


def _make_trainer(
    loaded: LoadedModel, train_set: Dataset, validation_set: Dataset, options: TrainOptions, folder: Path
) -> Any:
    import torch
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    class SpeechTrainer(SFTTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            # trl also takes the entropy and the accuracy over all ids at each step, which for a vocabulary of
            # speech costs more than the loss itself.
            return Trainer.compute_loss(self, *args, **kwargs)

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return LengthGrouped(train_set["length"], options.batch_size or 1, options.seed)

        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            # transformers' own is a mean over batches: of short and long clips alike, and where several processes
            # share an uneven set, with clips that fill it up.
            output = super().evaluation_loop(*args, **kwargs)
            if output.metrics and "eval_by_token" in output.metrics:
                output.metrics["eval_loss"] = output.metrics.pop("eval_by_token")
            return output

    if loaded.backend == "transformers" and lean_loss_available():  # Unsloth has one of its own
        use_lean_loss(loaded.model)
    on_gpu = loaded.device.type == "cuda"
    has_validation = len(validation_set) > 0
    arguments: dict[str, Any] = dict(
        output_dir=str(folder / CHECKPOINT_FOLDER),
        per_device_train_batch_size=options.batch_size,
        # Unsloth's validation builds the logits of whole rows: 8 of 2,048 tokens take 15 GB.
        per_device_eval_batch_size=1 if loaded.backend == "unsloth" else options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.scheduler,
        warmup_steps=options.warmup_steps,
        weight_decay=options.weight_decay,
        optim="adamw_8bit",
        bf16=on_gpu and loaded.dtype == torch.bfloat16,
        fp16=on_gpu and loaded.dtype == torch.float16,
        use_cpu=not on_gpu,
        gradient_checkpointing=False,  # add_lora has set it up, Unsloth's way or transformers'
        logging_steps=options.log_every,
        logging_first_step=True,
        eval_strategy="steps" if has_validation and options.eval_every else "no",
        eval_steps=options.eval_every or None,
        eval_on_start=has_validation,
        save_strategy="steps" if options.save_every else "no",
        save_steps=options.save_every or 500,
        save_total_limit=2,
        seed=options.seed,
        include_num_input_tokens_seen="all" if options.packing else "non_padding",
        report_to=_tensorboard(folder),
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,  # trl's would cut the end of speech off
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False if world_size() > 1 else None,
        disable_tqdm=True,
        push_to_hub=False,
    )

    def by_slot(outcome: Any) -> dict[str, float]:
        losses, labels = outcome.predictions, outcome.label_ids
        mean = float(losses[:, 1:][labels[:, 1:] != IGNORE].mean())  # nobody predicts the first token
        return losses_by_slot(losses, labels, loaded.layout) | {"by_token": mean}

    adapter = [(parameter, parameter.data) for parameter in loaded.model.parameters() if parameter.requires_grad]
    trainer = SpeechTrainer(
        model=loaded.model,
        args=SFTConfig(**arguments),
        data_collator=Collator(loaded.layout.pad, options.packing),
        train_dataset=train_set,
        eval_dataset=validation_set if has_validation else None,
        processing_class=loaded.tokenizer,
        preprocess_logits_for_metrics=token_losses,
        compute_metrics=by_slot,
    )
    trainer.remove_callback(PrinterCallback)
    # trl rounds the adapter of a 4-bit model to bfloat16, where small updates are lost and fp16's scaler fails.
    for parameter, data in adapter:
        parameter.data = data.float()
    # Unsloth sets these, and a validation after training would round the adapter just before it is saved.
    trainer.args.bf16_full_eval = trainer.args.fp16_full_eval = False
    return trainer


def _tensorboard(folder: Path) -> list[str]:
    import os
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        log.info("tensorboard is not installed: no event files (pip install tensorboard)")
        return []
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")  # transformers 5 reads it there
    return ["tensorboard"]


def token_losses(logits: Any, labels: Any) -> Any:
    """The loss of each token, float32 [B, T] (0 at the first and at ignored ones), instead of logits [B, T, V].

    Where the model gave the losses themselves (`use_lean_loss`), they are returned as they are.
    """
    import torch
    import torch.nn.functional as F

    if isinstance(logits, tuple):
        logits = logits[0]
    if logits.dim() == 2:
        return logits
    losses = torch.zeros(labels.shape, dtype=torch.float32, device=labels.device)
    for start in range(0, labels.shape[1] - 1, NLL_ROWS):
        end = min(start + NLL_ROWS, labels.shape[1] - 1)
        part = F.cross_entropy(
            logits[:, start:end].float().transpose(1, 2),
            labels[:, start + 1 : end + 1],
            ignore_index=IGNORE,
            reduction="none",
        )
        losses[:, start + 1 : end + 1] = part
    return losses


def losses_by_slot(losses: np.ndarray, labels: np.ndarray, layout: TokenLayout) -> dict[str, float]:
    """Mean loss of the codes in each of the seven slots (which codebook lags?) and of the end tokens.

    losses, labels: [N, T]. A slot without a token in the set is left out.
    """
    slot = (labels - layout.audio_start) // layout.slot_size
    groups = {f"slot_{s}": (labels >= layout.audio_start) & (slot == s) for s in range(FRAME_SLOTS)}
    groups["end_of_speech"] = labels == layout.end_of_speech
    return {name: float(losses[mask].mean()) for name, mask in groups.items() if mask.any()}


# ---- progress ----


def _progress(interrupt: Interrupt) -> Any:
    from tqdm.auto import tqdm
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        bar: Any = None
        stepped = False  # whatever is resumed has been read
        tokens_before = 0  # those of the sessions before this one, when resumed

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.tokens_before = state.num_input_tokens_seen
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step",
                            mininterval=1.0)  # fmt: skip

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.stepped = True

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.update(state.global_step - self.bar.n)
            if interrupt and state.global_step < state.max_steps:
                control.should_save = control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            logs = logs or {}
            if self.bar is not None and "loss" in logs:
                self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
            if "eval_loss" in logs and is_main():
                slots = " ".join(f"{logs[k]:.2f}" for k in sorted(logs) if k.startswith("eval_slot_"))
                tqdm.write(f"step {state.global_step}: validation loss {logs['eval_loss']:.3f} (by slot {slots})")

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.close()

    return Progress()


def _eval_steps(trainer: Any) -> set[int]:
    return {entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry}


# ---- summary ----


def _summarise(loaded: LoadedModel, trainer: Any, interrupted: bool, seconds: float, tokens: int) -> TrainSummary:
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    evaluations = [entry for entry in history if "eval_loss" in entry]
    last = evaluations[-1] if evaluations else {}
    return TrainSummary(
        steps=trainer.state.global_step,
        interrupted=interrupted,
        seconds=round(seconds, 2),
        tokens=tokens,
        trainable_parameters=trainable_parameters(loaded.model),
        peak_memory_bytes=_peak_memory(loaded.device),
        train_loss=losses[-1] if losses else float("nan"),
        validation_before=evaluations[0]["eval_loss"] if evaluations and evaluations[0]["step"] == 0 else None,
        validation_after=last.get("eval_loss"),
        validation_by_slot=[last[k] for k in (f"eval_slot_{s}" for s in range(FRAME_SLOTS)) if k in last],
        history=history,
    )


def _peak_memory(device: Any) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_reserved(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def plot_losses(history: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw training and validation loss over the steps, and the validation loss of each slot, as a PNG."""
    from matplotlib.figure import Figure

    from orpheus.audio.recordings import atomic_path

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    training = [(e["step"], e["loss"]) for e in history if "loss" in e]
    evaluations = [e for e in history if "eval_loss" in e]
    if training:
        left.plot(*zip(*training, strict=True), label="training", alpha=0.7)
    if evaluations:
        left.plot([e["step"] for e in evaluations], [e["eval_loss"] for e in evaluations], "o-", label="validation")
    for slot in range(FRAME_SLOTS):
        points = [(e["step"], e[f"eval_slot_{slot}"]) for e in evaluations if f"eval_slot_{slot}" in e]
        if points:
            right.plot(*zip(*points, strict=True), "o-", label=f"slot {slot}")
    left.set(xlabel="step", ylabel="loss (nats per token)", title="loss")
    right.set(xlabel="step", title="validation loss by slot: which codebook lags")
    for axes in (left, right):
        if axes.has_data():
            axes.legend(fontsize="small")
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
    return path
