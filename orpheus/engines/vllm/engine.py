"""Generation with vLLM in this process: many prompts at once, LoRA adapters as they are, several GPUs.

vLLM is an optional package with its own versions of torch and CUDA: it wants a virtual environment of its own.
Names are those of vLLM 0.32: `AsyncEngineArgs`, `AsyncLLM.generate`, `SamplingParams`, `LoRARequest`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from orpheus.config import SamplingOptions
from orpheus.engines.background import Background
from orpheus.engines.base import check_lengths
from orpheus.errors import MissingPackage, UserError
from orpheus.format.tokens import TokenLayout

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `max_lora_rank` (vllm/config/lora.py, MaxLoRARanks)."""


class VllmEngine:
    """Continues prompts with a vLLM engine that lives as long as this object.

    Args:
        model: folder or hub id of the base, or of a merged checkpoint.
        layout: the model's token ids.
        context_length: most tokens, prompt and speech together; vLLM reserves memory for at least one such sequence.
        adapter: folder of a LoRA adapter on that base, in peft's format; None speaks with the model alone.
        tensor_parallel, data_parallel: GPUs that share a copy of the model, and copies of it.
        dtype: "auto", "bfloat16", "float16" or "float32".
        options: any other field of vLLM's AsyncEngineArgs, like `gpu_memory_utilization`.
    Raises:
        UserError: vLLM is not installed, or can't load this.
    """

    name = "vllm"

    def __init__(
        self,
        model: str,
        layout: TokenLayout,
        context_length: int,
        adapter: str | Path | None = None,
        tensor_parallel: int = 1,
        data_parallel: int = 1,
        dtype: str = "auto",
        **options: Any,
    ) -> None:
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.lora.request import LoRARequest
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise MissingPackage("vllm", "the vLLM engine", "pip install -r requirements-vllm.txt") from error
        self.layout, self.context_length = layout, context_length
        self._lora = None
        if adapter is not None:
            options |= {"enable_lora": True, "max_lora_rank": lora_rank(Path(adapter))}
            self._lora = LoRARequest("adapter", 1, str(Path(adapter).resolve()))
        self._background = Background("vllm-engine")

        async def load() -> Any:
            return AsyncLLM.from_engine_args(
                AsyncEngineArgs(
                    model=model,
                    max_model_len=context_length,
                    tensor_parallel_size=tensor_parallel,
                    data_parallel_size=data_parallel,
                    dtype=dtype,
                    disable_log_stats=True,
                    **options,
                )
            )

        try:
            self._llm = self._background.run(load())
        except (ValueError, RuntimeError, OSError, TypeError) as error:
            self._background.stop()
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(f"vLLM can't load '{model}': {reason.strip()} (its log above says more)") from error

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, seeds: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """Yield `(row, id)` as vLLM draws them; it batches these rows with those of every other caller.

        Closing it takes its rows out of vLLM's batch. UserError for a prompt that does not fit.
        """
        if sampling.decoding != "strict":
            raise UserError(
                f"decoding '{sampling.decoding}' is not built for vLLM, which draws from the whole vocabulary: use "
                "--decoding strict, or another engine"
            )
        check_lengths(prompts, sampling.max_new_tokens, self.context_length)
        rows = [self._row(prompt, sampling, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        yield from self._background.merge(rows)

    async def _row(self, prompt: Sequence[int], sampling: SamplingOptions, seed: int) -> AsyncGenerator[int, None]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=sampling.max_new_tokens,
            seed=seed,
            stop_token_ids=[self.layout.end_of_speech],
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,  # each output has the new ids alone
        )
        count = 0
        ids = {"prompt_token_ids": [int(i) for i in prompt]}
        # A closed generator is an aborted request (AsyncLLM.generate).
        async with aclosing(
            self._llm.generate(ids, params, request_id=uuid.uuid4().hex, lora_request=self._lora)
        ) as outputs:
            async for output in outputs:
                for token_id in output.outputs[0].token_ids:
                    yield int(token_id)
                    count += 1
                    if not self.layout.legal(token_id, count - 1) or count == sampling.max_new_tokens:
                        return
        raise UserError(f"vLLM broke off after {count} tokens: its log above says why")

    def close(self) -> None:
        """End vLLM's processes and free its memory. The engine can't be used any more."""
        self._llm.shutdown()
        del self._llm  # it would be shut down again when Python exits, and fail
        self._background.stop()


def lora_rank(adapter: Path) -> int:
    """The smallest rank that vLLM can be prepared for and that holds the adapter's. UserError if there is none."""
    path = adapter / "adapter_config.json"
    if not path.is_file():
        raise UserError(f"'{adapter}' is no adapter: there is no {path.name} in it")
    rank = int(json.loads(path.read_text(encoding="utf-8"))["r"])
    for possible in LORA_RANKS:
        if rank <= possible:
            return possible
    raise UserError(
        f"the adapter has rank {rank} and vLLM takes up to {LORA_RANKS[-1]}: merge it first (orpheus export "
        "--to merged) and give the merged folder as the model"
    )
