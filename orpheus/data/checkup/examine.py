"""Any data set -> each clip measured and heard (in parallel, kept in the cache) -> findings."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from orpheus.audio.recordings import AudioProblem
from orpheus.config import CorpusOptions
from orpheus.data.checkup.features import Features, Kept, as_json, key_of, measure
from orpheus.data.checkup.finding import Check, Clip, Finding, Measured, Named, Voice
from orpheus.data.checkup.findings import edges, people, sound, texts
from orpheus.data.clips import Unfit, checked_text, checked_voice
from orpheus.data.encoding import read_ahead
from orpheus.data.sources import Progress, Record, Source, open_source
from orpheus.errors import UserError
from orpheus.hearing.recognise import Recogniser

CHECKS: tuple[Check, ...] = (*sound.CHECKS, *people.CHECKS, *edges.CHECKS, *texts.CHECKS)
LEFT_OUT = "Left out of any training: "
REMEDIES = {
    "no text": "Write what is said.", "bad text": "Mend the text.", "bad tag": "Close the tag, as <laugh>.",
    "opposite phase": "Invert one channel, or export one alone.", "too short": "Join it with its neighbour.",
    "too long": "Split it at a pause.", "unreadable": "Copy it again, or name the right file.",
}  # fmt: skip


@dataclass(frozen=True)
class Ears:
    """What clips are heard with. None: not at hand; `missing` says why, a line each."""

    recogniser: Recogniser | None = None
    embed: Callable[[np.ndarray], np.ndarray] | None = None
    dnsmos: Callable[[np.ndarray], float] | None = None
    missing: list[str] = field(default_factory=list)
    language: str = "en"


@dataclass(frozen=True)
class CheckUp:
    """The result: all clips in the data set's order, by voice those that are fit, and the findings, faults first."""

    source: Source
    clips: list[Clip]
    voices: list[Voice]
    findings: list[Finding]
    missing: list[str]

    @property
    def fit(self) -> list[Measured]:
        """The clips that can be trained on."""
        return [clip for clip in self.clips if isinstance(clip, Measured)]

    def faults(self) -> list[Finding]:
        """What is to be mended or left out."""
        return [finding for finding in self.findings if finding.severity == "fault"]


def examine(options: CorpusOptions, ears: Ears, max_seconds: float, progress: bool = True) -> CheckUp:
    """Measure, hear and judge the data set's clips; what was measured before is read from the cache.

    UserError: the data set can't be opened, or holds no clip.
    """
    source = open_source(options)
    hearer = _Hearer(ears, Kept(Path(options.cache_dir) / "checkup"), options.min_seconds, max_seconds)
    clips: list[Clip] = []
    with (
        contextlib.closing(Progress(source.count, progress)) as shown,
        contextlib.closing(read_ahead(source.records(), hearer.clip)) as read,
    ):
        for _, clip in read:
            clips.append(clip())
            shown.add(clips[-1].seconds)
    if not clips:
        raise UserError(f"{source.name} holds no clips")
    voices = _voices(clips, ears.language)
    return CheckUp(source, clips, voices, [*_unfit(clips), *_found(voices)], ears.missing)


