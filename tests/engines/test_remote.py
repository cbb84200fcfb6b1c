"""The remote engine against a server that does what a test wants: exact ids or one clear error, never wrong audio."""

from __future__ import annotations

import logging
import time

import pytest

from orpheus.config import DATA_DIR, SamplingOptions
from orpheus.engines.remote import engine as remote_engine
from orpheus.engines.remote.engine import RemoteEngine
from orpheus.engines.remote.token_text import UNKNOWN
from orpheus.errors import UserError
from orpheus.format.tokens import CUSTOM_TOKEN, FRAME_SLOTS, ORPHEUS, FrameStream, Stop, TokenLayout
from tests.support.scripted_server import DONE, END, HangUp, ScriptedServer, cut, event, sends, speech, usage, written
from tests.support.voices import rows_of

PROMPT = [ORPHEUS.start_of_human, ORPHEUS.bos, 40, 41, ORPHEUS.end_of_text, ORPHEUS.start_of_speech]


@pytest.fixture
def server():
    scripted = ScriptedServer()
    yield scripted
    scripted.stop()


@pytest.fixture
def connect(server, monkeypatch):
    """Make an engine for the server; closed at the end."""
    monkeypatch.setattr(remote_engine, "RETRY_AFTER_S", (0.01, 0.02))
    engines = []

    def use(**options):
        engines.append(RemoteEngine(server.url, ORPHEUS, 4096, **options))
        return engines[-1]

    yield use
    for engine in engines:
        engine.close()


def run(engine, prompts=(PROMPT,), **options):
    return rows_of(engine, prompts, SamplingOptions(**options), range(len(prompts)))


# ---- what arrives ----


def test_ids_are_asked_for_and_taken(server, connect):
    ids = speech(3)
    server.script = sends(*[event("ignored", [i]) for i in ids], event("", [END], "stop"), usage(22), DONE)
    assert run(connect(), temperature=0.6, top_p=0.9, repetition_penalty=1.2, max_new_tokens=100) == [[*ids, END]]
    request = server.requests[0]
    assert request["prompt"] == PROMPT and request["model"] == "orpheus" and request["stream"] is True
    assert (request["max_tokens"], request["temperature"], request["top_p"]) == (100, 0.6, 0.9)
    assert request["repetition_penalty"] == 1.2 and request["stop_token_ids"] == [END]
    assert request["return_token_ids"] is True and request["skip_special_tokens"] is False


def test_a_text_stream_cut_in_the_middle_of_tokens_and_merged(server, connect):
    ids = speech(4)
    text = written(ids)
    parts = [text[:5], text[5:40], text[40:41], text[41:200], text[200:]]
    server.script = sends(*[event(part) for part in parts], event("", finish="stop"), usage(29), DONE)
    assert run(connect()) == [[*ids, END]]


def test_events_cut_anywhere_by_the_network(server, connect):
    ids = speech(2)
    stream = b": ping\r\n\r\n" + event(written(ids)) + event("", finish="stop") + DONE
    server.script = sends(*cut(stream, [3, 1, 30, 2, 77]))
    assert run(connect()) == [[*ids, END]]


def test_an_end_that_is_shown_as_text_ends_the_row_and_the_connection(server, connect):
    ids = speech(1)

    def script(body, send):
        send(event(written([*ids, END])))
        for _ in range(200):
            send(event(written(speech(1))))
            time.sleep(0.01)

    server.script = script
    assert run(connect()) == [[*ids, END]]


def test_the_row_ends_at_max_new_tokens(server, connect):
    ids = speech(2)
    server.script = sends(event("", ids), event("", [], "length"), DONE)
    assert run(connect(), max_new_tokens=10) == [ids[:10]]
    assert run(connect(), max_new_tokens=14) == [ids]


@pytest.mark.parametrize(("field", "stop_id"), [("stop_reason", 128009), ("matched_stop", END)])
def test_the_id_that_ended_it_is_the_server_s(server, connect, field, stop_id):
    server.script = sends(event("", speech(1)), event("", [], "stop", **{field: stop_id}), DONE)
    assert run(connect()) == [[*speech(1), stop_id]]


