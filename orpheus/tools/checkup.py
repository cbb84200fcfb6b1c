"""A check-up of recordings, as `orpheus doctor DATASET` runs it."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orpheus.codec.snac import SAMPLES_PER_FRAME, SnacCodec, find_local
from orpheus.config import CorpusOptions, PresetName, RecogniserName, TrainOptions
from orpheus.data.checkup.examine import CheckUp, Ears, examine
from orpheus.data.checkup.facts import Fact, codec_loss, facts
from orpheus.data.checkup.report import as_json, summary, write_report
from orpheus.data.early import check_source
from orpheus.errors import MissingPackage, UserError, check_folder
from orpheus.format.tokens import FRAME_SLOTS
from orpheus.hearing import quality, speakers
from orpheus.hearing.metrics import ENGLISH
from orpheus.hearing.recognise import Recogniser, find_recogniser
from orpheus.model.base import preset_of

MAX_SECONDS = TrainOptions.max_seq_length / FRAME_SLOTS * SAMPLES_PER_FRAME / 24_000


@dataclass(frozen=True)
class DoctorOptions:
    """Show what this machine has; or, with a data set, what is wrong with the recordings."""

    recogniser: RecogniserName = "auto"
    """What writes the words down, to compare them with the texts; none: they are not compared."""
    whisper_model: str | None = None
    """A CTranslate2 Whisper model: folder, hub id or size. Default: tiny.en."""
    language: str = ENGLISH
    """Language of the texts, two letters."""
    preset: PresetName = "auto"
    """Whose codec is tried on the recordings, and whose training is predicted."""
    codec: str | None = None
    """SNAC codec to try instead: hub id or folder."""
    report: Path = Path("voice_report.html")
    """File for the report: every clip that was found, with its sound."""
    json: bool = False
    """Print one JSON object on standard output instead of the summary."""
    corpus: CorpusOptions = field(default_factory=CorpusOptions)

    def __post_init__(self) -> None:
        if self.whisper_model and self.recogniser not in ("auto", "whisper"):
            raise UserError(f"--whisper-model {self.whisper_model} is of no use with --recogniser {self.recogniser}")


def check_up(options: DoctorOptions) -> None:
    """Recordings -> findings -> summary and report. UserError: mistakes in the options, told before the work."""
    check_source(options.corpus)
    check_folder(options.report.parent, "the folder of --report")
    if options.report.is_dir():
        raise UserError(f"--report is {options.report}, which is a folder: name a file in it")
    logging.getLogger("faster_whisper").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        ears = listen_with(options)
        up = examine(options.corpus, ears, MAX_SECONDS)
        about = [*facts(up, preset_of(options.preset)), *_codec(options, up, ears.recogniser)]
        written = write_report(options.report, up, about)
    print(json.dumps(as_json(up, about), ensure_ascii=False) if options.json else summary(up, about))
    print(f"\nreport: {written}", file=sys.stderr if options.json else sys.stdout)


def listen_with(options: DoctorOptions) -> Ears:
    """What is at hand for listening, and a line for what is not."""
    missing: list[str] = []

    def at_hand(what: str, get: Callable[[], Any]) -> Any:
        try:
            return get()
        except MissingPackage as error:
            missing.append(f"{what}: {error}")
        except UserError as error:
            if options.recogniser not in ("auto", "none"):
                raise
            missing.append(f"{what}: {error}")
        return None

    wanted = options.recogniser, options.whisper_model, options.language
    recogniser = at_hand("transcripts", lambda: find_recogniser(*wanted))
    if recogniser is None and not missing:
        why = "--recogniser none" if options.recogniser == "none" else "no recogniser: pip install faster-whisper"
        missing.append(f"transcripts: {why}")
    probe = np.ones(2400, np.float32)
    embed = at_hand("speakers", lambda: speakers.embed(probe) is not None and speakers.embed)
    dnsmos = at_hand("listeners' opinion", lambda: quality.dnsmos(probe) and quality.dnsmos)
    return Ears(recogniser, embed, dnsmos, missing, options.language)


def _codec(options: DoctorOptions, up: CheckUp, recogniser: Recogniser | None) -> list[Fact]:
    name = options.codec or preset_of(options.preset).codec
    if not up.fit:
        return []
    if not options.codec and find_local(name) is None:
        up.missing.append(f"codec: {name} is not on this machine; --codec {name} fetches it and tries it")
        return []
    return [codec_loss(up, SnacCodec.load(name), name, recogniser)]
