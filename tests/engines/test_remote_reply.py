"""Reading a server's answer: cut anywhere, the same ids; and the words in which each kind of server is asked."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpheus.config import SamplingOptions
from orpheus.engines.remote.reply import Reply, message_of
from orpheus.engines.remote.servers import KINDS, kind_of
from orpheus.engines.remote.token_text import UNKNOWN, TokenText
from orpheus.errors import UserError
from orpheus.format.tokens import CUSTOM_TOKEN, ORPHEUS
from tests.support.scripted_server import DONE, END, event, speech, usage, written


def test_every_kind_of_server_is_asked_in_its_own_words():
    sampling = SamplingOptions(repetition_penalty=1.3)
    for kind in KINDS:
        fields = kind.fields(sampling, ORPHEUS)
        assert kind_of(kind.owner) is kind and 1.3 in fields.values()
        json.dumps(fields)
    assert kind_of("llamacpp").fields(sampling, ORPHEUS)["repeat_last_n"] == -1  # the whole context
    assert kind_of("tensorrt_llm").fields(sampling, ORPHEUS)["detokenize"] is False  # so that it sends ids
    assert "as if it were vLLM" in kind_of("somebody").caveat


def test_llama_server_s_ids():
    reply = Reply(ORPHEUS, "a server")
    data = {"choices": [{"text": "", "finish_reason": None}], "__verbose": {"tokens": speech(1)}}
    assert reply.push(b"data: %s\n\n" % json.dumps(data).encode()) == speech(1)


# ---- cut anywhere, the same ids ----


def in_pieces(read, whole, borders):
    ids, at = [], 0
    for border in [*sorted(b % (len(whole) + 1) for b in borders), len(whole)]:
        ids += read(whole[at:border])
        at = border
    return ids


PARTS = st.lists(
    st.one_of(
        st.integers(0, 99_999).map(CUSTOM_TOKEN.format),
        st.sampled_from([" ", "\n", "<", ">", "x", "<custom", "<custom_token_", "<custom_token_007>", "\u2028", "é"]),
        st.text("<custom_tken>0123 ", max_size=20),
    )
)  # fmt: skip


@settings(deadline=None)
@given(PARTS, st.lists(st.integers(0, 10_000)))
def test_text_gives_the_same_ids_however_it_is_cut(parts, borders):
    text = "".join(parts)
    whole = TokenText(ORPHEUS)
    expected = [*whole.push(text), *whole.finish()]
    pieces = TokenText(ORPHEUS)
    assert [*in_pieces(pieces.push, text, borders), *pieces.finish()] == expected


@settings(deadline=None)
@given(st.lists(st.integers(0, 28_681)), st.lists(st.integers(0, 10_000)))
def test_tokens_alone_lose_none_and_gain_none(numbers, borders):
    reader = TokenText(ORPHEUS)
    text = "".join(map(CUSTOM_TOKEN.format, numbers))
    assert in_pieces(reader.push, text, borders) == [ORPHEUS.custom_start + k for k in numbers]
    assert reader.finish() == [] and reader.foreign == ""


@settings(deadline=None)
@given(st.integers(0, 4), st.lists(st.integers(0, 10_000)), st.booleans())
def test_a_stream_gives_the_same_ids_however_it_is_cut(frames, borders, as_text):
    ids = speech(frames)
    parts = [event(written([i]), None if as_text else [i]) for i in ids]
    stream = b"".join([*parts, event("", finish="stop"), usage(len(ids) + 1), DONE])
    reply = Reply(ORPHEUS, "a server")
    assert in_pieces(reply.push, stream, borders) == [*ids, END]
    assert reply.done


def test_what_text_means():
    def ids(text):
        reader = TokenText(ORPHEUS)
        return [*reader.push(text), *reader.finish()]

    assert ids("<custom_token_10> \n<custom_token_2>") == [ORPHEUS.audio_start, END]
    assert ids("<custom_token_0>") == [ORPHEUS.custom_start]
    assert ids("a b<custom_token_10>c <custom_token_11") == [UNKNOWN, ORPHEUS.audio_start, UNKNOWN]
    for no_token in ("<custom_token_>", "<custom_token_010>", "<custom_token_1234567>", "<custom_token_١>", "<<<"):
        assert ids(no_token) == [UNKNOWN]


def test_one_line_from_every_kind_of_error():
    assert message_of({"error": {"message": "a\n b", "code": 1}}) == "a b"
    assert message_of({"detail": [{"loc": ["body"], "msg": "wrong type"}]}) == "wrong type"
    assert message_of({"detail": "Not Found"}) == "Not Found"
    assert message_of([]) == "[]" and message_of({}) == "{}" and message_of(b"\xff") == "�"
    assert len(message_of("x" * 1000)) < 210


# ---- what is no answer ----


@pytest.mark.parametrize("said", [
    "null", "[]", "5", '"text"', '{"choices": 5}', '{"choices": {}}', '{"choices": [null]}', '{"choices": ["a"]}',
    '{"choices": [{"text": 5}]}', '{"choices": [{"text": ["a"]}]}', '{"choices": [{"token_ids": 5}]}',
    '{"choices": [{"token_ids": "12"}]}', '{"choices": [{"token_ids": [null]}]}', '{"choices": [{"token_ids": ["x"]}]}',
    '{"choices": [{"token_ids": [1.5]}]}', '{"choices": [{"token_ids": [true]}]}',
    '{"choices": [{"token_ids": [1%s]}]}' % ("0" * 100), '{"choices": [{"finish_reason": {"a": 1}}]}',
    '{"choices": [], "usage": [1]}', '{"choices": [], "usage": {"completion_tokens": "many"}}',
    '{"choices": [{}], "__verbose": []}', '{"choices": [{}], "__verbose": {"tokens": {}}}', "[" * 50_000,
    '{"choices": [{"text": "\x1b[2J', "9" * 5000,
])  # fmt: skip
def test_a_malformed_event_is_one_line(said):
    with pytest.raises(UserError, match="a server sent what is no event of a completion: ") as told:
        Reply(ORPHEUS, "a server").push(b"data: %s\n\n" % said.encode())
    assert str(told.value).isprintable() and len(str(told.value)) < 300


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner:
                    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                        ["choices", "text", "token_ids", "finish_reason", "usage", "completion_tokens", "error",
                         "object", "__verbose", "tokens", "message", "stop_reason"]), inner, max_size=4))  # fmt: skip


@settings(deadline=None)
@given(st.lists(JSON, max_size=3))
def test_any_events_give_ids_or_one_line(events):
    reply = Reply(ORPHEUS, "a server")
    try:
        ids = reply.push(b"".join(b"data: %s\n\n" % json.dumps(e).encode() for e in events)) + reply.close()
    except UserError as error:
        assert str(error).isprintable()
    else:
        assert all(type(i) is int for i in ids)


@pytest.mark.parametrize("parts", [[b"x" * 70_000] * 40, [b"data: " + b"x" * 3_000_000]])
def test_a_line_without_end_is_not_waited_for(parts):
    reply = Reply(ORPHEUS, "a server")
    with pytest.raises(UserError, match="a line of more than 1048576 bytes"):
        for part in parts:
            reply.push(part)
    assert len(reply._line) < 5_000_000


def test_a_deep_or_odd_error_is_one_line():
    deep: dict = {}
    for _ in range(500):
        deep = {"error": deep or "end"}
    assert len(message_of(deep)) < 210 and "\x1b" not in message_of("a\x1b[2Jb")
