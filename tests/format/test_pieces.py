"""Long text in pieces: sentences of several languages, tags whole and with their sentence, nothing lost."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orpheus.errors import MissingPackage
from orpheus.format.pieces import language_of, length, sentences, split, spoken_length
from orpheus.format.prompt import check_text, find_tags


def parts(text: str) -> list[str]:
    return [text[a:b] for a, b in sentences(text)]


@pytest.mark.parametrize(
    "text",
    [
        "Dr. Smith paid $3.50 for it.|He left at 5 p.m. on Jan. 5th.|It was No. 7, e.g. a cat.|Then he slept!",
        "Mr. J. R. Tolkien, Ph.D., lives in the U.S. and works.|Really?|Version 2.0.1 is on www.example.com.|It is.",
        '"Why not?" she asked.|I said "Stop! Don\'t move." to him and to her.|Then I ran.',
        "Hello <laughs> there.|<sighs> Not again.|That is it!|<laughs> And on. <sighs>",
        "<sighs> …! Oh no.|He said: <whisper> be quiet.|<laugh> Ha!",
        "Am 3. Mai kam Dr. Meier.|Das kostet z.B. 3,50 Euro.|Er ging d.h. er lief.",
        "M. Dupont est venu.|Il a dit : « Bonjour ! » et puis il est parti.|Mme. Dupont est là.",
        "El Sr. García es de Madrid.|¿Qué hora es?|¡Vamos!",
        "Il dott. Rossi non è qui.|Che cosa è?",
    ],
)
def test_sentences(text):
    assert parts(text.replace("|", " ")) == text.split("|")


@pytest.mark.parametrize(
    "text",
    [
        "你好。|我叫小明！|你是谁？|他说：“今天很好。”|然后走了。<咳嗽>",
        "こんにちは。|元気ですか？|はい！",
        "नमस्ते। |आप कैसे हैं? |मैं ठीक हूँ। |डॉ. शर्मा आए।",
        "안녕하세요. |<작은 웃음> 잘 지내세요? |네.",
    ],
)
def test_sentences_of_other_scripts(text):
    assert parts(text.replace("|", "")) == [part.strip() for part in text.split("|")]
    assert split(text.replace("|", ""), 1000) == [text.replace("|", "")]  # not a space more


def test_languages():
    for text, language in (("the cat and the dog", "en"), ("der Hund und die Katze", "de"), ("le chat est là", "fr"),
                           ("el perro y la gata es", "es"), ("il cane non è qui e", "it"), ("你好", "zh"),
                           ("はい、元気", "ja"), ("네", "ko"), ("नमस्ते", "hi"), ("Ok", "en")):  # fmt: skip
        assert language_of(text) == language


def test_what_counts_as_long():
    assert spoken_length("Hello <laughs> there.") == 12 and length("Hello <laughs> there.") == 20
    assert spoken_length("1893") == 12 and spoken_length("你好。") == 7


def test_short_sentences_go_together_and_paragraphs_do_not():
    text = "One is here. Two is here. Three is here.\n\nChapter Two\n \nAnd so on.\nThe same paragraph."
    assert split(text, 27) == ["One is here. Two is here.", "Three is here.", "Chapter Two", "And so on.",
                               "The same paragraph."]  # fmt: skip
    assert split(text, 100)[-1] == "And so on. The same paragraph."
    assert split("One.\n\n* * *\n\nTwo.", 50) == ["One. * * *", "Two."]
    assert split("<sighs>\n\nOne.", 50) == ["<sighs> One."]


def test_long_sentences_are_cut_at_clauses_then_at_words():
    text = "It was a dark night, and the rain fell in torrents (it was in London); a gust of wind swept up the streets."
    assert split(text, 60) == ["It was a dark night,", "and the rain fell in torrents (it was in London);",
                               "a gust of wind swept up the streets."]  # fmt: skip
    assert split(text, 75)[0] == "It was a dark night, and the rain fell in torrents (it was in London);"
    assert split("one two three four", 9) == ["one two", "three", "four"]
    assert split("他说今天很好然后走了", 12) == ["他说今天", "很好然后", "走了"]


WORD = st.text(st.sampled_from("abcdefgXYZ0123456789.,;:!?'\"()—…éü你好。，नम"), min_size=1, max_size=8)
TAGS = st.sampled_from(["<laughs>", "<sighs>", "<작은 웃음>", "<o'neil-x>"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.one_of(WORD, WORD, WORD, TAGS), st.sampled_from([" ", " ", "  ", "\n", "\n\n", ""]))),
       st.integers(1, 60))  # fmt: skip
@example([("a", " "), ("<laughs>", ""), ("b.", "\n\n"), ("…", " ")], 1)
def test_nothing_is_lost_tags_are_whole_and_no_piece_is_too_long(words, limit):
    text = "".join(word + gap for word, gap in words)
    if not any(c.isalnum() for c in text):
        return
    pieces = split(text, limit)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert [tag for piece in pieces for tag in find_tags(piece)] == find_tags(text)
    for piece in pieces:
        assert check_text(piece) == piece
        if length(piece) > limit:  # one word, with the tags and stray signs that belong to it
            bare = re.sub(r"([\u3400-\u9fff])", r" \1 ", re.sub(r"<[^<>]*>", "", piece))
            assert sum(any(c.isalnum() for c in word) for word in bare.split()) <= 1


def test_without_sentencex_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencex", None)
    assert split("Short.", 10) == ["Short."]
    with pytest.raises(MissingPackage, match="pip install sentencex"):
        split("Two here. And more.", 10)
