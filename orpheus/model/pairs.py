"""What belongs together: an adapter to its base, a base to its codec. It is known, or asked for; never a guess."""

from __future__ import annotations

from pathlib import Path

from orpheus.config import BASE_VOICES, HUB_CODEC, PRESETS
from orpheus.errors import UserError
from orpheus.format.tokens import ORPHEUS
from orpheus.model.checks import base_config, lora_config
from orpheus.model.hub import local_folder
from orpheus.model.provenance import Provenance

SPARE_ROWS = 128  # token rows beyond the last audio id: some trainers fill the embedding up to a round number


def known_of(base: str | None) -> Provenance | None:
    """What a base that is a folder says of itself (`orpheus.json`); None for hub ids, and where it says nothing."""
    folder = local_folder(base, "base model") if base else None
    return Provenance.load(folder) if folder else None


def base_of(adapter: Path) -> str | None:
    """The base that an adapter's folder names: in `orpheus.json`, else in adapter_config.json as other trainers do."""
    made = Provenance.load(adapter)
    name = made.base if made else lora_config(adapter).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def codec_of(base: str) -> str:
    """The codec (hub id or folder) that a base speaks with.

    By its `orpheus.json`, as part of a preset, by its hub id, or by its size: a model with the published token layout
    (156,938 ids and a few spare rows) speaks SNAC for 24 kHz. UserError, one line, where none of these tells.
    """
    if made := known_of(base):
        return made.codec
    preset = next((p for p in PRESETS.values() if p.base == base), None)
    if preset:
        return preset.codec
    rows = ORPHEUS.audio_end if base in BASE_VOICES else base_config(base).get("vocab_size")
    if isinstance(rows, int) and 0 <= rows - ORPHEUS.audio_end < SPARE_ROWS:
        return HUB_CODEC
    raise UserError(
        f"which codec the base '{base}' speaks with is not known: name it with --codec, a hub id or a folder"
    )
