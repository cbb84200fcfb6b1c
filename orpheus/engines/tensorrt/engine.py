"""TensorRT-LLM: the files that it reads beside a merged checkpoint, and an engine over its LLM API.

Not run by this project, which has no machine for it. Names were checked against TensorRT-LLM 1.2.1, the last release on
PyPI, and its main branch of 2026: `tensorrt_llm/commands/serve.py`, `llmapi/llm_args.py` (TorchLlmArgs, KvCacheConfig,
CudaGraphConfig), `sampling_params.py`, `executor/result.py`, `examples/llm-api/`. Both load a Hugging Face checkpoint
as it is. Building an engine first is the older way: 1.2 still has it, later versions don't (their migration guide,
"TensorRT Backend Removed").
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from orpheus.config import SamplingOptions
from orpheus.engines.background import Background
from orpheus.engines.base import check_lengths
from orpheus.errors import MissingPackage, UserError
from orpheus.format.tokens import TokenLayout

IMAGE = "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"
INSTALL = f"docker run --rm -it --gpus all --ipc host {IMAGE}, or pip install tensorrt-llm where CUDA is"
SERVE, BUILD = "trtllm_serve.yaml", "trtllm_build.yaml"

SERVE_YAML = """\
# trtllm-serve FOLDER --host 127.0.0.1 --port 8000 --extra_llm_api_options FOLDER/{name}
# Not run by this project. Fields: TensorRT-LLM's TorchLlmArgs.
max_seq_len: {context}          # prompt and speech together, in tokens; else the model's full context is reserved
max_num_tokens: {context}       # of all requests in one step: the longest prompt fits
max_batch_size: {batch}
kv_cache_config:
  free_gpu_memory_fraction: {memory}
  enable_block_reuse: true      # prompts with the same beginning share it
cuda_graph_config:
  enable_padding: true
  max_batch_size: {batch}
"""

BUILD_YAML = """\
# trtllm-serve FOLDER --backend tensorrt --host 127.0.0.1 --port 8000 --extra_llm_api_options FOLDER/{name}
# Builds a TensorRT engine first: TensorRT-LLM up to 1.2, later versions can't. Not run by this project.
build_config:
  max_seq_len: {context}
  max_num_tokens: {context}
  max_batch_size: {batch}
kv_cache_config:
  free_gpu_memory_fraction: {memory}
  enable_block_reuse: true
"""


def write_tensorrt_llm(
    folder: Path, context_length: int = 2048, batch_size: int = 8, memory_share: float = 0.8
) -> list[Path]:
    """Write what TensorRT-LLM reads beside the merged checkpoint in `folder`; returns the two paths.

    Args:
        folder: a merged model: config.json, safetensors and tokenizer, as `export --to merged` writes them.
        context_length: most tokens, prompt and speech together; 2048 hold 20 s of speech and its text.
        batch_size: most utterances at once.
        memory_share: of the GPU memory that the weights leave, for the cache.
    Raises:
        UserError: the folder holds no merged Llama.
    """
    check_merged(folder)
    if not 0 < memory_share < 1:
        raise UserError(f"the share of the memory is {memory_share}, expected more than 0 and less than 1")
    paths = []
    for name, template in ((SERVE, SERVE_YAML), (BUILD, BUILD_YAML)):
        path = folder / name
        text = template.format(name=name, context=context_length, batch=batch_size, memory=memory_share)
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def check_merged(folder: Path) -> None:
    """UserError unless `folder` holds a whole, unquantised Llama with its tokenizer."""
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if missing or not list(folder.glob("*.safetensors")) or (folder / "adapter_config.json").exists():
        raise UserError(
            f"'{folder}' is no merged model (config.json, tokenizer.json, *.safetensors): make one with "
            "orpheus export --to merged"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("architectures") != ["LlamaForCausalLM"] or "quantization_config" in config:
        raise UserError(f"'{folder}' holds no unquantised Llama, which is what TensorRT-LLM is given here")


class TrtllmEngine:
    """Continues prompts with TensorRT-LLM in this process. Not run by this project.

    Args:
        model: folder of a merged model.
        layout: its token ids.
        context_length: most tokens, prompt and speech together.
        backend: "pytorch" loads the folder; "tensorrt" builds an engine from it first (up to 1.2).
    Raises:
        UserError: not a merged model, or TensorRT-LLM is not installed or has no such backend.
    """

    name = "tensorrt-llm"

    def __init__(
        self,
        model: str | Path,
        layout: TokenLayout,
        context_length: int = 2048,
        backend: Literal["pytorch", "tensorrt"] = "pytorch",
        batch_size: int = 8,
    ) -> None:
        check_merged(Path(model))
        self.layout, self.context_length = layout, context_length
        limits = {"max_seq_len": context_length, "max_num_tokens": context_length, "max_batch_size": batch_size}
        self._sampling, make = _package(backend)
        self._llm = make(str(model), limits)
        self._background = Background("trtllm-engine")  # last: it has a thread, which nobody would end

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, seeds: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """Yield `(row, id)` as they are drawn. Closing it aborts the requests. UserError for a prompt too long."""
        if sampling.decoding != "strict":
            raise UserError(f"decoding '{sampling.decoding}' is not built for TensorRT-LLM: use --decoding strict")
        check_lengths(prompts, sampling.max_new_tokens, self.context_length)
        rows = [self._row(prompt, sampling, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        yield from self._background.merge(rows)

    async def _row(self, prompt: Sequence[int], sampling: SamplingOptions, seed: int) -> AsyncGenerator[int, None]:
        greedy = sampling.temperature == 0
        params = self._sampling(
            max_tokens=sampling.max_new_tokens,
            temperature=None if greedy else sampling.temperature,
            top_p=None if greedy else sampling.top_p,
            top_k=1 if greedy else None,
            repetition_penalty=sampling.repetition_penalty,
            seed=seed,
            end_id=self.layout.end_of_speech,
            pad_id=self.layout.pad,
            detokenize=False,
        )
        count = 0
        result = self._llm.generate_async([int(i) for i in prompt], params, streaming=True)
        try:
            async for output in result:
                for token_id in output.outputs[0].token_ids_diff:
                    yield int(token_id)
                    count += 1
                    if not self.layout.legal(token_id, count - 1) or count == sampling.max_new_tokens:
                        return
            reason = result.outputs[0].finish_reason
            if reason != "stop":
                raise UserError(f"TensorRT-LLM broke off after {count} tokens ('{reason}'): its log says why")
            yield self.layout.end_of_speech  # it keeps the id that ended it to itself
        finally:
            if not result.finished:
                result.abort()

    def close(self) -> None:
        """End TensorRT-LLM's processes. The engine can't be used any more."""
        self._llm.shutdown()
        self._background.stop()


def _package(backend: str) -> tuple[Any, Any]:
    """SamplingParams, and what makes an LLM from a folder and its limits: all that needs the package."""
    try:
        import tensorrt_llm
    except ImportError as error:
        raise MissingPackage("tensorrt-llm", "this engine", INSTALL) from error
    if backend == "pytorch":
        return tensorrt_llm.SamplingParams, lambda model, limits: tensorrt_llm.LLM(model=model, **limits)
    try:
        from tensorrt_llm import BuildConfig
        from tensorrt_llm._tensorrt_engine import LLM
    except ImportError as error:
        raise UserError(
            f"TensorRT-LLM {tensorrt_llm.__version__} builds no engines any more: use --backend pytorch"
        ) from error
    return tensorrt_llm.SamplingParams, lambda model, limits: LLM(model=model, build_config=BuildConfig(**limits))
