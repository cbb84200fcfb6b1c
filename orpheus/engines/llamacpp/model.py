"""A .gguf file opened with llama.cpp: its metadata, its tokenizer, and scores for ids.

The functions are those of llama.h, by llama-cpp-python. Its high-level class `llama_cpp.Llama` is not used:
it keeps 512 rows of scores (0.3 GB for this vocabulary) and samples by rules of its own.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from orpheus.errors import MissingPackage, UserError
from orpheus.format.tokens import TokenLayout
from orpheus.model.provenance import Provenance

PROVENANCE_KEY = "orpheus.provenance"
"""The metadata key under which an export keeps its provenance, as JSON."""
INSTALL = "pip install llama-cpp-python==0.3.36"
CONTEXT_STEP = 256  # llama.cpp rounds contexts up to this itself
BATCH = 512  # most ids in one pass
ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR (ggml.h)


def llama_cpp() -> ModuleType:
    """The package, quiet: what it logs is kept in `log_lines`. MissingPackage names the command that installs it."""
    # Read when the library loads: waiting threads that spin slow everything down as soon as cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import llama_cpp as package
    except ImportError as error:
        raise MissingPackage("llama-cpp-python", "a .gguf file", INSTALL) from error
    if not _callback:
        _callback.append(package.llama_log_callback(_log))
        package.llama_log_set(_callback[0], ctypes.c_void_p(0))
        package.llama_backend_init()
    return package


def core_count() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


log_lines: list[tuple[int, str]] = []
"""What llama.cpp has logged lately: level and text."""
_callback: list[Any] = []  # C holds a pointer to it, so it must live


def _log(level: int, text: bytes, _: Any) -> None:
    log_lines.append((level, text.decode("utf-8", "replace").strip()))
    del log_lines[:-2000]


def reason() -> str:
    """The first thing that llama.cpp said went wrong: what follows are consequences."""
    return next((text for level, text in log_lines if level == ERROR_LEVEL and text), "no reason given")


class LlamaCppModel:
    """The weights, shared by any number of contexts.

    Args:
        path: a .gguf file.
        threads: processor threads; 0: all cores that this process may use.
        gpu_layers: layers on the GPU, where llama.cpp was built for one; -1: all.
    Raises:
        UserError: it can't be loaded, or is no Orpheus model.
    """

    def __init__(self, path: Path, *, threads: int = 0, gpu_layers: int = -1) -> None:
        self.api = api = llama_cpp()
        self.path = path
        self.threads = threads or core_count()
        self.on_gpu = bool(api.llama_supports_gpu_offload()) and gpu_layers != 0
        options = api.llama_model_default_params()
        options.n_gpu_layers = (2**31 - 1 if gpu_layers == -1 else gpu_layers) if self.on_gpu else 0
        del log_lines[:]
        self.handle = api.llama_model_load_from_file(str(path).encode(), options)
        if not self.handle:
            raise UserError(f"llama.cpp can't load {path}: {reason()}")
        self._free = weakref.finalize(self, api.llama_model_free, self.handle)
        self.context_length: int = api.llama_model_n_ctx_train(self.handle)
        self.tokenizer = LlamaCppTokenizer(self)
        try:
            self.layout = TokenLayout.from_tokenizer(self.tokenizer)
        except UserError as error:
            raise UserError(f"{path} is a model of another kind: {error}") from error
        text = self.metadata(PROVENANCE_KEY)
        self.made = None if text is None else Provenance.from_json(text, f"{PROVENANCE_KEY} in {path}")
        if self.made and self.made.layout != self.layout:
            raise UserError(
                f"{path} is damaged: its tokens stand elsewhere than its {PROVENANCE_KEY} says; export it anew"
            )

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata, None if it has no such key (or it is a list)."""
        length = self.api.llama_model_meta_val_str(self.handle, key.encode(), ctypes.create_string_buffer(1), 1)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        self.api.llama_model_meta_val_str(self.handle, key.encode(), buffer, length + 1)
        return buffer.value.decode("utf-8")

    @property
    def description(self) -> str:
        """Kind, size and quantisation in llama.cpp's words: 'llama 3B Q4_K - Medium'."""
        buffer = ctypes.create_string_buffer(256)
        self.api.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")