@pytest.mark.parametrize(
    ("damage", "legal"),
    [
        (lambda ids: [*ids[:9], *ids[10:]], 9),  # one token is lost
        (lambda ids: [*ids[:9], ids[8], *ids[9:]], 9),  # one comes twice
        (lambda ids: [*ids[:7], 4711, *ids[8:]], 7),  # a token of text
        (lambda ids: [*ids[:13], ORPHEUS.audio_end, *ids[14:]], 13),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_damage_ends_the_row_before_the_frame_it_is_in(server, connect, damage, legal, as_text):
    ids = damage(speech(4))
    written_out = event(written(ids).replace(CUSTOM_TOKEN.format(4711 - ORPHEUS.custom_start), "Hello"))
    server.script = sends(written_out if as_text else event("", ids), event("", finish="stop"), DONE)
    [row] = run(connect())
    expected = UNKNOWN if as_text and ids[legal] == 4711 else ids[legal]
    assert row == [*speech(4)[:legal], expected]
    reader = FrameStream(ORPHEUS)
    frames = [reader.push(i) for i in row]
    assert sum(f is not None for f in frames) == legal // FRAME_SLOTS
    assert reader.finish().kind is Stop.OUT_OF_RANGE and reader.finish().index == legal


def test_foreign_text_is_reported_not_guessed(server, connect, caplog):
    server.script = sends(event(written(speech(1)) + "Hello there"), event("", finish="stop"), DONE)
    assert run(connect()) == [[*speech(1), UNKNOWN]]
    assert "sent 'Hello there' where an audio token belongs" in caplog.text


def test_frames_that_were_lost_whole_are_missed_at_the_end(server, connect):
    server.script = sends(event(written(speech(3))), event("", finish="stop"), usage(29), DONE)
    with pytest.raises(UserError, match="counts 29 tokens but 21 arrived"):
        run(connect())


# ---- what breaks ----


def die_after(*parts):
    def script(body, send):
        for part in parts:
            send(part)
        time.sleep(0.1 if parts else 0)  # a reset throws away what the client has not read yet
        raise HangUp

    return script


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (die_after(event("", speech(1))), "broke after 7 tokens"),
        (sends(event("", speech(1))), "broke off after 7 tokens without saying why"),
        (sends(event("", speech(1)), DONE), "broke off after 7 tokens without saying why"),
        (sends(event("", speech(1)), b'data: {"error": {"message": "out of memory"}}\n\n'), "7 tokens: out of memory"),
        (sends(event("", speech(1)), event("", [], "abort"), DONE), "broke off after 7 tokens: 'abort'"),
        (sends(event("", speech(1)), event("", [], "length"), DONE), "after 7 tokens, at a limit of its own"),
        (sends(b"data: <html>502 Bad Gateway</html>\n\n"), "no event of a completion: <html>502"),
    ],
    ids=["killed", "cut short", "done without a reason", "error event", "aborted", "own limit", "not JSON"],
)
def test_a_server_that_breaks_off(server, connect, script, message):
    server.script = script
    got = []
    with pytest.raises(UserError, match=message):
        for _, token_id in connect().stream([PROMPT], SamplingOptions(), [0]):
            got.append(token_id)
    assert got == speech(1)[: len(got)]  # what came before is right
    assert len(server.requests) == 1  # and nothing is said twice


@pytest.mark.parametrize("pings", [False, True])
def test_a_slow_server(server, connect, pings):
    def script(body, send):
        send(event("", speech(1)))
        for _ in range(100):
            if pings:
                send(b": ping\n\n")
            time.sleep(0.05)

    server.script = script
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"sent no token for 0.3 s \(after 7 tokens\)"):
        run(connect(timeout_s=0.3))
    assert 0.3 <= time.perf_counter() - started < 3  # the server would go on for 5


