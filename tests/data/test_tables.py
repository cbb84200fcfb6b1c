"""Tables as people and programs write them: read as they were meant, or refused with the line."""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from orpheus.config import CorpusOptions
from orpheus.data.sources import Record, Source, open_source
from orpheus.errors import UserError
from tests.support.corpus_fixtures import recorded, wav

SENTENCES = ("Hello there, how are you?", "It rained all day.", "Printed in 1893, again.", "Nobody came.", "So what?",
             "The last one, at last.")  # fmt: skip
CLIP = wav(recorded(1)[0])


def folder_with(tmp_path: Path, *names: str, **tables: str | bytes) -> Path:
    """A folder with recordings of these names, and tables (metadata_csv for metadata.csv)."""
    folder = tmp_path / "data"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(CLIP)
    for name, content in tables.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def opened(path: Path | str, **options: Any) -> Source:
    return open_source(CorpusOptions(dataset=str(path), **options))


def read(path: Path | str, **options: Any) -> list[Record]:
    records = list(opened(path, **options).records())
    for record in records:
        record.read()  # raises where the file was not found
    return records


def texts(path: Path | str, **options: Any) -> list[Any]:
    return [record.text for record in read(path, **options)]


def clips(count: int = 6, form: str = "wavs/c{}.wav") -> list[str]:
    return [form.format(n) for n in range(1, count + 1)]


def table(*columns: Any, separator: str = "|") -> str:
    return "\n".join(separator.join(map(str, row)) for row in zip(*columns, strict=True)) + "\n"


IDS = [f"c{n}" for n in range(1, 7)]
PEOPLE = ["anna", "ben", "anna", "ben", "ben", "anna"]
IPA = ["həlˈoʊ ðˈɛɹ", "ɪt ɹˈeɪnd", "pɹˈɪntɪd", "nˈoʊbɑdi kˈeɪm", "sˌoʊ wˈʌt", "ðə lˈæst"]
ARPA = ["HH AH0 L OW1", "IH1 T", "P R IH1 N T", "N OW1", "S OW1", "DH AH0 L AE1 S T"]
NORMAL = [text.replace("1893", "eighteen ninety-three") for text in SENTENCES]


@pytest.mark.parametrize(("columns", "wanted", "voices"), [
    ((IDS, SENTENCES), SENTENCES, False),
    ((IDS, SENTENCES, NORMAL), NORMAL, False),
    ((IDS, SENTENCES, PEOPLE), SENTENCES, True),
    ((IDS, PEOPLE, SENTENCES), SENTENCES, True),
    ((SENTENCES, IDS), SENTENCES, False),
    ((IDS, ["It is 3.", "I have 17.", "In 1893.", "No 5.", "So 12.", "All 100."],
      ["It is three.", "I have seventeen.", "In eighteen ninety-three.", "No five.", "So twelve.", "All one hundred."]),
     ["It is three.", "I have seventeen.", "In eighteen ninety-three.", "No five.", "So twelve.", "All one hundred."],
     False),
    ((IDS, SENTENCES, IPA), SENTENCES, False),
    ((IDS, SENTENCES, ARPA), SENTENCES, False),
    ((IDS, SENTENCES, ["1.25", "3", "2.5", "1", "0.75", "12"]), SENTENCES, False),
    ((IDS, ["one"] * 6, SENTENCES), SENTENCES, False),
    ((IDS, ["en", "de"] * 3, SENTENCES), SENTENCES, False),
    ((IDS, SENTENCES, [""] * 6), SENTENCES, False),
    ((IDS, PEOPLE, SENTENCES, NORMAL, IPA), NORMAL, True),
    ((IDS, ["你好世界", "下雨了一整天", "再见", "没有人来", "所以呢", "最后一个"],
      ["ni3 hao3", "xia4 yu3", "zai4 jian4", "mei2 you3", "suo3 yi3", "zui4 hou4"]),
     ["你好世界", "下雨了一整天", "再见", "没有人来", "所以呢", "最后一个"], False),
])  # fmt: skip
@pytest.mark.parametrize("separator", ["|", "\t", " | "])
def test_columns_without_a_header_are_known_by_what_they_hold(columns, wanted, voices, separator, tmp_path):
    folder = folder_with(tmp_path, *clips(), metadata_csv=table(*columns, separator=separator))
    assert texts(folder) == list(wanted)
    assert [record.voice for record in read(folder)] == (PEOPLE if voices else [None] * 6)
    assert "no header: column 1" in opened(folder).layout and "the text" in opened(folder).layout


