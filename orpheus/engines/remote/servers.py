"""What each kind of completions server is asked, and where its answer has the token ids.

All of them speak OpenAI's `/v1/completions`; they differ in the names of what OpenAI does not have: the repetition
penalty, ids instead of text, and whether special tokens are shown. Sources, read in 2026:

    vLLM              vllm/entrypoints/openai/completion/protocol.py (0.32)
    TensorRT-LLM      tensorrt_llm/serve/openai_protocol.py, postprocess_handlers.py (forbids fields it doesn't know)
    SGLang            python/sglang/srt/entrypoints/openai/protocol.py
    llama-server      llama.cpp, tools/server/server-schema.cpp, server-task.cpp
    llama-cpp-python  llama_cpp/server/types.py, app.py (0.3.36)
    LM Studio         lmstudio.ai/docs, OpenAI compatibility endpoints
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orpheus.config import SamplingOptions
from orpheus.format.tokens import TokenLayout

Fields = dict[str, Any]
MOST_ID = 2**31


@dataclass(frozen=True)
class Kind:
    """One kind of server."""

    name: str
    owner: str  # what it writes as `owned_by` into /v1/models
    fields: Callable[[SamplingOptions, TokenLayout], Fields]  # on top of OpenAI's own
    at_once: int | None = None  # requests that it answers at the same time; None: as many as come
    caveat: str = ""  # what can't be asked for in a request


def _vllm(sampling: SamplingOptions, layout: TokenLayout) -> Fields:
    # top_k and min_p: else the model's generation_config.json decides.
    return {"repetition_penalty": sampling.repetition_penalty, "top_k": 0, "min_p": 0.0,
            "stop_token_ids": [layout.end_of_speech], "include_stop_str_in_output": True,
            "skip_special_tokens": False, "spaces_between_special_tokens": False, "return_token_ids": True}  # fmt: skip


def _tensorrt_llm(sampling: SamplingOptions, layout: TokenLayout) -> Fields:
    # Without detokenize it sends ids.
    return {"repetition_penalty": sampling.repetition_penalty, "top_k": 0, "detokenize": False,
            "stop_token_ids": [layout.end_of_speech], "include_stop_str_in_output": True,
            "skip_special_tokens": False, "spaces_between_special_tokens": False}  # fmt: skip


def _sglang(sampling: SamplingOptions, layout: TokenLayout) -> Fields:
    return {"repetition_penalty": sampling.repetition_penalty, "top_k": -1, "min_p": 0.0,
            "stop_token_ids": [layout.end_of_speech], "no_stop_trim": True, "skip_special_tokens": False,
            "return_token_ids": True}  # fmt: skip


def _llama_server(sampling: SamplingOptions, layout: TokenLayout) -> Fields:
    # The order of transformers and vLLM. The window -1 is the whole context. `verbose` brings the ids.
    return {"repeat_penalty": sampling.repetition_penalty, "repeat_last_n": -1,
            "samplers": ["penalties", "temperature", "top_p"], "verbose": True, "return_tokens": True}  # fmt: skip


def _llama_cpp_python(sampling: SamplingOptions, layout: TokenLayout) -> Fields:
    return {"repeat_penalty": sampling.repetition_penalty, "top_k": 0, "min_p": 0.0}


NUCLEUS_FIRST = "takes the nucleus before the temperature, so that it is wider than elsewhere"

KINDS = (
    Kind("vLLM", "vllm", _vllm),
    Kind("TensorRT-LLM", "tensorrt_llm", _tensorrt_llm),
    Kind("SGLang", "sglang", _sglang),
    Kind("llama-server", "llamacpp", _llama_server),
    Kind("llama-cpp-python", "me", _llama_cpp_python, at_once=1,  # a second request breaks the first one off
         caveat=f"{NUCLEUS_FIRST}; it penalises repetitions among the last --last_n_tokens_size tokens only (64, "
                "unless it was started with more)"),
    Kind("LM Studio", "organization_owner", _llama_cpp_python,
         caveat=f"{NUCLEUS_FIRST}; how far back it penalises repetitions is not documented"),
)  # fmt: skip


def kind_of(owner: str) -> Kind:
    """The kind of server by its `owned_by`; one that is not known is asked as vLLM is, which most servers copy."""
    known = next((kind for kind in KINDS if kind.owner == owner), None)
    return known or Kind(f"unknown kind of server ('{owner}')", owner, _vllm, caveat="is asked as if it were vLLM")


def ids_of(event: Fields, choice: Fields) -> list[int] | None:
    """The ids in one event of the stream (or in a whole answer); None where the server sends text only.

    TypeError, AttributeError: it is no event.
    """
    ids: list[int] | None = given(choice, "token_ids", list)
    if ids is None:
        ids = given(given(event, "__verbose", dict) or {}, "tokens", list)  # llama-server
    if ids and not all(type(i) is int and abs(i) < MOST_ID for i in ids):
        raise TypeError("an id is no small integer")
    return ids


def given(of: Fields, name: str, kind: type) -> Any:
    """What a JSON object has under a name, None for nothing. TypeError: of another kind; AttributeError: no object."""
    value = of.get(name)
    if value is not None and type(value) is not kind:
        raise TypeError(f"{name} is no {kind.__name__}")
    return value