def test_slow_tokens_are_no_timeout(server, connect):
    def script(body, send):
        for token_id in speech(1):
            time.sleep(0.1)
            send(event("", [token_id]))
        send(event("", [END], "stop") + DONE)

    server.script = script
    assert run(connect(timeout_s=0.4)) == [[*speech(1), END]]


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (400, {"error": {"message": "max_tokens is too large", "code": 400}}, "answered 400: max_tokens is too large"),
        (400, {"object": "error", "message": "unknown field"}, "answered 400: unknown field"),
        (401, {"error": "Unauthorized: KEY-123"}, r"answered 401: Unauthorized: \*\*\*; set ORPHEUS_API_KEY"),
        (500, b"Internal\nServer Error", "answered 500: Internal Server Error"),
    ],
)
def test_a_refusal_says_what_the_server_says(server, connect, status, answer, message):
    engine = connect(api_key="KEY-123")
    server.statuses = [(status, answer)]
    with pytest.raises(UserError, match=message):
        run(engine)
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again_before_the_first_token(server, connect, caplog):
    engine = connect()
    server.script = sends(event("", [*speech(1), END], "stop"), DONE)
    server.statuses = [(503, {"error": {"message": "Loading model"}}), (429, b"slow down")]
    assert run(engine) == [[*speech(1), END]]
    assert len(server.requests) == 3 and server.requests[0] == server.requests[2]
    assert "Loading model; trying again" in caplog.text
    server.statuses = [(503, {"error": {"message": "Loading model"}})] * 3
    with pytest.raises(UserError, match="answered 503: Loading model; tried 3 times"):
        run(engine)


def test_a_connection_that_dies_is_tried_again_before_the_first_token_only(server, connect):
    engine = connect()

    def script(body, send):
        if len(server.requests) == 1:
            raise HangUp
        send(event("", [*speech(1), END], "stop") + DONE)

    server.script = script
    assert run(engine) == [[*speech(1), END]]
    assert len(server.requests) == 2


def test_no_server():
    gone = ScriptedServer()
    gone.stop()
    with pytest.raises(UserError, match=f"{gone.url} can't be reached .*: is the server running there"):
        RemoteEngine(gone.url, ORPHEUS, 4096)


# ---- many at once, and hanging up ----


def test_several_prompts_at_once_each_in_order(server, connect):
    together = []

    def script(body, send):
        together.append(body["seed"])
        while len(together) < 4:  # nobody is answered before all have asked
            time.sleep(0.01)
        for token_id in speech(5, seed=body["seed"]):
            send(event("", [token_id]))
        send(event("", [END], "stop") + DONE)

    server.script = script
    assert run(connect(), [PROMPT] * 4) == [[*speech(5, seed=i), END] for i in range(4)]


def until(condition, seconds=1.0):
    deadline = time.perf_counter() + seconds
    while not condition() and time.perf_counter() < deadline:
        time.sleep(0.01)
    return condition()


def talks_on(body, send):
    while True:
        for token_id in speech(1):
            send(event("", [token_id]))
            time.sleep(0.01)


def test_closing_the_iterator_hangs_up(server, connect):
    server.script = talks_on
    rows = connect().stream([PROMPT] * 3, SamplingOptions(), [0, 1, 2])
    assert [next(rows) for _ in range(8)]
    rows.close()
    assert until(lambda: len(server.hung_up) == 3), "the server still talks a second later"


def test_an_error_in_one_row_hangs_up_the_others(server, connect):
    server.script = lambda body, send: sends(event("", [], "abort"), DONE)(body, send) if body["seed"] else talks_on(
        body, send)  # fmt: skip
    with pytest.raises(UserError, match="broke off after 0 tokens: 'abort'"):
        run(connect(), [PROMPT, PROMPT])
    assert until(lambda: len(server.hung_up) == 1)


def test_a_server_for_one_at_a_time_is_asked_one_by_one(server, connect):
    server.owner = "me"  # llama-cpp-python
    running = []

    def script(body, send):
        running.append(body["seed"])
        assert len(running) == 1
        send(event(written(speech(1))))
        time.sleep(0.05)
        running.remove(body["seed"])
        send(event("", finish="stop") + DONE)

    server.script = script
    assert run(connect(), [PROMPT] * 3) == [[*speech(1), END]] * 3


