"""Which engine speaks with a voice, and how it is opened: the one place that knows all engines.

A new engine is a function that turns a `Wish` into an `Opened`, and a line in `OPENERS`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orpheus.codec.snac import find_local
from orpheus.config import BASE_VOICES, DraftName, EngineName
from orpheus.engines.base import Engine
from orpheus.engines.torch.engine import TorchEngine
from orpheus.errors import UserError
from orpheus.format.prompt import Voices
from orpheus.format.tokens import TokenLayout
from orpheus.model.adapter import adapter_folder, attach_adapter, merge, read_shapes
from orpheus.model.base import (
    check_device,
    four_bit_copy,
    load_base,
    load_tokenizer,
    pack_for_inference,
    pick_4bit,
    pick_device,
)
from orpheus.model.hub import local_folder, portable_name
from orpheus.model.pairs import base_of, codec_of, known_of
from orpheus.model.provenance import Provenance, own_sampling, own_words

log = logging.getLogger(__name__)

GGUF_SUFFIX = ".gguf"
SERVED_CONTEXT = 2048  # tokens of prompt and speech: 20 s and the text; servers reserve memory for all of it


@dataclass(frozen=True)
class Wish:
    """What the user asked for; None: not named. `OrpheusInference` explains each."""

    adapter: str | Path | None
    base: str | None
    codec: str | None
    engine: EngineName
    device: str
    load_in_4bit: bool | Literal["auto"]
    threads: int
    gpu_layers: int
    server: str | None = None
    server_model: str | None = None
    draft: DraftName = "none"


@dataclass(frozen=True)
class Opened:
    """A model that is ready to speak, and what its user must know of it."""

    engine: Engine
    tokenizer: Any  # what `orpheus.format.prompt.Renderer` needs
    codec: str  # hub id or folder
    device: str  # where the codec runs
    made: Provenance | None  # of the adapter, or of the exported model that has it inside
    adapted: bool  # an adapter is at work, attached or merged
    base_voices: tuple[str, ...]  # empty: not known
    about: dict[str, Any]  # for the provenance of what is spoken
    sampling: Mapping[str, float]  # the base's own figures; empty: the published ones
    words: tuple[str, ...] = ()  # all that it knows; empty: it may know any


def open_voice(wish: Wish) -> Opened:
    """Open the model with the engine that is asked for, or that suits it.

    Raises UserError where something is missing or does not fit; the message says what to do.
    """
    return OPENERS[engine_of(wish)](wish)


def engine_of(wish: Wish) -> str:
    """The engine that is asked for, or that suits. UserError: there is none such, or it can't do what is asked."""
    check_device(wish.device)
    if wish.engine != "auto" and wish.engine not in OPENERS:
        raise UserError(f"unknown engine '{wish.engine}': expected auto, {' or '.join(OPENERS)}")
    if wish.server and wish.engine not in ("auto", "remote"):
        raise UserError(f"the engine {wish.engine} needs no server: leave out --server, or take --engine remote")
    suited = "remote" if wish.server else suitable(wish.base)
    engine = suited if wish.engine == "auto" else wish.engine
    if wish.draft != "none" and engine != "torch":
        raise UserError(f"--draft {wish.draft} is built for the engine torch, not for {engine}: leave it out")
    if engine == "remote" and not wish.server:
        raise UserError("the engine remote needs the address of the server: --server http://127.0.0.1:8000")
    return engine


def look_up(wish: Wish) -> Named | None:
    """What is named, as far as its small files tell: nothing heavy is loaded. None: a .gguf file, which says it inside.

    Raises UserError as `open_voice` does, for what is missing, damaged or does not fit at first sight.
    """
    engine = engine_of(wish)
    if engine == "llamacpp":
        gguf_file(wish)
        return None
    it = named(wish, engine)
    local_folder(it.base, "base model")
    find_local(it.codec)
    if it.folder:
        read_shapes(it.folder)
    return it


def suitable(base: str | Path | None) -> str:
    """The engine for a base: llamacpp for a .gguf file, else torch."""
    return "llamacpp" if is_gguf(base) else "torch"


def is_gguf(base: str | Path | None) -> bool:
    """Whether a base is a file for llama.cpp, by its name."""
    return str(base or "").lower().endswith(GGUF_SUFFIX)


