"""One normaliser for training and speaking, and the lines of a file of texts."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpheus.errors import UserError
from orpheus.format.prompt import check_text, tag_warnings, voice_hints
from orpheus.format.texts import census, changes, lines_of, normalise


@pytest.mark.parametrize(
    "raw, clean, kind",
    [
        ("hel\u200blo", "hello", "invisible characters"),
        ("\ufeffhello", "hello", "invisible characters"),
        ("hel\u00adlo", "hello", "invisible characters"),
        ("\u202ahello\u202c \u2066you\u2069\u200e\u061c", "hello you", "invisible characters"),
        ("hel\u200dlo \u200cyou\u2060", "hello you", "invisible characters"),
        ("ok\ufe0f \u3164yes\uffa0\u034f", "ok yes", "invisible characters"),
        ("a\U000e0061b \ufffc", "ab ", "invisible characters"),
        ("\x1b[31mred\x1b[0m\x07\x00", "red", "control characters"),
        ("a\x1cb\x1fc", "a b c", "control characters"),
        ("a\ufffe\ufdd0b", "ab", "control characters"),
        ("caf" + "e\u0301", "caf\u00e9", "letters composed (NFC)"),
        ("\u1112\u1161\u11ab", "한", "letters composed (NFC)"),
        ("Tom &amp; Anna &#39;ll &lt;laugh&gt;", "Tom & Anna 'll <laugh>", "HTML entities"),
        ("&amp;amp;lt;sigh&amp;gt;", "<sigh>", "HTML entities"),
        ("zero&#8203;width&shy;", "zerowidth", "HTML entities"),
        ("it’s “so” ‘good’ „ja“", 'it\'s "so" \'good\' "ja"', "quotes"),
        ("1914–1918, non‑stop −3", "1914-1918, non-stop -3", "dashes"),
        ("well – no ― yes", "well — no — yes", "dashes"),
        ("one<br>two<BR />three</p>", "one\ntwo\nthree\n", "HTML line breaks"),
        ("a\r\nb\rc\u2028d\u2029e", "a\nb\nc\nd\n\ne", "line ends"),
    ],
)
def test_what_is_written_in_several_ways_becomes_one(raw, clean, kind):
    assert normalise(raw) == clean
    assert kind in changes(raw)
    assert check_text(raw + " x") == " ".join(f"{clean} x".split())  # training and speaking both go through here


@pytest.mark.parametrize(
    "text",
    [
        'Plain words, <laughs> it\'s "fine" - really -- 5 & 6; AT&T &c. R&D; a&b?x=1&lt=2',
        "oh — well… no",
        "<한숨> 오늘은 <작은 웃음> 좋아요 ㅋㅋ",
        "क्\u200dष और श्री\u200cमान्",
        "می\u200cروم به خانه\u200c",
        "ക\u0d4d\u200d അവന\u0d4d\u200d",  # a Malayalam chillu ends in ZWJ
        "\u0600\u0661 \u06dd",  # number signs: format characters that are seen
        "他说：“好的……”——真的吗？‘是’ <嬉笑>",
        "「はい」と言った。ー〜",
        "« Bonjour », dit-elle",
        "¿Qué? ¡Sí! Straße, Ærø, naïve",
        "👩\u200d👧 family",
        "a\nb\n\nc",
    ],
)
def test_clean_texts_of_all_languages_stay_as_they_are(text):
    text = unicodedata.normalize("NFC", text)
    assert normalise(text) == text and changes(text) == ()


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once and changes(once) == ()


def test_a_census_counts_texts_and_kinds():
    texts = ["plain", "it’s", "it’s&nbsp;so", "plain too"]
    assert census(changes(text) for text in texts) == "2 of 4 (2 quotes, 1 HTML entities)"
    assert census(changes(text) for text in ["plain"]) == ""


@pytest.mark.parametrize(
    "text, tag",
    [("Oh [laughs] no", "<laughs>"), ("Oh *sighs* no", "<sighs>"), ("Oh **sigh** no", "<sigh>"),
     ("Oh (giggles) no", "<giggles>"), ("Oh {laugh} no", "<laugh>"), ("Oh [laughing softly] no", "<laughs>"),
     ("Oh (she sighs) no", "<sighs>"), ("Oh _coughs_ no", "<coughs>"), ("Oh ~yawn~ no", "<yawn>"),
     ("Oh :laugh: no", "<laugh>"), ("哦（大笑）不", "<大笑>"), ("哦【轻笑】", "<轻笑>"), ("Oh ＜laugh＞", "<laugh>"),
     ("음 [한숨] 네", "<한숨>"), ("Oh [LAUGHS] no", "<laughs>"), ("Oh ‹sighs› no", "<sighs>")],
)  # fmt: skip
def test_a_tag_in_other_brackets_is_told_with_the_tag_meant(text, tag):
    (warning,) = tag_warnings([text])
    assert warning.endswith(f"did you mean {tag}?") and "read out as words" in warning


@pytest.mark.parametrize("text", ["[door slams] Hi", "*walks away* Hi", "Hi {name}", "【音楽】はい"])
def test_other_stage_directions_are_told(text):
    (warning,) = tag_warnings([text])
    assert "read out as words: write what is said" in warning


@pytest.mark.parametrize(
    "text", ["Well (as I said) no", "5 * 3 * 2", "snake_case_name", "at 10:30:45", "see [1]", "《书》"]
)
def test_ordinary_brackets_pass(text):
    assert tag_warnings([text]) == []


def test_html_tags_are_told():
    assert "looks like HTML" in tag_warnings(["a <b> word"])[0]


@pytest.mark.parametrize("mark", ["unk", "UNK", "think", "pad", "s", "eos"])
def test_marks_of_language_models_are_refused(mark):
    with pytest.raises(UserError, match="language model's own mark"):
        check_text(f"Oh <{mark}> well")


def test_what_almost_chooses_a_voice_is_told():
    texts = ["Tara: hello", "tara:hello", "TARA : hello", "tara：hello", "tara: hello", "note: this", "see: tara"]
    assert len(voice_hints(texts, ["tara", "leo"])) == 4
    assert all("write 'tara: text'" in hint for hint in voice_hints(texts, ["tara", "leo"]))


@pytest.mark.parametrize("wrong", ["<laugh", "laugh>", "<3", "<custom_token_3>", "\ufffd", "<unk>", "\udce9"])
def test_an_error_quotes_its_place_not_the_beginning(wrong):
    book = "It was a long day. " * 500 + f"Here it goes {wrong} wrong. " + "And on it went. " * 500
    with pytest.raises(UserError, match="it goes") as error:
        check_text(book)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_half_a_character_is_one_line():
    with pytest.raises(UserError, match=r"half a character \(U\+DCE9\)") as error:
        check_text("caf\udce9")
    assert str(error.value).encode("utf-8")  # can be printed


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_only_line_ends_end_a_line(end):
    lines = ["tara: one", "two\u2028still\x0btwo\x0c\x1c\x1d\x1e\x85two", "", "three"]
    data = end.join(lines).encode()
    assert lines_of(b"\xef\xbb\xbf" + data, "x") == lines == lines_of(data + end.encode(), "x")
    assert lines_of(b"", "x") == []


@pytest.mark.parametrize("data, says", [(b"one\ntw\xe9", "0xe9 in line 2"), ("one".encode("utf-16"), "UTF-16")])
def test_other_encodings_are_told(data, says):
    with pytest.raises(UserError, match=f"from lines.txt.*{says}.*UTF-8"):
        lines_of(data, "lines.txt")
