"""The best of a training by what is heard, not by its loss: every so many steps a judge hears the adapter as it stands.

The judge is handed in (`Judge`): what speaks and measures lies in higher rooms. It leaves no trace in the training: the
losses with it and without it are the same, number for number.
"""

from __future__ import annotations

import csv
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from orpheus.audio.recordings import atomic_path
from orpheus.model.base import LoadedModel
from orpheus.processes import is_main, wait_for_all, world_size
from orpheus.training.checkpoints import FOLDER as CHECKPOINT_FOLDER
from orpheus.training.checkpoints import Interrupt

log = logging.getLogger(__name__)

FOLDER, CURVE_FILE = "gates", "gates.csv"
SCORE, PREFIX = "gate_score", "gate_"  # in the training's history


@dataclass(frozen=True)
class Verdict:
    """What the judge found. `score` and the figures by gate: 0 to 1, higher is better; `sentence`: one plain line."""

    score: float
    figures: dict[str, float]
    sentence: str


Judge = Callable[[Path], Verdict]
"""Hears the adapter as it stands, and leaves what it heard in the folder that it is given."""


@contextmanager
def undisturbed(model: Any, device: Any) -> Iterator[None]:
    """Around anything done in the middle of a training: chance goes on, and each layer's mode is, as before."""
    import torch

    modes = {layer: layer.training for layer in model.modules()}
    chance = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(chance[0])
        np.random.set_state(chance[1])
        for layer, training in modes.items():
            layer.training = training