# ---- getting to know the server ----


def reads_tokens(prompt):
    return len(prompt) if isinstance(prompt, list) else prompt.count("<")


def test_text_is_sent_where_ids_are_refused_and_it_is_said(server, connect, caplog):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DATA_DIR / "tiny_orpheus")
    layout = TokenLayout.from_tokenizer(tokenizer)
    server.takes_ids, server.reads = False, reads_tokens
    server.script = sends(event("", finish="stop"), DONE)
    with pytest.raises(UserError, match=r"takes no token ids as the prompt \(Input should be a string\): give the"):
        connect()
    engine = RemoteEngine(server.url, layout, 4096, tokenizer=tokenizer)
    assert "takes no token ids as the prompt (Input should be a string): it is sent text" in caplog.text
    prompt = [layout.start_of_human, layout.bos, *tokenizer("Hi <laugh>", add_special_tokens=False)["input_ids"],
              layout.end_of_text, layout.end_of_human, layout.start_of_ai, layout.start_of_speech]  # fmt: skip
    assert run(engine, [prompt]) == [[layout.end_of_speech]]
    name = CUSTOM_TOKEN.format
    assert server.requests[0]["prompt"] == (
        f"{name(3)}<|begin_of_text|>Hi <laugh><|eot_id|>{name(4)}{name(5)}{name(1)}"
    )
    with pytest.raises(UserError, match="can't be written as text without changing its tokens"):
        run(engine, [[layout.start_of_human, 130, 131]])  # halves of characters
    engine.close()


@pytest.mark.parametrize(("more", "message"), [(1, "it adds a BOS of its own"), (30, "it serves another model")])
def test_a_prompt_that_is_read_otherwise_is_refused(server, connect, more, message):
    server.reads = lambda prompt: reads_tokens(prompt) + more
    with pytest.raises(UserError, match=f"read a prompt of 6 tokens as {6 + more}: {message}"):
        connect()


def test_a_server_that_repeats_another_prompt_is_refused(server, connect):
    server.repeats = [1, 2, 3, 4, 5, 6]
    with pytest.raises(UserError, match=r"as \[1, 2, 3, 4, 5, 6\]: it serves another model"):
        connect()


def test_a_server_that_hides_special_tokens_is_refused(server, connect):
    server.first = ""
    with pytest.raises(UserError, match="hides special tokens"):
        connect()


def test_the_model_is_the_only_one_or_the_one_that_is_named(server, connect):
    assert connect().model == "orpheus"
    with pytest.raises(UserError, match="there is no model 'elise': .* serves orpheus; choose"):
        connect(model="elise")
    server.models = ["orpheus", "elise"]
    assert connect(model="elise").model == "elise"
    with pytest.raises(UserError, match="no model is named: .* serves orpheus, elise; choose"):
        connect()


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://host", "http://", "nonsense"])
def test_an_address_that_is_none(address):
    with pytest.raises(UserError, match="is no address of a server"):
        RemoteEngine(address, ORPHEUS, 4096)


def test_the_key_comes_from_argument_or_environment_and_is_never_logged(server, connect, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    server.script = sends(event("", [END], "stop"), DONE)
    run(connect())
    assert "Authorization" not in server.headers[-1]
    monkeypatch.setenv("ORPHEUS_API_KEY", "from-the-environment")
    run(connect())
    assert server.headers[-1]["Authorization"] == "Bearer from-the-environment"
    run(connect(api_key="given"))
    assert server.headers[-1]["Authorization"] == "Bearer given"
    assert "from-the-environment" not in caplog.text and "Bearer" not in caplog.text
    with pytest.raises(UserError, match="take the password out of the address of host and set ORPHEUS_API_KEY"):
        RemoteEngine("http://me:secret@host", ORPHEUS, 4096)


def test_what_can_t_be_had_from_a_server_is_refused(connect):
    with pytest.raises(UserError, match="decoding 'framed' needs the model in this process"):
        run(connect(), decoding="framed")
    with pytest.raises(UserError, match="more than the model's context of 4096"):
        run(connect(), max_new_tokens=4096)
