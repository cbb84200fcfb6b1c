"""What an adapter, a model or a WAV was made from: a JSON file beside it, so that nothing has to be guessed later."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from orpheus import __version__
from orpheus.audio.recordings import atomic_path
from orpheus.config import SamplingOptions
from orpheus.errors import UserError
from orpheus.format.tokens import TokenLayout

FILE_NAME = "orpheus.json"
RESTORE = "restore it, or train again"
MOST_JSON_BYTES = 2**24
PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "huggingface_hub", "bitsandbytes", "unsloth", "snac",
            "llama_cpp_python")  # fmt: skip


@dataclass(frozen=True)
class Provenance:
    """Everything needed to speak with an adapter or an exported model: `OrpheusInference` reads it, and needs no more.

    Of an exported model, whose adapter is part of the weights, it is the adapter's own with `merged_from` added.
    """

    __pydantic_config__: ClassVar = {"allow_inf_nan": False}  # for the numbers whose type says float

    base: str
    codec: str
    layout: TokenLayout
    base_revision: str | None = None
    base_fingerprint: tuple[float, ...] = ()
    codec_identity: str | None = None
    voices: tuple[str, ...] = ()  # seen in training; empty: single speaker, plain text
    base_voices: tuple[str, ...] = ()
    merged_from: str = ""  # the adapter that is part of these weights; empty: none
    tags: dict[str, int] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)  # name, clips, seconds, left_out, replay (`Corpus.about`)
    data_hash: str | None = None
    seen: str = ""  # the clips that were trained on, as `orpheus.data.seen` writes them; empty: not known
    base_terms: dict[str, Any] = field(default_factory=dict)  # licence and language, by the base's own card
    sampling: dict[str, float] = field(default_factory=dict)  # an exported base's own (`own_sampling`)
    words: tuple[str, ...] = ()  # all that an exported base knows (`own_words`); empty: any
    speech_statistics: dict[str, float] = field(default_factory=dict)  # what is usual in the recordings (`guard`)
    config: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Write `orpheus.json` into `folder`."""
        return write_json(folder / FILE_NAME, dataclasses.asdict(self))

    def to_json(self) -> str:
        """All of it as one line of JSON, for files that hold it as metadata."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, default=str)

    @classmethod
    def load(cls, folder: Path) -> Provenance | None:
        """Read it from `folder`; None if there is none. UserError if it is damaged."""
        path = folder / FILE_NAME
        return cls.from_data(read_json(path, RESTORE), str(path)) if path.is_file() else None

    @classmethod
    def from_json(cls, text: str, where: str) -> Provenance:
        """The opposite of `to_json`. UserError, naming `where` it stood, if it is damaged."""
        return cls.from_data(parse_json(text, where, RESTORE), where)

    @classmethod
    def from_data(cls, data: dict[str, Any], where: str) -> Provenance:
        """Of JSON's values: each is checked to be of its type; what is null or not known here is left out."""
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_python({name: value for name, value in data.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(f"{where} is damaged ({place}: {first['msg']}): {RESTORE}") from error


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file. UserError, one line, for a file that can't be read or holds anything else."""
    try:
        if (size := path.stat().st_size) > MOST_JSON_BYTES:
            raise ValueError(f"it has {size:,} bytes")
        return parse_json(path.read_text(encoding="utf-8"), str(path), remedy)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error


def parse_json(text: str, where: str, remedy: str) -> dict[str, Any]:
    """The object in a JSON text. UserError, naming `where` it stood, for anything else."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged ({error}): {remedy}") from error
    if not isinstance(data, dict):
        raise UserError(f"{where} is damaged (it holds a {type(data).__name__}, expected an object): {remedy}")
    return data


def spoken_note(voice: str | None, seed: int, model: dict[str, Any]) -> str:
    """What a sound file says of itself in its metadata: that nobody spoke it, and how it was made.

    model: what an engine tells of itself, with `base` and `adapter`. Folders are named without the way to them, which
    says something of whoever made the file.
    """
    by = " on ".join(short_name(name) for name in (model.get("adapter"), model.get("base")) if name)
    return (f"Synthetic speech, made by a computer. Voice: {voice or 'the only one'}, model: {by or 'not known'}, "
            f"seed: {seed}. Software: Orpheus LoRA {__version__}")  # fmt: skip


def short_name(name: str) -> str:
    """A hub id as it is, a folder or file by its own name; a snapshot of the hub's cache is a hub id again."""
    path = Path(name)
    if path.parent.name == "snapshots" and (repository := path.parent.parent.name).startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    is_path = path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2 or path.exists()
    return path.resolve().name if is_path else name


def own_sampling(folder: Path | None) -> dict[str, float]:
    """How a base wants its tokens drawn, by its generation_config.json; {}: as published (`SamplingOptions`).

    Only a file that names all three, and says do_sample, counts: that of Orpheus-3B comes from Llama, of which it keeps
    no penalty. UserError if it is damaged or out of range.
    """
    path = folder / "generation_config.json" if folder else None
    if path is None or not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        own = {name: config.get(name) for name in ("temperature", "top_p", "repetition_penalty")}
        if not config.get("do_sample") or None in own.values():
            return {}
        SamplingOptions(**own)  # checks the ranges
        return {name: float(value) for name, value in own.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def own_words(folder: Path | None) -> tuple[str, ...]:
    """The only words that a toy base knows, by its words.txt, one a line in lower case; empty: it may know any."""
    path = folder / "words.txt" if folder else None
    return tuple(path.read_text(encoding="utf-8", errors="replace").split()) if path and path.is_file() else ()


def write_json(path: Path, data: Any) -> Path:
    """Write `data` as readable JSON, whole or not at all."""
    text = json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n"
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of packages, those that are installed; by default of those that shape the result."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