def judged(history: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What a training's history says of its gates, by step."""
    return {entry["step"]: entry for entry in history if SCORE in entry}


def losses(history: Sequence[dict[str, Any]]) -> dict[int, float]:
    """The validation losses by step."""
    return {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}


def best_step(history: Sequence[dict[str, Any]], steps: Sequence[int] | None = None) -> int | None:
    """The step with the highest score, of `steps` or of all; of equals the one with the lower loss, else the later."""
    known, loss = judged(history), losses(history)
    among = [step for step in known if steps is None or step in steps]
    return max(among, key=lambda step: (known[step][SCORE], -loss.get(step, 0.0), step), default=None)


def why(history: Sequence[dict[str, Any]], step: int, last: int, patience: int) -> str:
    """In one sentence which step is kept and why."""
    known, loss = judged(history), losses(history)
    said = f"step {step} is kept, the best of {len(known)} by gates: score {known[step][SCORE]:.3f}"
    if step != last and last in known:
        said += f", the last step's is {known[last][SCORE]:.3f}"
    among = {s: loss[s] for s in known if s in loss}
    if among and (lowest := min(among, key=lambda s: among[s])) != step:
        said += (f"; the lowest validation loss would have chosen step {lowest} "
                 f"({among[lowest]:.3f} against {among.get(step, float('nan')):.3f}), whose score is "
                 f"{known[lowest][SCORE]:.3f}")  # fmt: skip
    return said + (f"; stopped at step {last}, after {patience} in a row got worse" if patience else "")


def got_worse(history: Sequence[dict[str, Any]], times: int) -> bool:
    """Whether each of the last `times` verdicts is worse than the one before it."""
    scores = [entry[SCORE] for _, entry in sorted(judged(history).items())][-times - 1 :]
    return 0 < times < len(scores) and all(b < a for a, b in pairwise(scores))


class Kept:
    """The best adapter so far, in a file beside the checkpoints; also that of the newest checkpoint, for --resume."""

    def __init__(self, folder: Path, model: Any) -> None:
        self.folder = folder
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.safe: int | None = None  # what the newest checkpoint will look for

    def file(self, step: int) -> Path:
        """Where the adapter of a step is kept."""
        return self.folder / f"best-{step}.safetensors"

    def steps(self) -> list[int]:
        """The steps whose adapters are there."""
        return [int(file.stem[5:]) for file in self.folder.glob("best-*.safetensors") if file.stem[5:].isdecimal()]

    def keep(self, step: int) -> None:
        """Write the adapter as it stands, and forget those that nobody will look for."""
        from safetensors.torch import save_file

        with atomic_path(self.file(step), overwrite=True) as partial:
            save_file({name: p.detach().cpu().contiguous() for name, p in self.weights.items()}, partial)
        self.forget(step)

    def forget(self, *but: int) -> None:
        """Delete all but these, and that of the newest checkpoint."""
        for step in set(self.steps()) - {*but, self.safe}:
            self.file(step).unlink(missing_ok=True)

    def restore(self, step: int) -> None:
        """Give the model the adapter of that step."""
        import torch
        from safetensors.torch import load_file

        with torch.no_grad():
            for name, kept in load_file(str(self.file(step))).items():
                self.weights[name].copy_(kept)


def gate_callback(trainer: Any, loaded: LoadedModel, judge: Judge, folder: Path, every: int, patience: int,
                  interrupt: Interrupt) -> Any:  # fmt: skip
    """A callback of transformers: every `every` steps, and after the last, the judge hears the adapter.

    Its `finish()` gives the model the best adapter and returns its step and why. Of several processes the first one
    speaks, and the others wait.
    """
    from tqdm.auto import tqdm
    from transformers import TrainerCallback

    kept = Kept(folder / CHECKPOINT_FOLDER, loaded.model)

    def hear(step: int) -> Verdict:
        verdict = None
        with undisturbed(loaded.model, loaded.device):
            if is_main():
                verdict = judge(folder / FOLDER / f"step_{step}")
            if world_size() > 1:
                from accelerate.utils import broadcast_object_list

                [verdict] = broadcast_object_list([verdict])
        assert verdict is not None
        return verdict

    class Gates(TrainerCallback):
        stopped = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            kept.safe = best_step(state.log_history, kept.steps())
            if self.due(state):  # interrupted before it was heard
                self.judge(state, control)

        def due(self, state: Any) -> bool:
            step = state.global_step
            last = step >= state.max_steps
            return step > 0 and (last or step % every == 0) and step not in judged(state.log_history)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.due(state) and not (interrupt and state.global_step < state.max_steps):
                self.judge(state, control)

        def judge(self, state: Any, control: Any) -> None:
            step, loss_is_due = state.global_step, control.should_log
            if trainer.eval_dataset is not None and step not in losses(state.log_history):
                trainer.evaluate()  # so that both ways of choosing are known
                control.should_evaluate = False
            verdict = hear(step)
            trainer.log({SCORE: verdict.score, **{PREFIX + name: value for name, value in verdict.figures.items()}})
            control.should_log = loss_is_due  # each log takes it that the loss was in it
            if is_main():
                tqdm.write(f"step {step}: gates {verdict.score:.3f}: {verdict.sentence}")
                if best_step(state.log_history, [*kept.steps(), step]) == step:
                    kept.keep(step)
            if got_worse(state.log_history, patience) and step < state.max_steps:
                self.stopped = control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if is_main():
                kept.safe = best_step(state.log_history, kept.steps())
                kept.forget()

        def finish(self, history: list[dict[str, Any]], last: int) -> tuple[int, str] | None:
            wait_for_all()  # until the first has written
            step = best_step(history, [*kept.steps(), last])
            if step is None:
                return None
            if step != last:
                kept.restore(step)
            if step != best_step(history):
                log.warning("the adapter of step %s, the best by gates, is gone: the best of the others is kept",
                            best_step(history))  # fmt: skip
            return step, why(history, step, last, patience if self.stopped else 0)

    return Gates()


def write_curve(history: Sequence[dict[str, Any]], folder: Path) -> None:
    """gates/gates.csv: a row for each step that was heard, with its validation loss."""
    known, loss = judged(history), losses(history)
    if not known:
        return
    names = list(dict.fromkeys(name for entry in known.values() for name in entry if name.startswith(PREFIX)))
    with atomic_path(folder / FOLDER / CURVE_FILE, overwrite=True) as partial, open(partial, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", "validation_loss", *(name.removeprefix(PREFIX) for name in names)])
        table.writerows([step, loss.get(step), *(entry.get(name) for name in names)] for step, entry in known.items())
