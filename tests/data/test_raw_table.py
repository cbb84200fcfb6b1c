"""The table of decisions: what a person changes in it stays, whatever the program decides anew."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orpheus.data.raw.table import DROP, EDITED, KEEP, Row, merge, read_rows, write_rows
from orpheus.errors import UserError


def row(number: int, text: str = "Hello.", **more) -> Row:
    start = 10.0 * number
    return Row(f"clips/a_{number}.flac", KEEP, text, start, start + 5, "a.wav", **more)


DECIDED = [row(0), row(1), row(2, reason="too short")]


def named(recording: str, start_s: float) -> str:
    return f"clips/{recording}_{start_s:g}.flac"


def merged(table, decided=DECIDED, last=DECIDED):
    return merge(decided, last, table, named)


def test_it_is_read_as_it_was_written(tmp_path):
    rows = [row(0, 'He said, "no",\nand <laughs> went.', voice="anna", suggested_tags="<laughs>"), row(1, "Ünter")]
    write_rows(tmp_path / "t.csv", rows)
    assert read_rows(tmp_path / "t.csv") == rows


def test_a_spreadsheet_s_semicolons_and_decimal_commas_are_read(tmp_path):
    text = "\ufeffclip;decision;text;start_s;end_s;recording\nclips/a_0.flac;KEEP;Hello.;0,5;5,25;a.wav\n;;;;;\n"
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    assert read_rows(tmp_path / "t.csv") == [Row("clips/a_0.flac", KEEP, "Hello.", 0.5, 5.25, "a.wav")]


@pytest.mark.parametrize("line, why", [
    ("c,maybe,Hi,0,5,a.wav", "line 2: decision is 'maybe', expected keep or drop"),
    ("c,keep,Hi,zero,5,a.wav", "line 2: start_s is 'zero', expected seconds"),
    ("c,keep,Hi,5,5,a.wav", "line 2: it goes from 5 to 5 s, expected an end_s after its start_s"),
    ("c,keep,Hi,nan,5,a.wav", "line 2: it goes from nan"),
    ("c,keep,,0,5,a.wav", "line 2: a clip to keep has no text"),
    ('c,keep,"Hi,0,5,a.wav', "is no row of a table"),
])  # fmt: skip
def test_a_slip_is_told_with_its_line(tmp_path, line, why):
    (tmp_path / "t.csv").write_text(f"clip,decision,text,start_s,end_s,recording\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=why):
        read_rows(tmp_path / "t.csv")


def test_a_table_without_a_column_says_which(tmp_path):
    (tmp_path / "t.csv").write_text("clip,text\na,b\n", encoding="utf-8")
    with pytest.raises(UserError, match="no column 'decision': leave its first line"):
        read_rows(tmp_path / "t.csv")


def test_without_a_table_and_without_edits_it_is_what_was_decided():
    assert merged(None).rows == DECIDED
    assert merged(list(DECIDED)).rows == DECIDED and not merged(list(DECIDED)).edited


def test_edits_stay_when_everything_is_decided_anew():
    table = [replace(row(0), text="Good day."), replace(row(1), decision=DROP), DECIDED[2]]
    anew = [row(0, "Else."), row(1, "Else."), row(2, "Else.")]
    result = merged(table, anew)
    assert [r.text for r in result.rows] == ["Good day.", "Hello.", "Else."]
    assert [r.decision for r in result.rows] == [KEEP, DROP, KEEP]
    assert [r.reason == EDITED for r in result.rows] == [True, True, False] and len(result.edited) == 2


def test_what_the_program_wrote_itself_is_no_edit():
    table = [replace(r, reason="quieter", suggested_tags="<laughs>", heard="hello") for r in DECIDED]
    assert not merged(table).edited


def test_a_row_taken_out_stays_out():
    result = merged(DECIDED[1:])
    assert result.rows == DECIDED[1:] and result.removed == 1


def test_a_clip_split_by_hand_is_two():
    first, second = replace(row(0), end_s=2.0), Row("", KEEP, "Then this.", 2.2, 5.0, "a.wav")
    result = merged([first, second, *DECIDED[1:]])
    assert [(r.clip, r.start_s, r.end_s) for r in result.rows[:2]] == [
        ("clips/a_0.flac", 0.0, 2.0), ("clips/a.wav_2.2.flac", 2.2, 5.0)]  # fmt: skip
    assert len(result.rows) == 4


def test_new_pieces_do_not_repeat_what_was_edited():
    """After another --longest: the old rows are gone, a new one would have the edited one's sound again."""
    table = [replace(row(0), text="Good day."), *DECIDED[1:]]
    anew = [
        Row("clips/a_x.flac", KEEP, "Hello.", 0.5, 4.0, "a.wav"),
        Row("clips/a_y.flac", KEEP, "Else.", 6, 9, "a.wav"),
    ]
    assert [r.text for r in merged(table, anew).rows] == ["Good day.", "Else."]


@pytest.mark.parametrize("new, why", [
    (row(1), "two rows of the clip clips/a_1.flac"),
    (Row("", KEEP, "Hi.", 0, 1, "b.wav"), "a new row of the recording 'b.wav', which is none"),
])  # fmt: skip
def test_a_row_that_can_t_be_meant_is_refused(new, why):
    with pytest.raises(UserError, match=why):
        merged([*DECIDED, new])
