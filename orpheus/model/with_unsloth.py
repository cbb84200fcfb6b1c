"""Loading a base with Unsloth: its settings, which it reads as it is imported, and what it must not do in silence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from orpheus.errors import MissingPackage, UserError
from orpheus.model.hub import fetch

SETTINGS = {
    # Unsloth's loss takes the logits of so many GiB at once. Its own choice, a share of what is free, takes up to 4 GiB
    # of a T4 (unsloth_zoo/fused_losses/cross_entropy_loss.py: 3.5 at 1,500 tokens, 4.0 at 1,700, 1.2 at 2,048).
    "UNSLOTH_CE_LOSS_TARGET_GB": "1",
    "UNSLOTH_COMPILE_LOCATION": str(Path(".cache/unsloth").absolute()),  # else a folder beside the user's files
    "UNSLOTH_DISABLE_STATISTICS": "1",  # else each start asks the hub for a file, to be counted
}
"""The environment that Unsloth gets. What the user has set is left alone."""
DEFAULT_LENGTH = 2048  # Unsloth's own


def load_with_unsloth(base: str, in_4bit: bool, dtype: Any, max_seq_length: int | None) -> tuple[Any, Any]:
    """Model and tokenizer, with parts of transformers, peft and trl replaced by Unsloth's.

    Raises:
        UserError: no CUDA GPU, Unsloth is missing, the base can't be had or is shorter than `max_seq_length` tokens.
    """
    need_gpu()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        # Before transformers and peft: Unsloth replaces parts of them as it is imported.
        from unsloth import FastLanguageModel
    except ImportError as error:
        how = "pip install -r requirements.txt -c constraints.txt"
        raise MissingPackage("unsloth", "training on a GPU", how) from error
    from transformers import AutoConfig

    def load() -> tuple[Any, Any]:
        # Longer than the base, and Unsloth would stretch its positions without a word.
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        check_context(base, int(config.max_position_embeddings), max_seq_length)
        return FastLanguageModel.from_pretrained(
            model_name=base,
            max_seq_length=max_seq_length or min(DEFAULT_LENGTH, int(config.max_position_embeddings)),
            dtype=dtype,
            load_in_4bit=in_4bit,
            trust_remote_code=False,
            # Else Unsloth loads another, pre-quantised repository than the provenance names and speaking will need.
            use_exact_model_name=True,
        )

    return fetch("base model", base, load, "use the embedded one: --preset tiny")


def need_gpu() -> None:
    """UserError without a CUDA GPU. Unsloth raises an error of its own; from 2026.10.9 on it goes on without one."""
    import torch

    if not torch.cuda.is_available():
        raise UserError("Unsloth needs a CUDA GPU and PyTorch sees none: use --backend transformers")


def check_context(base: str, context: int, longest: int | None) -> None:
    """UserError where clips of `longest` tokens are asked for and the base was built for fewer."""
    if longest is not None and longest > context:
        raise UserError(f"max-seq-length is {longest}, but the base model '{base}' was built for {context} tokens: "
                        f"give --max-seq-length {context} or less")  # fmt: skip