class LlamaCppTokenizer:
    """llama.cpp's tokenizer with the three methods of a transformers one that the renderer and the layout use."""

    def __init__(self, model: LlamaCppModel) -> None:
        api = model.api
        self.model = model  # keeps the vocabulary alive
        self.handle = api.llama_model_get_vocab(model.handle)
        count = api.llama_vocab_n_tokens(self.handle)
        self.tokens: list[str] = [
            (api.llama_vocab_get_text(self.handle, token_id) or b"").decode("utf-8", "replace")
            for token_id in range(count)
        ]

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        """The ids of a text. Names of control tokens in it become these, as in transformers."""
        data = text.encode("utf-8")
        room = len(data) + 8  # never more ids than bytes
        ids = (self.model.api.llama_token * room)()
        count = self.model.api.llama_tokenize(self.handle, data, len(data), ids, room, add_special_tokens, True)
        assert count >= 0, "more ids than bytes"
        return {"input_ids": list(ids[:count])}

    def get_vocab(self) -> dict[str, int]:
        """Every token's text and id."""
        return {text: token_id for token_id, text in enumerate(self.tokens)}

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The texts of ids."""
        return [self.tokens[i] for i in ids]


class LlamaCppContext:
    """One sequence under way: the cache of what was fed, and the scores after it."""

    def __init__(self, model: LlamaCppModel, length: int, *, exact: bool = False) -> None:
        """length: most ids. exact: keep the cache in 32 bit (16 by default), for comparisons."""
        api = model.api
        self.model, self.length = model, -(-length // CONTEXT_STEP) * CONTEXT_STEP
        options = api.llama_context_default_params()
        options.n_ctx = self.length
        options.n_batch = options.n_ubatch = min(BATCH, self.length)
        options.n_threads = options.n_threads_batch = model.threads
        options.n_seq_max = 1
        options.no_perf = True
        if exact:
            options.type_k = options.type_v = api.GGML_TYPE_F32
            options.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.handle = api.llama_init_from_model(model.handle, options)
        if not self.handle:
            raise UserError(f"llama.cpp can't make a context of {self.length} tokens for {model.path}: {reason()}")
        self._free = weakref.finalize(self, api.llama_free, self.handle)
        self.ids: list[int] = []  # what the cache holds

    def keep(self, ids: Sequence[int]) -> int:
        """Forget all but the common beginning of the cache and `ids`, whose last id is never kept: how many stay."""
        api, common = self.model.api, 0
        for have, want in zip(self.ids, ids[:-1], strict=False):
            if have != want:
                break
            common += 1
        api.llama_memory_seq_rm(api.llama_get_memory(self.handle), 0, common, -1)
        del self.ids[common:]
        return common

    def feed(self, ids: Sequence[int], every: bool = False) -> np.ndarray:
        """Add ids to the sequence. Returns their scores: float32 [V] after the last, or [n, V] after `every` one.

        The row for the last is llama.cpp's own memory: it changes with the next call.
        """
        api, rows = self.model.api, []
        for start in range(0, len(ids), BATCH):
            part = list(ids[start : start + BATCH])
            batch = api.llama_batch_init(len(part), 0, 1)
            try:
                batch.n_tokens = len(part)
                for i, token_id in enumerate(part):
                    batch.token[i], batch.pos[i] = token_id, len(self.ids) + i
                    batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                    batch.logits[i] = every or i == len(part) - 1
                status = api.llama_decode(self.handle, batch)
            finally:
                api.llama_batch_free(batch)
            if status:
                raise UserError(f"llama.cpp failed after {len(self.ids)} tokens ({status}): {reason()}")
            self.ids += part
            if every:
                rows += [self._scores(i).copy() for i in range(len(part))]
        return np.stack(rows) if every else self._scores(-1)

    def _scores(self, row: int) -> np.ndarray:
        pointer = self.model.api.llama_get_logits_ith(self.handle, row)
        memory = (ctypes.c_float * len(self.model.tokenizer.tokens)).from_address(ctypes.addressof(pointer.contents))
        # It is freed with this context, which must therefore live as long as the array.
        memory.owner = self  # type: ignore[attr-defined]
        return np.ctypeslib.as_array(memory)