@pytest.mark.parametrize(("columns", "why"), [
    ((IDS, PEOPLE), "no column looks like a transcript"),
    ((IDS, IPA), "no column looks like a transcript"),
    ((IDS, range(6)), "no column looks like a transcript"),
    ((IDS, ["the same words"] * 6), "no column looks like a transcript"),
    ((IDS, SENTENCES, ["Hallo, wie geht's?", "Es regnete.", "Gedruckt.", "Keiner kam.", "Na und?", "Ende."]),
     "the columns 2 and 3 all look like transcripts"),
    ((IDS, PEOPLE, ["x", "y", "z"] * 2, SENTENCES), "the columns 2 and 3 all look like speakers"),
])  # fmt: skip
def test_what_could_be_otherwise_is_refused_and_a_header_settles_it(columns, why, tmp_path):
    folder = folder_with(tmp_path, *clips(), metadata_csv=table(*columns))
    with pytest.raises(UserError, match=f"has no header, and {why}: write one .*file_name"):
        opened(folder)
    names = ["file_name", "text", "x1", "x2"][: len(columns)]
    (folder / "metadata.csv").write_text("|".join(names) + "\n" + table(*columns))
    assert texts(folder) == list(map(str, columns[1]))


@pytest.mark.parametrize("header", ["id|text|speaker", "audio_file | text | speaker_name", "wav|sentence|voice",
                                    "FILE_NAME|Text|Speaker"])  # fmt: skip
def test_a_header_is_no_clip(header, tmp_path):
    folder = folder_with(tmp_path, *clips(), metadata_csv=header + "\n" + table(IDS, SENTENCES, PEOPLE))
    assert texts(folder) == list(SENTENCES)
    assert [record.voice for record in read(folder)] == PEOPLE
    assert "(2 people)" in opened(folder).layout


def test_a_header_of_other_names_is_asked_for(tmp_path):
    folder = folder_with(tmp_path, *clips(), metadata_csv="aufnahme|satz\n" + table(IDS, SENTENCES))
    with pytest.raises(UserError, match="no column 'file_name': it has aufnahme, satz"):
        opened(folder)
    assert texts(folder, audio_column="aufnahme", text_column="satz") == list(SENTENCES)


@pytest.mark.parametrize("form", ["wavs/c{}.wav", "wavs/c{}", "c{}", "c{}.wav", " c{} ", "./wavs/c{}.wav",
                                  "wavs\\c{}.wav", "WAVS/C{}.WAV"])  # fmt: skip
@pytest.mark.parametrize("stored", ["wavs/c{}.wav", "wavs/c{}.WAV"])
def test_first_columns_in_any_form(form, stored, tmp_path):
    folder = folder_with(
        tmp_path, *clips(form=stored), metadata_csv=table([form.format(n) for n in range(1, 7)], SENTENCES)
    )
    assert texts(folder) == list(SENTENCES)


def test_rows_of_other_widths_are_refused_by_their_line(tmp_path):
    rows = table(IDS, SENTENCES).splitlines()
    for broken, why in [("c3|Cut in | two.", "line 3 has more fields than the others"), ("c3", "line 3 has one field")]:
        folder = folder_with(tmp_path, *clips(), metadata_csv="\n".join([*rows[:2], broken, *rows[3:]]))
        with pytest.raises(UserError, match=why):
            opened(folder)


# ---- quotes ----


@pytest.mark.parametrize(("rows", "why"), [
    (['c1,"Hello there', "c2,It rained.", "c3,So what?"], "line 2: .* not closed .*to the end of the file"),
    (["c1,Fine.", 'c2,"Hello there', "c3,It rained.", 'c4,"So what?"'], r"line 3: .* not closed .*line 5\)"),
    (["c1,Fine.", 'c2,"Hello there', "c3,It rained.", 'c4,A board of 12"'], "line 3: .* line 4 with 'c3'"),
    (['c1,"Hello," she said.', "c2,It rained."], "line 2: .* not closed"),
])  # fmt: skip
@pytest.mark.parametrize("separator", [",", ";"])
def test_an_open_quote_swallows_no_rows(rows, why, separator, tmp_path):
    content = "\n".join(["file_name,text", *rows]).replace(",", separator)
    with pytest.raises(UserError, match=why):
        opened(folder_with(tmp_path, *clips(form="c{}.wav"), metadata_csv=content))


@pytest.mark.parametrize(("cell", "text"), [
    (r'"He said \"hi, you\" to me"', 'He said "hi, you" to me'),
    (r"He said \"hi\" to me", 'He said "hi" to me'),
    (r'"\"All of it\""', '"All of it"'),
    ('"He said ""hi, you"" to me"', 'He said "hi, you" to me'),
    ('He said "hi" to me', 'He said "hi" to me'),
    ('  "Spaces, around"  ', "Spaces, around"),
    ('"Two\nlines, of text"', "Two\nlines, of text"),
    ('"A literal \\""backslash"""', 'A literal \\"backslash"'),
])  # fmt: skip
def test_quotes_in_every_style(cell, text, tmp_path):
    content = f"file_name,text\nwavs\\c1.wav,{cell}\nc2,After.\n"
    folder = folder_with(tmp_path, *clips(2), metadata_csv=content)
    assert texts(folder) == [text, "After."]


