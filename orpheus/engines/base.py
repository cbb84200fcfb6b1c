"""What an engine is, and the stop rule that all engines share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from orpheus.config import SamplingOptions
from orpheus.errors import UserError
from orpheus.format.tokens import TokenLayout


class Engine(Protocol):
    """Continues prompts with token ids."""

    name: str
    layout: TokenLayout

    @property
    def context_length(self) -> int:
        """Most tokens, prompt and speech together."""
        ...

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, seeds: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """Yield `(row, id)` for each token drawn, rows interleaved in any way, each row in order.

        A row ends with the first id that is not legal audio at its position (it is yielded, so that the
        reader knows why: end_of_speech or an out-of-range id), or after `sampling.max_new_tokens` ids.
        Closing the iterator stops the work. Row r draws from a generator seeded by `seeds[r]` alone.
        """
        ...

    def close(self) -> None:
        """Free what it holds. It can't be used any more."""
        ...


def check_lengths(prompts: Sequence[Sequence[int]], max_new_tokens: int, context_length: int) -> None:
    """UserError if one of the prompts and its speech can't both fit the model's context."""
    for prompt in prompts:
        if len(prompt) + max_new_tokens > context_length:
            raise UserError(
                f"the prompt has {len(prompt)} tokens and up to {max_new_tokens} tokens of speech may follow, "
                f"more than the model's context of {context_length}: shorten the text, or lower "
                "--max-new-tokens"
            )
