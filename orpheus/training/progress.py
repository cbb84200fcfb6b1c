"""The progress bar of a training, and Ctrl-C: it finishes the step and saves a checkpoint."""

from __future__ import annotations

from typing import Any

from orpheus.processes import is_main
from orpheus.training.checkpoints import Interrupt


def progress_bar(interrupt: Interrupt) -> Any:
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