@pytest.mark.parametrize("separator", ["|", "\t"])
def test_quotes_belong_to_the_text_unless_a_program_put_them_there(separator, tmp_path):
    literal = ['"Hello," she said.', '"It rained all day.', 'A "quoted" word.', '"Nobody came."', "So what?", 'Or 12"?']
    folder = folder_with(tmp_path, *clips(), metadata_csv=table(IDS, literal, separator=separator))
    assert texts(folder) == literal
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(zip(IDS, literal, strict=True))
    assert texts(folder) == literal
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL).writerows(zip(IDS, SENTENCES, strict=True))
    assert texts(folder) == list(SENTENCES)


# ---- what programs write ----


@pytest.mark.parametrize("separator", ["|", "\t"])
def test_a_separator_in_quotes_belongs_to_the_text(separator, tmp_path):
    rows = [["c1", f"One {separator} two."], ["c2", 'An inch "or" so.'], ["c3", "Three."]]
    path = folder_with(tmp_path, *clips(3)) / "metadata.csv"
    for header in ([], [["file_name", "text"]]):
        lines = [[cell if separator not in cell else f'"{cell}"' for cell in row] for row in header + rows]
        path.write_text("".join(separator.join(line) + "\n" for line in lines))
        assert texts(path) == [row[1].strip() for row in rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_ends_and_marks(separator, end, encoding, tmp_path):
    rows = [("file_name", "text"), ("c1.wav", "Grüße; alle, <laugh> ja"), ("c2", "Zweitens.")]
    path = folder_with(tmp_path, *clips(2)) / "metadata.csv"
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator, lineterminator=end).writerows(rows)
    assert texts(path.parent) == ["Grüße; alle, <laugh> ja", "Zweitens."]


def test_what_excel_adds(tmp_path):
    content = 'sep=;\r\n"file_name";"text";\r\nc1.wav;"Hello; you";\r\nc2.wav;It rained, again.;\r\n;;\r\n'
    assert texts(folder_with(tmp_path, *clips(2), metadata_csv=content)) == ["Hello; you", "It rained, again."]


def test_nemo_manifest(tmp_path):
    lines = [
        {"audio_filepath": name, "text": text, "duration": 0.4} for name, text in zip(clips(2), SENTENCES, strict=False)
    ]
    folder = folder_with(tmp_path, *clips(2), train__manifest_jsonl="\n".join(map(json.dumps, lines)))
    (folder / "train" / "manifest.jsonl").rename(folder / "manifest.json")
    assert texts(folder / "manifest.json") == list(SENTENCES[:2])
    (folder / "manifest.json").write_text(json.dumps(lines))
    assert texts(folder / "manifest.json") == list(SENTENCES[:2])
    for offset in (0, 0.0, "0.0", None):
        (folder / "m.jsonl").write_text(json.dumps(lines[0] | {"offset": offset}))
        assert texts(folder / "m.jsonl") == [SENTENCES[0]]
    (folder / "m.jsonl").write_text(json.dumps(lines[0] | {"offset": 1.5}))
    with pytest.raises(UserError, match=r"line 1 begins 1.5 s into its recording"):
        opened(folder / "m.jsonl")


def test_common_voice(tmp_path):
    content = table(["client_id", *"abab"], ["path", *(f"c{n}.mp3" for n in range(1, 5))],
                    ["sentence", *SENTENCES[:4]], ["up_votes", 2, 2, 3, 2], separator="\t")  # fmt: skip
    folder = folder_with(tmp_path, *clips(4, "clips/c{}.mp3"), train_tsv=content, test_tsv="path\tsentence\n")
    assert texts(folder) == list(SENTENCES[:4])
    assert "recordings from 'path', texts from 'sentence', voices from 'client_id' (2 people)" in opened(folder).layout
    assert [record.voice for record in read(folder, voice_column="")] == [None] * 4


def test_texts_beside_recordings(tmp_path):
    folder = folder_with(
        tmp_path, "1.wav", "2.WAV", "more/3.flac", "4.wav", **{"1_txt": "Hello.\n", "README_txt": "No."}
    )
    (folder / "2.txt").write_bytes("\ufeffIt rained.\r\n".encode())
    (folder / "more" / "3.TXT").write_text("Again?")
    assert sorted(texts(folder), key=str) == ["Again?", "Hello.", "It rained.", None]
    assert opened(folder).layout.startswith("3 of 4 recordings have a .txt")


