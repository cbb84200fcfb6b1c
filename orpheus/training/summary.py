"""What a training did, and its curves: the summary that is printed, saved and drawn."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orpheus.errors import UserError
from orpheus.format.tokens import FRAME_SLOTS
from orpheus.model.adapter import trainable_parameters
from orpheus.model.base import LoadedModel
from orpheus.model.provenance import read_json, write_json
from orpheus.training.choosing import PREFIX, SCORE, best_step, judged, write_curve

LOG_FILE = "training_log.json"


@dataclass
class TrainSummary:
    """What a training did. Losses are natural-log cross entropy per token; memory is the peak in bytes.

    `seconds` and `tokens` are those of this session (a resumed training has had others), validation and gates included.
    `validation_after` is that of the adapter that is kept.
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
    kept_step: int | None = None  # of the adapter that the training ends with, where gates have chosen it
    why: str = ""  # and why, in a sentence
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of text and speech trained on per second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def results(self) -> dict[str, Any]:
        """What is written down beside the adapter (`Provenance.results`)."""
        plain = {"validation_loss": self.validation_after, "validation_loss_before": self.validation_before,
                 "steps": self.steps, "seconds": self.seconds}  # fmt: skip
        if self.kept_step is None:
            return plain
        entry = judged(self.history)[self.kept_step]
        found = {name.removeprefix(PREFIX): entry[name] for name in entry if name.startswith(PREFIX)}
        return {**plain, "kept_step": self.kept_step, "why": self.why, "gates": found}

    @classmethod
    def load(cls, folder: Path) -> TrainSummary:
        """Read it from the training_log.json that `save` wrote. UserError if there is none, or it is damaged."""
        path = folder / LOG_FILE
        try:
            return cls(**read_json(path, "train again with --overwrite"))
        except TypeError as error:
            raise UserError(f"{path} is damaged ({error}): train again with --overwrite") from error

    def save(self, folder: Path) -> None:
        """Write training_log.json, the curves loss.png, and gates/gates.csv where there are gates, into `folder`."""
        write_json(folder / LOG_FILE, asdict(self))
        write_curve(self.history, folder)
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
        if self.why:
            lines.append(self.why)
        return "\n".join(lines)


def summarise(loaded: LoadedModel, trainer: Any, interrupted: bool, seconds: float, tokens: int,
              chosen: tuple[int, str] | None = None) -> TrainSummary:  # fmt: skip
    """What `trainer` did in this session; `chosen`: the step that the gates kept, and why."""
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    evaluations = [entry for entry in history if "eval_loss" in entry]
    step, reason = chosen or (None, "")
    last: dict[str, Any] = next((e for e in reversed(evaluations) if step in (None, e["step"])), {})
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
        kept_step=step,
        why=reason,
        history=history,
    )


def _peak_memory(device: Any) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_reserved(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def plot_losses(history: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw the losses over the steps, the validation loss of each slot, and the gates where there are any, as a PNG."""
    from matplotlib.figure import Figure

    from orpheus.audio.recordings import atomic_path

    heard = judged(history)
    figure = Figure(figsize=(15 if heard else 10, 4), layout="constrained")
    left, right, *more = figure.subplots(1, 3 if heard else 2)
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
    if heard:
        _plot_gates(more[0], list(heard.values()), best_step(history))
    for axes in (left, right, *more):
        if axes.has_data():
            axes.legend(fontsize="small")
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
    return path


def _plot_gates(axes: Any, heard: Sequence[dict[str, Any]], best: int | None) -> None:
    for name in dict.fromkeys(name for entry in heard for name in entry if name.startswith(PREFIX)):
        points = [(e["step"], e[name]) for e in heard if name in e]
        style = {"color": "black", "linewidth": 3} if name == SCORE else {"alpha": 0.6}
        axes.plot(*zip(*points, strict=True), "o-", label=name.removeprefix(PREFIX), **style)
    axes.axvline(best, color="black", linestyle=":")
    axes.set(xlabel="step", ylim=(-0.03, 1.03), title=f"gates: share that passes; step {best} is the best")