@dataclass(frozen=True)
class Named:
    """What a wish names: a base (hub id or folder), perhaps an adapter's folder, the codec, what is known of them."""

    base: str
    folder: Path | None
    codec: str
    made: Provenance | None

    @property
    def adapted(self) -> bool:
        """An adapter is at work, attached or merged."""
        return self.folder is not None or bool(self.made and self.made.merged_from)

    @property
    def sampling(self) -> dict[str, float]:
        """The base's own figures; empty: the published ones."""
        return own_sampling(local_folder(self.base, "base model"))

    @property
    def voices(self) -> Voices:
        """The voices of adapter and base."""
        trained = self.made.voices if self.made and self.adapted else ()
        if self.made and self.adapted and self.folder is None:
            return Voices(trained, self.made.base_voices, adapted=True)
        own = known_of(self.base)
        base = (own.voices or own.base_voices) if own else BASE_VOICES.get(self.base, ())
        return Voices(trained, base, self.adapted, told=not self.adapted or self.made is not None)

    @property
    def words(self) -> tuple[str, ...]:
        """All words that the base knows; empty: it may know any."""
        return own_words(local_folder(self.base, "base model")) or (self.made.words if self.made else ())


def named(wish: Wish, engine: str) -> Named:
    """What to speak with, for an engine that reads folders. UserError if it is not enough, or does not fit."""
    if is_gguf(wish.base):
        raise UserError(f"the engine {engine} can't read {wish.base}: leave out --engine, or name a hub id or a folder")
    folder = None if wish.adapter is None else adapter_folder(wish.adapter)
    trained = Provenance.load(folder) if folder else None
    base = wish.base or (base_of(folder) if folder else None)
    own = known_of(base)
    if base and own and own.merged_from and folder and (not trained or trained.base != portable_name(base)):
        raise UserError(
            f"'{base}' has the adapter {own.merged_from} inside already, and '{folder}' was not trained on it: "
            "speak with it alone (--no-adapter), or name the adapter's own base"
        )
    made = trained if folder else own
    if not base:
        where = f"the adapter in '{folder}' does not say which" if folder else "no adapter is given"
        raise UserError(f"{where}, so name the base: a hub id or a folder")
    codec = wish.codec or (made.codec if made else codec_of(base))
    return Named(base, folder, codec, made)


def open_torch(wish: Wish) -> Opened:
    """Base (hub id or folder) and adapter, with PyTorch."""
    it = named(wish, "torch")
    base, folder, codec, made = it.base, it.folder, it.codec, it.made
    device = pick_device(wish.device)
    # Plain transformers even beside Unsloth: the engine steps the model itself.
    loaded = load_base(base, load_in_4bit=pick_4bit(wish.load_in_4bit, device), backend="transformers", device=device)
    base_voices = made.base_voices if made and it.adapted and folder is None else loaded.voices
    if folder is not None:
        loaded = attach_adapter(loaded, folder)
        if not loaded.in_4bit:
            loaded = merge(loaded)
    pack_for_inference(loaded)
    about = {
        "base": loaded.base,
        "revision": loaded.revision,
        "adapter": str(folder) if folder else None,
        "adapted_modules": loaded.adapted_modules,
        "in_4bit": loaded.in_4bit,
        "device": str(loaded.device),
    }
    if wish.draft != "none":
        about["draft"] = wish.draft
    engine = with_draft(TorchEngine(loaded), wish.draft)
    return Opened(engine, loaded.tokenizer, codec, device, made, it.adapted, base_voices, about, it.sampling, it.words)


def with_draft(engine: TorchEngine, draft: str) -> Engine:
    """The engine, with a copy that guesses ahead if wished. UserError where that can't be, or would only be slower."""
    from orpheus.engines.torch.speculative import SpeculativeEngine

    if draft == "none":
        return engine
    if draft != "4bit":
        raise UserError(f"unknown draft '{draft}': expected none or 4bit")
    if engine.loaded.in_4bit:
        raise UserError("the model is 4-bit itself, so a 4-bit copy has nothing to add: use --draft none")
    if engine.loaded.device.type != "cpu":
        raise UserError("on a GPU the engine's recorded frames are faster than guesses: use --draft none")
    copied = four_bit_copy(engine.loaded)
    if not any(getattr(layer, "support_avx512bf16_for_cpu", False) for layer in copied.model.modules()):
        log.warning("no quick 4-bit products for this model on this processor: guessing will cost more than it saves")
    return SpeculativeEngine(engine, copied)


