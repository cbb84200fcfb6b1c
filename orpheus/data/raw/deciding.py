"""What was heard in a recording, and what is known of its words -> the rows of the table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.data.raw import texts
from orpheus.data.raw.cutting import PAD_S
from orpheus.data.raw.inputs import Input
from orpheus.data.raw.listening import Heard, Sound
from orpheus.data.raw.options import RawOptions
from orpheus.data.raw.pieces import Piece, cut
from orpheus.data.raw.table import DROP, KEEP, Row
from orpheus.data.raw.texts import ALIKE, FITS, Aligned, align, as_heard, likeness, script_of, spoken
from orpheus.errors import UserError
from orpheus.format.prompt import check_text, suggest_tag

LEAST_SURE = 0.4  # mean probability of the words of a piece: below it Whisper guesses, as in music
NEARBY_S = 0.6  # a sound this close to a piece is suggested for it too
UNKNOWN_SOUND = "?"
LAUGHTER = re.compile(
    r"\b(?:h[aeio]+h?)(?:[\s,!-]+h[aeio]+h?\b){2,}", re.IGNORECASE
)  # as Whisper writes it: ha, ha, ha
INSIDE = "cut inside a sentence"


def decide(recording: Input, heard: Heard, options: RawOptions) -> tuple[list[Row], str]:
    """The rows of a recording, in order, and a remark for the person, or ''."""
    script = script_of(recording.script, PurePath(recording.script_from).suffix.lower())
    spoken_words = [word.text for word in heard.words]
    aligned = heard_alone = as_heard(spoken_words)
    if script:
        aligned = align(spoken_words, script, options.language).stops_too(heard_alone)
    if recording.script and (not script or aligned.share < FITS):
        remark = (f"{recording.script_from} has {aligned.share:.0%} of the words heard in {recording.name}: is it of "
                  "another recording, or in another language?")  # fmt: skip
    else:
        remark = "" if heard.words else f"{recording.name}: no word is heard in it"
    padding_s = 2 * PAD_S
    pieces = cut(heard, aligned.ends, aligned.sure, options.shortest - padding_s, options.longest - padding_s)
    return [_row(recording, heard, aligned, piece, options) for piece in pieces], remark


def clip_name(stem: str, start_s: float) -> str:
    """A clip's file: named by where it begins, so that it keeps its name when others are cut otherwise."""
    return f"clips/{stem}_{round(1000 * start_s):08d}.flac"


def _row(recording: Input, heard: Heard, aligned: Aligned, piece: Piece, options: RawOptions) -> Row:
    said = "".join(word.text for word in heard.words[piece.first : piece.last]).strip()
    text, directions = texts.directions(aligned.between(piece.first, piece.last))
    if options.write_out:
        text = spoken(text, options.language)
    drop = next(_reasons_to_drop(recording, heard, piece, text, said, options), "")
    start_s, end_s = round(piece.start / SAMPLE_RATE_HZ, 3), round(piece.end / SAMPLE_RATE_HZ, 3)
    laughs = [] if recording.script else [f"<laughs> for '{found[0]}'" for found in LAUGHTER.finditer(text)]
    written = [f"<{name}> in the transcript" for name in directions]
    suggested = [*written, *laughs, *_suggestions(heard, piece)]
    return Row(
        clip=clip_name(recording.stem, start_s),
        decision=DROP if drop else KEEP,
        text=text,
        start_s=start_s,
        end_s=end_s,
        recording=recording.name,
        voice=recording.voice or options.voice,
        reason=drop or ("" if piece.whole else INSIDE),
        suggested_tags="; ".join(suggested),
        heard=said if recording.script else "",
    )


def _reasons_to_drop(recording: Input, heard: Heard, piece: Piece, text: str, said: str,
                     options: RawOptions) -> Iterator[str]:  # fmt: skip
    length_s = piece.seconds + 2 * PAD_S
    if length_s > options.longest:
        yield f"no pause to cut at in {length_s:.1f} s"
    if length_s < options.shortest:
        yield f"too short: {length_s:.2f} s, and nothing close enough to be joined with"
    if recording.script:
        if not piece.sure:
            yield "the transcript does not tell which words lie at its ends"
        if (alike := likeness(text, said, options.language)) < ALIKE:
            yield f"the transcript says something else than is heard ({alike:.0%} alike)"
    words = heard.words[piece.first : piece.last]
    if not recording.script and (sure := sum(word.probability for word in words) / len(words)) < LEAST_SURE:
        yield f"the words are uncertain ({sure:.0%})"
    try:
        check_text(text)
    except UserError as error:
        yield str(error)


def _suggestions(heard: Heard, piece: Piece) -> Iterator[str]:
    """Sounds without a word in a piece, or close to it: '<laughs> at 12.3-12.9 s'."""
    nearby = round(NEARBY_S * SAMPLE_RATE_HZ)
    for sound in heard.sounds:
        if sound.end > piece.start - nearby and sound.start < piece.end + nearby:
            where = "before: " if sound.end <= piece.start else "after: " if sound.start >= piece.end else ""
            yield f"{where}{_tag(sound)} at {sound.start / SAMPLE_RATE_HZ:.2f}-{sound.end / SAMPLE_RATE_HZ:.2f} s"


def _tag(sound: Sound) -> str:
    name = (suggest_tag(sound.name) or sound.name).split(" ")[-1] if sound.name else UNKNOWN_SOUND
    return f"<{name}>"
