"""What an adapter, a model or a WAV was made from: a JSON file beside it, so that nothing has to be guessed later."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from orpheus.audio.recordings import atomic_path
from orpheus.config import SamplingOptions
from orpheus.errors import UserError
from orpheus.format.tokens import TokenLayout

FILE_NAME = "orpheus.json"
PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "huggingface_hub", "bitsandbytes", "unsloth", "snac",
            "llama_cpp_python")  # fmt: skip


@dataclass(frozen=True)
class Provenance:
    """Everything needed to speak with an adapter or an exported model: `OrpheusInference` reads it, and needs no more.

    Of an exported model, whose adapter is part of the weights, it is the adapter's own with `merged_from` added.
    """

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
    data_hash: str | None = None
    sampling: dict[str, float] = field(default_factory=dict)  # an exported base's own (`own_sampling`)
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
        return cls.from_json(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None

    @classmethod
    def from_json(cls, text: str, where: str) -> Provenance:
        """The opposite of `to_json`. UserError, naming `where` it stood, if it is damaged."""
        try:
            data = json.loads(text)
            known = {f.name for f in dataclasses.fields(cls)}
            data = {k: v for k, v in data.items() if k in known}
            for name in ("voices", "base_voices", "base_fingerprint"):
                data[name] = tuple(data.get(name) or ())
            return cls(**data | {"layout": TokenLayout(**data["layout"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where} is damaged ({error}): restore it, or train again") from error


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
