"""Transcripts and subtitles over what was heard: each piece gets its own words, and what doesn't align is known."""

from __future__ import annotations

import pytest

from orpheus.data.raw.texts import align, as_heard, directions, has_digits, likeness, script_of, spoken


def over(heard: str, text: str, language: str = "en"):
    """The text of each heard word, the words after which a sentence ends, and those after which it is not certain."""
    aligned = align(heard.split(), text, language)
    parts = [aligned.between(i, i + 1) for i in range(len(aligned.begin))]
    return (
        parts,
        [i for i, end in enumerate(aligned.ends) if end],
        [i for i, sure in enumerate(aligned.sure) if not sure],
    )


def test_the_transcript_s_spelling_and_stops_are_taken():
    parts, ends, unsure = over(
        "login incorrect please enter you're number", "Login incorrect. Please enter your number."
    )
    assert parts == ["Login", "incorrect.", "Please", "enter", "your", "number."]
    assert (ends, unsure) == ([1, 5], [])


def test_numbers_are_the_same_in_figures_and_in_words():
    parts, ends, _ = over("it costs 25 dollars okay", "It costs twenty-five dollars. Okay.")
    assert parts == ["It", "costs", "twenty-five", "dollars.", "Okay."] and ends == [3, 4]


def test_words_nobody_heard_stay_in_their_sentence():
    parts, _, unsure = over("login incorrect please enter", "Login incorrect. Now please enter.")
    assert parts == ["Login", "incorrect.", "Now please", "enter."] and not unsure


def test_in_mid_sentence_it_is_not_certain_where_they_belong():
    _, _, unsure = over("go and see it", "Go and they see it.")
    assert unsure == [1]


def test_a_tag_between_sentences_is_a_place_where_one_does_not_cut():
    parts, ends, unsure = over("that is good yes", "That is good. <laughs> Yes.")
    assert " ".join(parts) == "That is good. <laughs> Yes." and (ends, unsure) == ([2, 3], [2])


def test_what_stands_before_and_after_the_recording_s_own_words_is_left_out():
    text = "A Title. By Nobody. It rained all day. We stayed in. The end."
    aligned = align([*("it", "rained", "all", "day", "we", "stayed", "in")], text, "en")
    assert aligned.between(0, 7) == "It rained all day. We stayed in."


def test_a_word_that_was_heard_as_two_is_not_cut():
    parts, ends, unsure = over("all non administrators go", "All non-administrators go.")
    assert parts[1:3] == ["non-administrators"] * 2 and unsure == [1] and ends == [3]


def test_signs_are_aligned_one_by_one():
    parts, ends, _ = over("你好 世界 再 见", "你好，世界。再见。", "zh")
    assert "".join(parts) == "你好，世界。再见。" and ends == [1, 3]


def test_another_text_is_not_taken_for_this_one():
    heard = ["press", "four", "for", "the", "previous", "message"]
    assert align(heard, "It rained all day and we stayed in.", "en").share < 0.3
    assert likeness("It rained all day.", "Press four for messages.", "en") < 0.5
    assert likeness("Invalid choice.", "in valid choice", "en") == 1.0


@pytest.mark.parametrize("heard, text", [("", "Something."), ("hello there", "..."), ("...", "Hello.")])
def test_nothing_on_one_side_is_no_error(heard, text):
    assert align(heard.split(), text, "en").share == 0


def test_what_was_heard_is_its_own_text():
    aligned = as_heard([" Kick", " non", "-admins.", " It", " is", " Dr.", " Kurz."])
    assert aligned.between(0, 3) == "Kick non-admins." and aligned.ends == [
        False,
        False,
        True,
        False,
        False,
        False,
        True,
    ]


SRT = """1
00:00:01,000 --> 00:00:02,500
<i>It rained</i> all day.

2
00:00:03,000 --> 00:00:05,000
- We stayed in. [laughs]
- (laughs) Yes. [MUSIC]
"""
VTT = """WEBVTT - a title

NOTE a comment
of two lines

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.500 align:start
<v Anna>It <00:01.200><c>rained</c> all day.</v>

00:02.500 --> 00:04.000
It rained all day.
We stayed in. <laughs> Yes.
"""


def test_subtitles_are_read_for_what_is_said():
    assert script_of(SRT, ".srt") == "It rained all day. We stayed in. [laughs] [laughs] Yes."
    assert script_of(VTT, ".vtt") == "It rained all day. We stayed in. <laughs> Yes."  # a rolling line is said once
    assert (
        script_of("It rained\nall (and I mean all) day. *sighs* ♪", ".txt")
        == "It rained all (and I mean all) day. [sighs]"
    )


def test_a_paragraph_ends_a_sentence():
    text = script_of("A title\n\nIt rained\nall day.\n \n", ".txt")
    assert text == "A title\nIt rained all day."
    assert align(["it", "rained", "all", "day"], text, "en").between(0, 4) == "It rained all day."


def test_a_stop_that_was_heard_counts_where_the_text_has_no_mark():
    heard = [" Go", " home.", " I", " stay.", " You", " see."]
    ends = align(heard, "Go home I stay, You see", "en").stops_too(as_heard(heard)).ends
    assert ends == [False, True, False, False, False, True]


def test_stage_directions_are_taken_out_of_the_text():
    assert directions("We stayed in. [laughs] Yes.") == ("We stayed in. Yes.", ["laughs"])


@pytest.mark.parametrize("language, text, wanted", [
    ("en", "Dr. Who has $25, No. 5 <laughs> at 9:30.",
     "Doctor Who has twenty-five dollars, number five <laughs> at nine thirty."),
    ("en", "Tea, milk, etc.", "Tea, milk, et cetera."), ("en", "No. I won't.", "No. I won't."),
    ("de", "Dr. Kurz hat 3 Äpfel.", "Doktor Kurz hat drei Äpfel."),
    ("fr", "M. Dupont a 2 chats.", "Monsieur Dupont a deux chats."),
    ("en", "Nothing to do here.", "Nothing to do here."), ("xx", "7 of 9", "7 of 9"),
])  # fmt: skip
def test_numbers_and_abbreviations_are_written_as_they_are_spoken(language, text, wanted):
    assert spoken(text, language) == wanted


def test_figures_are_seen():
    assert has_digits("in 1914") and not has_digits("never <track 1>")
