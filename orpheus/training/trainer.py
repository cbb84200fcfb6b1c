"""LoRA training on prepared sequences: the trainer, loss per slot, checkpoints.

The data sets hold finished sequences (`input_ids`, `labels`, `length`); nothing is tokenised or cut here.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orpheus.config import TrainOptions
from orpheus.errors import UserError, disk_errors
from orpheus.format.prompt import IGNORE
from orpheus.format.tokens import FRAME_SLOTS, TokenLayout
from orpheus.model.base import LoadedModel
from orpheus.processes import is_main, wait_for_all, world_size
from orpheus.training.batches import Collator, LengthGrouped, check_known
from orpheus.training.checkpoints import FOLDER as CHECKPOINT_FOLDER
from orpheus.training.checkpoints import find_checkpoint, may_be_damage, stop_on_interrupt
from orpheus.training.choosing import FOLDER as GATES_FOLDER
from orpheus.training.choosing import Judge, gate_callback, undisturbed
from orpheus.training.losses import lean_loss_available, use_lean_loss
from orpheus.training.progress import progress_bar
from orpheus.training.summary import TrainSummary, summarise

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

NLL_ROWS = 256  # positions whose log-probabilities are taken at once: bounds the memory of a validation pass


def train(
    loaded: LoadedModel,
    train_set: Dataset,
    validation_set: Dataset,
    options: TrainOptions,
    folder: Path,
    identity: dict[str, Any],
    judge: Judge | None = None,
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
        judge: hears the adapter every `options.gate_every` steps (0: never) and after the last; the best of those
            heard is what the model ends with.
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
        if checkpoint is None:
            shutil.rmtree(folder / GATES_FOLDER, ignore_errors=True)  # of the training before
    wait_for_all()
    if not is_main():
        checkpoint = find_checkpoint(folder / CHECKPOINT_FOLDER, options.resume, identity, writes=False)
    trainer = _make_trainer(loaded, train_set, validation_set, options, folder)
    started = time.perf_counter()
    keep = "earlier checkpoints are kept, go on with --resume when there is space"
    with disk_errors(f"the training can't write its files to {folder}", keep), stop_on_interrupt() as interrupt:
        gates = None
        if judge and options.gate_every:  # before the bar, which sees then whether Ctrl-C was pressed meanwhile
            gates = gate_callback(trainer, loaded, judge, folder, options.gate_every, options.patience, interrupt)
            trainer.add_callback(gates)
        progress = progress_bar(interrupt)
        trainer.add_callback(progress)
        _run(trainer, checkpoint, progress)
        # Ctrl-C in the very last step interrupts nothing: the training is done.
        interrupted = bool(interrupt) and trainer.state.global_step < trainer.state.max_steps
        if len(validation_set) and not interrupted and trainer.state.global_step not in _eval_steps(trainer):
            trainer.evaluate()
        chosen = (
            gates.finish(trainer.state.log_history, trainer.state.global_step) if gates and not interrupted else None
        )
    tokens = int(trainer.state.num_input_tokens_seen) - progress.tokens_before
    return summarise(loaded, trainer, interrupted, time.perf_counter() - started, tokens, chosen)


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

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            with undisturbed(loaded.model, loaded.device):  # how often it is measured changes nothing
                return super().evaluate(*args, **kwargs)

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


def _eval_steps(trainer: Any) -> set[int]:
    return {entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry}