@pytest.mark.parametrize("inner", ["data", "train", "LJSpeech-1.1"])
def test_one_level_down(inner, tmp_path):
    names = [f"{inner}/{name}" for name in clips(2)]
    folder = folder_with(tmp_path, *names, **{f"{inner}__x_csv": "file_name,text\nwavs/c1.wav,Hello.\nc2,Again.\n"})
    (folder / inner / "x.csv").rename(folder / inner / "metadata.csv")
    (folder / "README.md").write_text("A card.")
    assert texts(folder) == ["Hello.", "Again."]
    folder_with(tmp_path, test__metadata_csv="file_name,text\n")
    if inner == "train":
        assert texts(folder) == ["Hello.", "Again."]
    else:
        with pytest.raises(UserError, match=r"has several data sets, .*test.*--dataset"):
            opened(folder)


def test_names_in_other_forms_of_the_same_letters(tmp_path):
    stored, written = unicodedata.normalize("NFD", "wavs/café é.wav"), unicodedata.normalize("NFC", "wavs\\Café é.wav")
    folder = folder_with(tmp_path, stored, metadata_csv=f"file_name,text\n{written},Hello.\n")
    assert texts(folder) == ["Hello."]


@pytest.mark.parametrize(("written", "there"), [("c1.wav", "wavs/c1.mp3"), ("C-0001.wav", "wavs/c1.wav"),
                                                ("/content/drive/c1.wav", "wavs/c1.wav"),
                                                ("D:\\clips\\c1.wav", "c1.wav")])  # fmt: skip
def test_a_near_miss_is_named(written, there, tmp_path):
    folder = folder_with(tmp_path, there, metadata_csv=f"file_name,text\n{written},Hello.\n")
    with pytest.raises(UserError, match=f"No such file.*; there is .*{there}"):
        read(folder)


def test_two_names_that_differ_in_case_are_two(tmp_path):
    folder = folder_with(tmp_path, "wavs/a.wav", "wavs/A.wav", metadata_csv="file_name,text\nwavs/a,Hi.\nwavs/A,Ho.\n")
    assert [Path(str(record.recording)).name for record in read(folder)] == ["a.wav", "A.wav"]


@pytest.mark.parametrize(("content", "why"), [
    (b"file_name,text,text\na.wav,b,c\n", "the column 'text' twice"),
    (b"path,wav,text\na.wav,b.wav,c\n", "has 'path' and 'wav': choose one with --audio-column"),
    (b"file_name,sentence,transcript\na.wav,b,c\n", "has 'sentence' and 'transcript': choose one with --text-column"),
    (b"a.wav,Hello\nb.wav,Hi\n", "line 1 is no header with a column 'text'"),
    (b",,\n,,\n", "holds no clips"),
    (b"sep=;\n", "holds no clips"),
    ("file_name,text\na.wav,Hi\n".encode("utf-16-le"), "not UTF-8 text .*zero"),
    (b"\n\n", "holds no clips"),
])  # fmt: skip
def test_tables_that_can_not_be_meant(content, why, tmp_path):
    with pytest.raises(UserError, match=why):
        opened(folder_with(tmp_path, metadata_csv=content))


# ---- voices ----


@pytest.mark.parametrize(("column", "people", "said"), [
    ("speaker", ["anna", "ben", "anna"], "voices from 'speaker' (2 people)"),
    ("speaker_id", [3, 5, 3], "voices from 'speaker_id' (2 people)"),
    ("speaker_name", ["anna", "anna", "anna"], "no voices ('speaker_name' names one person: not used)"),
    ("voice", ["a:b", "c", "d"], "no voices ('voice' names 3 people: not used)"),
    ("client_id", ["", "", ""], "no voices ('client_id' names no person: not used)"),
    ("narrator", ["anna", "ben", "anna"], "no voices"),
])  # fmt: skip
def test_columns_that_look_like_a_speaker(column, people, said, tmp_path):
    lines = [{"file_name": name, "text": "Hello.", column: who} for name, who in zip(clips(3), people, strict=True)]
    folder = folder_with(tmp_path, *clips(3), metadata_jsonl="\n".join(map(json.dumps, lines)))
    assert opened(folder).layout.endswith(said)
    assert [r.voice for r in read(folder)] == (people if said.startswith("voices") else [None] * 3)
    named = [line | {"source": "eva"} for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, named)))
    assert [record.voice for record in read(folder)] == ["eva"] * 3


def test_more_than_fifty_people_are_no_voices(tmp_path):
    lines = [{"file_name": "c1.wav", "text": "Hello.", "speaker": n} for n in range(51)]
    folder = folder_with(tmp_path, "c1.wav", metadata_jsonl="\n".join(map(json.dumps, lines)))
    assert "names 51 people: not used" in opened(folder).layout
    assert "voices from 'speaker' (50 people)" in opened(write_first(folder, 50)).layout


def write_first(folder: Path, count: int) -> Path:
    path = folder / "metadata.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:count]))
    return folder
