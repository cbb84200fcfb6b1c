"""What is odd about the accepted clips of a data set, though each is fit for use: a line each kind."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence

from orpheus.data.clips import Clip
from orpheus.format.prompt import tag_warnings

LOUDNESS_RANGE_DB = 12.0  # a clip this far from the median loudness is worth a look
LISTED = 5  # how many names a line of the summary lists
FEW = 3  # clips of which nothing is concluded


def warnings(clips: Sequence[Clip]) -> list[str]:
    """What is odd about the accepted clips, a line each kind."""
    lines = tag_warnings(clip.text for clip in clips)
    kinds: dict[str, list[str]] = defaultdict(list)
    recordings: dict[str, list[Clip]] = defaultdict(list)
    median_db = statistics.median([clip.loudness_db for clip in clips] or [0.0])
    for clip in clips:
        for finding in clip.findings:
            kinds[finding.split(":")[0]].append(clip.name)
        if abs(clip.loudness_db - median_db) > LOUDNESS_RANGE_DB:
            kinds[f"more than {LOUDNESS_RANGE_DB:g} dB from the median loudness"].append(clip.name)
        recordings[clip.key].append(clip)
    for same in recordings.values():
        if len({clip.text for clip in same}) > 1:
            kinds["the same recording with another text"] += [clip.name for clip in same]
    unnamed = [clip.name for clip in clips if not clip.voice]
    if 0 < len(unnamed) < len(clips):
        kinds["without a voice, while others have one"] = unnamed
    if doubled := [clip.name for clip in clips if clip.voice and _begins_with(clip.text, clip.voice)]:
        kinds["the text begins with its own voice, which is put before it anyway"] = doubled
    for kind, names in kinds.items():
        more = ", ..." if len(names) > LISTED else ""
        lines.append(f"{kind}: {len(names)} of {len(clips)} clips ({', '.join(names[:LISTED])}{more})")
    return lines + voice_warnings([clip.voice for clip in clips if clip.voice])


def _begins_with(text: str, voice: str) -> bool:
    return bool(re.match(rf"{re.escape(voice)}\s*[:：]", text, re.IGNORECASE))


def voice_warnings(voices: Sequence[str]) -> list[str]:
    """What is odd about a column of voices, a line each."""
    spelt: dict[str, set[str]] = defaultdict(set)
    for voice in voices:
        spelt[" ".join(re.split(r"[\W_]+", voice.casefold()))].add(voice)
    lines = [
        f"the voices {', '.join(sorted(names))} differ only in case or signs: they are learnt as {len(names)} people"
        for names in spelt.values()
        if len(names) > 1
    ]
    if len(voices) > FEW and len(set(voices)) == len(voices):
        lines.append(
            f"the voice is another in each of {len(voices)} clips: if the column holds no speakers, set "
            "--voice-column ''"
        )
    return lines
