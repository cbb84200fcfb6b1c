"""Prompts and training examples: exact sequences, the label mask, voices and tags."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpheus.errors import UserError
from orpheus.format.prompt import (
    IGNORE,
    KNOWN_TAGS,
    Renderer,
    check_text,
    check_voice,
    find_tags,
    format_text,
    split_voice,
    strip_tags,
    suggest_tag,
    tag_census,
    tag_warnings,
    text_warnings,
    unknown_words,
)
from orpheus.format.tokens import ORPHEUS, Codes

CODES = Codes(np.array([1, 2]), np.arange(4), np.arange(8))


def test_the_exact_prompt(renderer, tokenizer, layout):
    text = tokenizer("tara: Hi <laugh> there", add_special_tokens=False)["input_ids"]
    expected = [layout.start_of_human, layout.bos, *text, layout.end_of_text, layout.end_of_human,
                layout.start_of_ai, layout.start_of_speech]  # fmt: skip
    assert renderer.prompt("Hi  <laugh>\nthere ", "tara") == expected


def test_the_exact_published_sequence():
    """With the published ids, as in Unsloth's notebook (`create_input_ids`)."""

    class Llama:
        def __call__(self, text, add_special_tokens):
            assert not add_special_tokens
            return {"input_ids": [len(word) for word in text.split()]}

    example = Renderer(Llama(), ORPHEUS).example("Hey there", CODES)
    assert example.input_ids[:8] == [128259, 128000, 3, 5, 128009, 128260, 128261, 128257]
    assert example.input_ids[8:15] == ORPHEUS.flatten(CODES)[:7].tolist()
    assert example.input_ids[-2:] == [128258, 128262]


def test_the_exact_published_example_of_a_voice():
    """As `second_input_ids` of Canopy's notebook for the pretrained model."""

    class Llama:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [len(word) for word in text.split()]}

    renderer = Renderer(Llama(), ORPHEUS)
    codes = ORPHEUS.flatten(CODES).tolist()
    ids = renderer.by_example([("Hey there", CODES)], renderer.prompt("Good bye now"))
    assert ids == [128259, 128000, 3, 5, 128009, 128260, 128261, 128257, *codes, 128258, 128262,
                   128259, 128000, 4, 3, 3, 128009, 128260, 128261, 128257]  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=40), st.sampled_from([None, "tara"]), st.integers(0, 3))
def test_the_prompt_is_a_strict_prefix_and_the_mask_is_exact(renderer, layout, text, voice, frames):
    try:
        prompt = renderer.prompt(text, voice)
    except UserError:
        return
    codes = Codes(np.zeros(frames, int), np.zeros(2 * frames, int), np.zeros(4 * frames, int))
    example = renderer.example(text, codes, voice)
    speech = [*layout.flatten(codes).tolist(), layout.end_of_speech, layout.end_of_ai]
    assert example.input_ids == prompt + speech
    assert example.labels == [IGNORE] * len(prompt) + speech  # defect 12: no text in the loss


def test_train_on_all_puts_the_prompt_in_the_loss(tokenizer, layout):
    example = Renderer(tokenizer, layout, train_on="all").example("Hello", CODES)
    assert example.labels == example.input_ids


@pytest.mark.parametrize("adds_bos", [True, False])
def test_exactly_one_bos_whatever_the_tokenizer_does(adds_bos, layout):
    """Defect 8: no BOS, or two of them."""
    from tests.support.tiny import build_tokenizer

    prompt = Renderer(build_tokenizer(adds_bos), layout).prompt("Hello there")
    assert prompt.count(layout.bos) == 1 and prompt[1] == layout.bos


def test_control_tokens_in_the_text_are_refused(renderer):
    for text in ("hi <custom_token_2> there", "hi <|eot_id|> there", "<|begin_of_text|>hi"):
        with pytest.raises(UserError):
            renderer.prompt(text)


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("...!?", "no letter"),
        (None, "NoneType"),
        ("Oh <laugh", "not closed"),
        ("Oh laugh> no", "not closed"),
        ("Oh <> no", "is not a tag"),
        ("Oh < laugh > no", "is not a tag"),
        ("Oh <3 you", "not closed"),
        ("caf\ufffd", "UTF-8"),
    ],
)
def test_bad_texts_say_what_to_do(text, says):
    with pytest.raises(UserError, match=says):
        check_text(text)


@pytest.mark.parametrize(
    "text", ["Hi", "<laugh>", "작은 웃음 <작은 웃음> 네", "5", "<my own tag> yes", "¿Qué? <gemito>"]
)
def test_good_texts_pass(text):
    assert check_text(f"  {text} ") == text


def test_voices():
    assert format_text("Hi", "tara") == "tara: Hi" and format_text("Hi") == "Hi"
    assert split_voice("tara: Hi: you", ("tara",)) == ("tara", "Hi: you")
    assert split_voice("Note: hi", ("tara",)) == (None, "Note: hi")
    assert check_voice(None, ("tara",)) is None and check_voice("any", ()) == "any"
    with pytest.raises(UserError, match="unknown voice 'tarra'.*tara, leo.*did you mean 'tara'"):
        check_voice("tarra", ("tara", "leo"))  # defect 15: never silently another voice
    with pytest.raises(UserError, match="not a voice name"):
        check_voice("a: b", ())


@pytest.mark.parametrize(
    "tag, better",
    [("laughing", "laughs"), ("giggling", "giggles"), ("sniffels", "sniffle"), ("Laugh", "laugh"), ("bark", None),
     ("laugh", None), ("laughs", None)],
)  # fmt: skip
def test_near_misses_get_a_suggestion(tag, better):
    assert suggest_tag(tag) == better


def test_census_and_warnings():
    texts = ["<laughs> a <laughing>", "<laughs> b <bark>"]
    assert tag_census(texts) == {"laughs": 2, "laughing": 1, "bark": 1}
    assert tag_warnings(texts) == ["<laughing> (1 times) is not a known tag: did you mean <laughs>?"]
    assert find_tags("<a>x<b c>") == ["a", "b c"] and strip_tags("<a> x <b>y") == "x y"


def test_the_tags_that_the_mission_names_are_known():
    named = {"laugh", "chuckle", "sigh", "cough", "sniffle", "groan", "yawn", "gasp", "laughs", "sighs", "giggles"}
    named |= {"whisper", "happy", "sad", "angry"}
    assert named <= set(KNOWN_TAGS) and not tag_warnings(f"<{t}> x" for t in named)


# ---- the words of a toy voice ----

KNOWN = ("i", "like", "it's", "anna")


@pytest.mark.parametrize("text, unknown", [
    ("I like it's <pizza>, ANNA!", []),
    ("tara: I like pizza, pizza and Anna.", ["pizza", "and"]),
    ("I LIKE PIZZA; it’s 9.", ["pizza", "9"]),
    ("", []),
])  # fmt: skip
def test_the_words_that_a_toy_voice_does_not_know(text, unknown):
    assert unknown_words([text], ["tara"], KNOWN) == unknown
    said = [f"the embedded voice does not know: {', '.join(unknown)}"] if unknown else []
    assert text_warnings([text], ["tara"], KNOWN) == said
    assert unknown_words([text], ["tara"], ()) == [] == text_warnings([text], ["tara"], ())  # it may know any