class _Hearer:
    """Measures and hears one clip; in any thread."""

    def __init__(self, ears: Ears, kept: Kept, min_seconds: float, max_seconds: float) -> None:
        self.ears, self.kept, self.limits = ears, kept, (min_seconds, max_seconds)
        self._alone = Lock()  # recognisers and encoders hold state, and compute in threads of their own

    def clip(self, record: Record) -> Clip:
        key = key_of(record)
        clip = Clip(record, key)
        try:
            clip = replace(clip, text=checked_text(record.text), voice=checked_voice(record.voice))
            known = self._known(record, key)
        except Unfit as unfit:
            return replace(clip, unfit=(unfit.reason, str(unfit)))
        except AudioProblem as problem:
            reason = "unreadable" if problem.reason == "missing" else problem.reason
            return replace(clip, unfit=(reason, str(problem)))
        except UserError as error:
            return replace(clip, unfit=("unreadable", str(error)))
        given = {name: value for name, value in vars(clip).items() if name not in ("sound", "unfit")}
        voice = known.get("embedding")
        given |= {"sound": Features(**known["sound"]), "mos": known.get("mos") if self.ears.dnsmos else None,
                  "embedding": np.array(voice, np.float32) if voice and self.ears.embed else None,
                  "heard": known["heard"].get(self._judge) if self.ears.recogniser else None}  # fmt: skip
        return Measured(**given)

    @property
    def _judge(self) -> str:
        recogniser = self.ears.recogniser
        return f"{recogniser.name}, {recogniser.language}" if recogniser else ""

    def _known(self, record: Record, key: str) -> dict[str, Any]:
        """What is known of a clip, completed by what the ears can tell."""
        known = self.kept.load(key)
        if set(known.get("sound", ())) != {f.name for f in fields(Features)} or not self._fits(known["sound"]):
            features, samples = measure(record, *self.limits)
            known = {"heard": {}} | known | {"sound": as_json(features)}
        else:
            samples = None
        missing = [name for name, ear in (("embedding", self.ears.embed), ("mos", self.ears.dnsmos))
                   if ear and name not in known]  # fmt: skip
        if self.ears.recogniser and self._judge not in known["heard"]:
            missing.append("heard")
        if missing:
            samples = record.samples() if samples is None else samples
            with self._alone:
                self._hear(known, missing, samples)
        if missing or samples is not None:
            self.kept.save(key, known)
        return known

    def _fits(self, known: dict[str, Any]) -> bool:
        return self.limits[0] <= known["seconds"] <= self.limits[1]  # else it is measured anew, for the reason

    def _hear(self, known: dict[str, Any], missing: Sequence[str], samples: np.ndarray) -> None:
        if "embedding" in missing and self.ears.embed:
            known["embedding"] = [round(float(v), 4) for v in self.ears.embed(samples)]
        if "mos" in missing and self.ears.dnsmos:
            known["mos"] = round(self.ears.dnsmos(samples), 3)
        if "heard" in missing and self.ears.recogniser:
            known["heard"][self._judge] = self.ears.recogniser.transcribe(samples)


def _voices(clips: Sequence[Clip], language: str) -> list[Voice]:
    by_name: dict[str | None, list[Measured]] = defaultdict(list)
    for clip in clips:
        if isinstance(clip, Measured):
            by_name[clip.voice].append(clip)
    return [Voice(name, members, language) for name, members in by_name.items()]


def _unfit(clips: Sequence[Clip]) -> Iterator[Finding]:
    reasons: dict[str, list[Named]] = defaultdict(list)
    for clip in clips:
        if clip.unfit:
            reasons[clip.unfit[0]].append(Named(clip, clip.unfit[1], 0.0))
    for reason, named in reasons.items():
        yield Finding(reason, LEFT_OUT + reason, REMEDIES.get(reason, "Record or export it again."), "fault", named)


def _found(voices: Sequence[Voice]) -> list[Finding]:
    named: dict[str, list[Named]] = defaultdict(list)
    checks = {check.kind: check for check in (*CHECKS, people.SAME, people.SAME_TEXT)}
    for voice in voices:
        twins, doubles = people.same_recordings(voice.clips, voice)
        named["same recording"] += twins
        named["twice"] += doubles
        twin = {id(one.clip) for one in twins}
        for clip in voice.clips:
            hidden = frozenset({"transcript", "pace"}) if id(clip) in twin else frozenset[str]()
            for check in CHECKS:  # causes stand before what follows from them
                if check.kind not in hidden and (detail := check.judge(clip, voice)):
                    named[check.kind].append(Named(clip, detail, check.lost_s(clip)))
                    hidden |= check.explains
    found = [Finding(kind, check.title, check.remedy, check.severity, named[kind])
             for kind, check in checks.items() if named[kind]]  # fmt: skip
    return sorted(found, key=lambda finding: (finding.severity != "fault", -len(finding.clips)))
