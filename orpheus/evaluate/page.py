"""The report as one HTML file: what the figures say, the figures, and some clips to listen to and look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from orpheus.audio.pages import Html, player, spectrogram, table, tag, write_page
from orpheus.evaluate.compare import Comparison
from orpheus.evaluate.report import KINDS, LABELS, Heard, Report, Row, Take, key

HEAD = {"original": "recording", "reconstruction": "codec alone", "generated": "generated"}


def save_page(path: Path, comparison: Comparison, more: Sequence[Html] = ()) -> Path:
    """Write the page. `more`: sections that come before the clips. UserError if it can't be written."""
    first, names = comparison.first, list(comparison.reports)
    about = first.about
    title = f"{' and '.join(names)} on {len(first.rows)} clips of {about.get('corpus', 'recordings')}"
    head = ["", *(HEAD.get(column, column) for column in comparison.columns())]
    said = [line for name, report in comparison.reports.items() for line in sentences(name, report)]
    why = {reason: name for name, reason in reversed(first.missing.items())}
    return write_page(
        path,
        title,
        *(tag("p", tag("strong", warning)) for report in comparison.reports.values()
          for warning in report.about.get("warnings", [])),
        tag("ul", *(tag("li", line) for line in [*said, *(comparison.sure(name) for name in comparison.differences)])),
        table(head, [(label, *cells) for label, cells in comparison.lines()],
              "Each figure with the interval that holds 95 % of its values when the clips are drawn again"),
        tag("p", "Words were written down by ", about["recogniser"] or "nobody: no recogniser was at work", ". ",
            *(f"Not measured: {name} ({reason}). " for reason, name in why.items()), class_="quiet"),
        *more,
        tag("h2", "Listen"),
        tag("p", f"{len(first.sounds)} of the clips, from the first to the last." if len(first.sounds) < len(first.rows)
            else "All clips."),
        *(_clip(comparison, index) for index in first.sounds),
    )  # fmt: skip


def sentences(name: str, report: Report) -> list[str]:
    """What the figures of a voice say, in plain words."""
    found = report.figures()
    lines = []
    if report.about.get("speaks_as"):
        lines.append(f"{name}: the voice of the clips is not known to it; it speaks as {report.about['speaks_as']}.")
    if (wrong := found["wer_generated"]) and (heard := found["wer_original"]):
        lines.append(f"{name}: {wrong.value:.0%} of the words are heard wrong; of the recordings themselves "
                     f"{heard.value:.0%}, which is the recogniser's own share.")  # fmt: skip
    if (own := found["speaker_similarity"]) and (ceiling := found[key("speaker_similarity", KINDS[0])]):
        lines.append(f"{name}: as like the speaker as {own.value:.2f}, where the recordings are as like each other as "
                     f"{ceiling.value:.2f}. Another person has about 0.6.")  # fmt: skip
    if (ended := found["end_of_speech_share"]) and (silence := found["trailing_silence_s"]):
        usual = found[key("trailing_silence_s", KINDS[0])]
        lines.append(
            f"{name}: {ended.value:.0%} of the texts ended by themselves, with {silence.value:.2f} s of "
            "silence at the end" + (f"; the recordings have {usual.value:.2f} s." if usual else ".")
        )
    return lines


def _clip(comparison: Comparison, index: int) -> Html:
    """A text, and side by side its recording, what the codec makes of it, and each voice."""
    names = list(comparison.reports)
    reports = list(comparison.reports.values())
    row = reports[0].rows[index]
    sounds: list[tuple[str, Heard, Take | None, np.ndarray | None]]
    sounds = [(HEAD[kind], row.heard(kind)[0], None, reports[0].sounds[index].get(kind)) for kind in KINDS[:2]]
    for name, report in zip(names, reports, strict=True):
        take = report.rows[index].takes[0]
        title = name if len(names) > 1 else HEAD[KINDS[2]]
        sounds.append((title, take.heard, take, report.sounds[index].get(KINDS[2])))
    cells = [[Html(""), Html("")] if samples is None else
             [player(samples, f"{title}: {row.text}"), spectrogram(samples, f"spectrogram, {title}")]
             for title, _, _, samples in sounds]  # fmt: skip
    facts = [tag("div", *(tag("div", line) for line in _facts(row, heard, take)), class_="quiet")
             for _, heard, take, _ in sounds]  # fmt: skip
    rows = [[player for player, _ in cells], [picture for _, picture in cells], facts]
    whose = f"{row.name}, {row.voice}" if row.voice else row.name
    return tag("section", tag("h3", row.text), tag("p", whose, class_="quiet"),
               table([title for title, *_ in sounds], rows), style="overflow-x: auto")  # fmt: skip


def _facts(row: Row, heard: Heard, take: Take | None) -> list[str]:
    """What was measured on one sound."""
    lines = [f"{heard.seconds:.1f} s" + (f", pitch {heard.f0_hz:.0f} Hz" if heard.f0_hz else "")]
    if take:
        lines.append("ended by itself" if take.finish_reason == "end_of_speech" else take.finish_detail)
    if heard.transcript is not None and "wer" in heard.counts:
        wrong, words = heard.counts["wer"]
        lines.append(f"heard: “{heard.transcript}” ({wrong:.0f} of {words:.0f} words wrong)")
    values = {name: heard.counts[name][0] for name in ("speaker_similarity", "dnsmos", "mel_cepstral_db")
              if name in heard.counts}  # fmt: skip
    return lines + [f"{LABELS[name]}: {value:.2f}" for name, value in values.items()]
