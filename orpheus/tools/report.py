"""report.html beside an adapter: what a training did, and how the voice sounds beside its recordings. One file.

It is made of what the training left behind (orpheus.json, loss.png, corpus_report.txt, the spoken samples), so it can
be made again at any time, and of a few recordings where the data set can be opened.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from orpheus.audio.pages import Html, escaped, picture, player, spectrogram, table, tag, write_page
from orpheus.audio.recordings import SAMPLE_RATE_HZ, read
from orpheus.config import CorpusOptions
from orpheus.data.sources import Record, open_source
from orpheus.errors import UserError
from orpheus.format.prompt import find_tags
from orpheus.model.card import evaluated, figures, made_of
from orpheus.model.provenance import Provenance, read_json, spoken_note

log = logging.getLogger(__name__)

FILE_NAME = "report.html"
CORPUS_REPORT = "corpus_report.txt"
LOOKED_AT = 1000  # rows among which recordings with a sample's tags are looked for
SHOWN_S = 15.0  # of a recording
INTRODUCTION = ("What the voice speaks is synthetic speech: say so wherever people could take it for real, and clone a "
                "voice only with the consent of the person it belongs to.")  # fmt: skip


def write_report(adapter: Path, samples: Sequence[Path], out: Path, recordings: bool = True) -> Path:
    """Write the report on a trained adapter to `out`.

    samples: the sound files that it spoke, each with its .json; those that are not there are left out.
    recordings: with a recording of the voice beside each sample, and what is told of every clip.
    """
    made = Provenance.load(adapter)
    if made is None:
        raise UserError(f"{adapter} has no orpheus.json: there is nothing to report on")
    spoken = [sample for sample in samples if sample.is_file() and sample.with_suffix(".json").is_file()]
    return write_page(
        out,
        f"The voice in {adapter.resolve().name}",
        tag("p", INTRODUCTION),
        tag("h2", "How it sounds"),
        *_sounds(made, spoken, recordings),
        tag("h2", "What was measured"),
        *_measured(adapter, made),
        tag("h2", "What it was made of"),
        table(("", ""), ((name, _inline(said)) for name, said in made_of(made).items())),
        *((tag("h2", "The recordings, and what was left out of them"), _corpus(adapter)) if recordings else ()),
    )


def _sounds(made: Provenance, samples: Sequence[Path], recordings: bool) -> list[Html]:
    if not samples:
        return [tag("p", "No samples were spoken.")]
    told = [read_json(sample.with_suffix(".json"), "speak it again") for sample in samples]
    beside, why = _beside(made, [str(about.get("text", "")) for about in told]) if recordings else ([], "")
    rows = []
    for number, (sample, about) in enumerate(zip(samples, told, strict=True)):
        row = [_spoken(read(sample), about, sample.name)]
        if beside:
            row.append(_recorded(*beside[number]))
        rows.append(row)
    head = ("spoken by the voice", "a recording of it") if beside else ("spoken by the voice",)
    return [table(head, rows), *([tag("p", why, class_="quiet")] if why else [])]


def _spoken(samples: np.ndarray, about: dict[str, Any], name: str) -> Html:
    note = spoken_note(about.get("voice"), int(about.get("seed") or 0), about.get("model", {}))
    ended = str(about.get("finish_reason"))
    facts = (f"{name}, {len(samples) / SAMPLE_RATE_HZ:.1f} s, seed {about.get('seed')}, ended by ",
             tag("span", ended, class_="good" if ended == "end_of_speech" else "bad"))  # fmt: skip
    return tag("div", *_sound(samples, str(about.get("text", "")), note), tag("p", *facts, class_="quiet"))


def _recorded(record: Record, samples: np.ndarray) -> Html:
    name = f"{record.name}, {len(samples) / SAMPLE_RATE_HZ:.1f} s"
    shown = samples[: int(SHOWN_S * SAMPLE_RATE_HZ)]
    return tag("div", *_sound(shown, str(record.text), ""), tag("p", name, class_="quiet"))


def _sound(samples: np.ndarray, text: str, note: str) -> tuple[Html, ...]:
    return (
        tag("p", text),
        player(samples, text, note),
        tag("figure", spectrogram(samples, f"spectrogram of: {text}")),
    )


def _beside(made: Provenance, texts: Sequence[str]) -> tuple[list[tuple[Record, np.ndarray]], str]:
    """For each text a recording of the first voice, with the same tags where there is one; or none, and why."""
    try:
        source = open_source(CorpusOptions(**_options(made)))
        voice = made.voices[0] if made.voices else None
        rows = islice(source.records(), LOOKED_AT)
        records = [r for r in rows if isinstance(r.text, str) and (voice is None or str(r.voice).strip() == voice)]
        if len(records) < len(texts):
            return [], "The data set has too few recordings of the voice to show some beside the samples."
        return [(record, record.samples()) for record in _alike(texts, records)], ""
    except (UserError, TypeError, OSError) as error:
        log.info("no recordings in the report: %s", error)
        return [], f"There are no recordings beside them: {error}"


def _alike(texts: Sequence[str], records: Sequence[Record]) -> list[Record]:
    """For each text another record, with as many of its tags as can be; there are at least as many records."""
    tags = [set(find_tags(record.text)) for record in records]
    free = list(range(len(records)))
    chosen: dict[int, int] = {}
    wanted = {i: set(find_tags(text)) for i, text in enumerate(texts)}
    # Those that find something first: the others may take what is left.
    for i in sorted(wanted, key=lambda i: -max(len(wanted[i] & tags[r]) for r in free)):
        chosen[i] = max(free, key=lambda r: len(wanted[i] & tags[r]))
        free.remove(chosen[i])
    return [records[chosen[i]] for i in range(len(texts))]


def _options(made: Provenance) -> dict[str, Any]:
    """Where the recordings were taken from."""
    names = ("dataset", "split", "text_column", "audio_column", "voice_column")
    return {name: value for name, value in made.config.get("corpus", {}).items() if name in names}


def _measured(adapter: Path, made: Provenance) -> list[Html]:
    numbers = figures(made) | evaluated(adapter)
    found = [table(("figure", ""), numbers.items())] if numbers else []
    why = [tag("p", made.results["why"])] if made.results.get("why") else []
    curve = adapter / "loss.png"
    if not curve.is_file():
        return [*found, *why]
    return [*found, *why, tag("figure", picture(lambda file: file.write(curve.read_bytes()), "loss curves"))]


def _inline(text: str) -> Html:
    """Markdown's code and links as the model card has them."""
    parts = re.split(r"`([^`]+)`|\[([^\]]+)\]\(([^)]+)\)", text)
    found = [escaped(parts[0])]
    for code, name, address, rest in zip(*(parts[i::4] for i in (1, 2, 3, 4)), strict=True):
        found += [tag("code", code) if code else tag("a", name, href=address), escaped(rest)]
    return Html("".join(found))


def _corpus(adapter: Path) -> Html:
    file = adapter / CORPUS_REPORT
    if not file.is_file():
        return tag("p", f"{CORPUS_REPORT} is not there.")
    return tag("pre", file.read_text(encoding="utf-8"), style="white-space: pre-wrap")