def gguf_file(wish: Wish) -> Path:
    """The file that is named for llama.cpp. UserError: there is none, or it can't do what is asked."""
    if not is_gguf(wish.base):
        raise UserError(
            f"the engine llamacpp speaks with a {GGUF_SUFFIX} file, not with {wish.base or wish.adapter}: write one by "
            "`orpheus export --to gguf`, and name it with --base"
        )
    if wish.adapter is not None:
        raise UserError(
            f"{wish.base} can't take the adapter '{wish.adapter}': a {GGUF_SUFFIX} file has its adapter inside. Leave "
            "the adapter out (adapter=None), or export it with its own base"
        )
    if wish.load_in_4bit is True:
        raise UserError(f"{wish.base} can't be loaded in 4 bit: export it anew with --type Q4_K_M")
    path = Path(os.path.expanduser(str(wish.base)))
    if not path.is_file():
        raise UserError(f"there is no file {path}: write one by `orpheus export --to gguf --out {path}`")
    return path


def open_llamacpp(wish: Wish) -> Opened:
    """An exported .gguf file, with llama.cpp. Codec and voices are in the file."""
    from orpheus.engines.llamacpp.engine import LlamaCppEngine
    from orpheus.engines.llamacpp.model import LlamaCppModel

    path = gguf_file(wish)
    device = pick_device(wish.device)
    model = LlamaCppModel(path, threads=wish.threads, gpu_layers=0 if wish.device == "cpu" else wish.gpu_layers)
    if wish.device.startswith("cuda") and not model.on_gpu:
        raise UserError(f"device '{wish.device}' was asked for, but llama.cpp was built without GPU support here: see "
                        "docs/export.md on building it, or use --device cpu")  # fmt: skip
    made = model.made
    codec = wish.codec or (made.codec if made else None)
    if not codec:
        raise UserError(f"{path} does not say which codec it speaks with: name it with --codec, a hub id or a folder")
    about = {"base": str(path), "adapter": None, "file": model.description, "device": device}
    engine = LlamaCppEngine(model)
    if made is None:
        return Opened(engine, model.tokenizer, codec, device, None, False, (), about, {})
    adapted = bool(made.merged_from)
    voices = made.base_voices if adapted else made.voices or made.base_voices
    return Opened(engine, model.tokenizer, codec, device, made, adapted, voices, about, made.sampling, made.words)


def open_remote(wish: Wish) -> Opened:
    """A model on a server. Base and adapter tell tokenizer, codec and voices; their weights are not loaded here."""
    from orpheus.engines.remote.engine import RemoteEngine

    assert wish.server is not None  # `engine_of` has refused that
    it = named(wish, "remote")
    tokenizer = load_tokenizer(it.base)
    engine = RemoteEngine(wish.server, layout_of(it, tokenizer), SERVED_CONTEXT, wish.server_model, tokenizer=tokenizer)
    return served(wish, it, engine, tokenizer, {"server": engine.kind.name, "served_model": engine.model})


def open_vllm(wish: Wish) -> Opened:
    """Base and adapter, with vLLM in this process."""
    from orpheus.engines.vllm.engine import VllmEngine

    it = named(wish, "vllm")
    tokenizer = load_tokenizer(it.base)
    model = str(local_folder(it.base, "base model") or it.base)
    engine = VllmEngine(model, layout_of(it, tokenizer), SERVED_CONTEXT, it.folder)
    return served(wish, it, engine, tokenizer, {"adapter": str(it.folder) if it.folder else None})


def layout_of(it: Named, tokenizer: Any) -> TokenLayout:
    """The token ids of what is named: written down, or read from the tokenizer."""
    return it.made.layout if it.made else TokenLayout.from_tokenizer(tokenizer)


def served(wish: Wish, it: Named, engine: Engine, tokenizer: Any, about: dict[str, Any]) -> Opened:
    """An engine that loads its weights itself; only the codec runs on `wish.device`."""
    device = pick_device(wish.device)
    voices = it.made.base_voices if it.made else BASE_VOICES.get(it.base, ())
    return Opened(engine, tokenizer, it.codec, device, it.made, it.adapted, voices, {"base": it.base, **about},
                  it.sampling, it.words)  # fmt: skip


OPENERS: dict[str, Callable[[Wish], Opened]] = {
    "torch": open_torch, "llamacpp": open_llamacpp, "remote": open_remote, "vllm": open_vllm,
}  # fmt: skip
