"""The server's routes in process, with a voice that needs no model: parameters, errors, keys, limits, figures."""

from __future__ import annotations

import base64
import io
import json
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

from orpheus.audio.encoders import FORMS
from orpheus.audio.recordings import pcm16, read
from orpheus.config import ReadingOptions, SamplingOptions
from orpheus.errors import UserError
from orpheus.serve.app import create_app
from orpheus.serve.options import Keys, ServerOptions, read_keys
from tests.support.speakers import Speaker, tone

TEXT = "It rained. <sigh>"
HEADERS = {"Content-Type": "application/json"}


@pytest.fixture
def speaker() -> Speaker:
    return Speaker()


@pytest.fixture
def client(speaker) -> TestClient:
    return TestClient(create_app(speaker), raise_server_exceptions=False)


def asked(**changes) -> dict:
    body = {"model": "tiny_orpheus", "input": TEXT, "voice": "anna", "response_format": "pcm", "seed": 3} | changes
    return {name: value for name, value in body.items() if value is not ...}


def speak(client, **changes):
    return client.post("/v1/audio/speech", json=asked(**changes))


def error_of(response, status: int) -> dict:
    """The error object of an answer in OpenAI's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert list(response.json()) == ["error"] and list(error) == ["message", "type", "param", "code"]
    assert response.headers["x-request-id"] and "\n" not in error["message"]
    return error


# ---- what each parameter does ----


def test_an_answer_is_the_reading(client, speaker):
    answer = speak(client)
    assert (answer.status_code, answer.headers["x-seed"]) == (200, "3")
    assert answer.content == pcm16(tone(TEXT, "anna", 3))
    assert speaker.readings[0].reading == ReadingOptions(guard=True)  # on by default


@pytest.mark.parametrize("stream", [True, False])
def test_words_that_a_toy_voice_does_not_know_are_told(client, speaker, stream):
    speaker.unknown = ("rained", "größe")
    answer = speak(client, input="It rained, Anna's größe.", stream=stream)
    assert answer.status_code == 200 and unquote(answer.headers["x-unknown-words"]) == "rained, größe"
    assert "x-unknown-words" not in speak(client, input="It is.", stream=stream).headers


def test_voice_seed_and_text_make_the_sound(client):
    said = [speak(client, **other).content for other in ({}, {"voice": "ben"}, {"seed": 4}, {"input": "It rains."})]
    assert len(set(said)) == 4 and said[0] == speak(client).content
    assert speak(client, seed=...).headers["x-seed"] == speak(client, seed=None).headers["x-seed"] == "4711"
    assert speak(client, voice={"id": "ben"}).content == said[1]


@pytest.mark.parametrize("format", FORMS)
def test_every_format_has_its_type(client, format):
    answer = speak(client, response_format=format)
    assert answer.headers["content-type"] == FORMS[format].media_type
    if format not in ("pcm", "aac", "flac"):
        assert len(read(answer.content)) >= len(tone(TEXT, "anna", 3))


def test_mp3_is_the_default(client):
    assert speak(client, response_format=...).headers["content-type"] == "audio/mpeg"


def test_speed_changes_the_length(client):
    whole = len(tone(TEXT, "anna", 3))
    assert [len(speak(client, speed=s).content) // 2 for s in (0.5, 1, 2.0)] == [2 * whole, whole, whole // 2]


def test_events_hold_the_same_bytes(client):
    answer = speak(client, stream_format="sse", response_format="mp3")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert [e["type"] for e in events] == ["speech.audio.delta"] * (len(events) - 1) + ["speech.audio.done"]
    assert b"".join(base64.b64decode(e["audio"]) for e in events[:-1]) == speak(client, response_format="mp3").content
    tokens = 5 * len(tone(TEXT, "anna", 3)) // 2048
    assert events[-1]["usage"] == {"input_tokens": 17, "output_tokens": tokens, "total_tokens": 17 + tokens}


@pytest.mark.parametrize("format", FORMS)
def test_a_collected_answer_has_a_length_and_the_same_samples(client, format):
    streamed, whole = speak(client, response_format=format), speak(client, response_format=format, stream=False)
    assert "content-length" not in streamed.headers and int(whole.headers["content-length"]) == len(whole.content)
    if format == "wav":
        assert soundfile.info(io.BytesIO(whole.content)).frames == len(tone(TEXT, "anna", 3))
        assert np.array_equal(read(whole.content), read(streamed.content)) and whole.content != streamed.content
    elif format == "flac":
        assert soundfile.info(io.BytesIO(whole.content)).frames == len(tone(TEXT, "anna", 3))
        assert whole.content[100:] == streamed.content[100:]
    else:
        assert whole.content == streamed.content


@pytest.mark.parametrize("name", ["tiny_orpheus", "tts-1", "tts-1-hd", "gpt-4o-mini-tts"])
def test_model_names(client, name):
    assert speak(client, model=name).status_code == 200


def test_instructions_are_refused_and_their_absence_is_not(client):
    error = error_of(speak(client, instructions="Speak like a pirate."), 400)
    assert error["param"] == "instructions" and "tags like <laugh>" in error["message"]
    assert {speak(client, instructions=none).status_code for none in (None, "", " ")} == {200}


def test_the_server_s_sampling_is_used(speaker):
    client = TestClient(create_app(speaker, sampling=SamplingOptions(seed=9), reading=ReadingOptions(retries=5)))
    assert speak(client, seed=None).headers["x-seed"] == "9" and speak(client).headers["x-seed"] == "3"
    assert speaker.readings[0].reading == ReadingOptions(retries=5)


# ---- what is refused ----


@pytest.mark.parametrize("change, status, param, code, words", [
    ({"model": "gpt-5"}, 404, "model", "model_not_found", "this server has tiny_orpheus"),
    ({"model": ...}, 400, "model", "missing_parameter", "'model' is missing"),
    ({"input": ...}, 400, "input", "missing_parameter", "'input' is missing"),
    ({"input": ""}, 400, "input", "invalid_value", "at least 1 character"),
    ({"input": " \n"}, 400, "input", "invalid_value", "the text is empty"),
    ({"input": "<laugh"}, 400, "input", "invalid_value", "is not closed"),
    ({"input": 5}, 400, "input", "invalid_value", "valid string"),
    ({"input": "x" * 4097}, 400, "input", "string_above_max_length", "has 4097 characters, at most 4096"),
    ({"voice": "alloy"}, 400, "voice", "unknown_voice", "no voice 'alloy': this model knows anna, ben"),
    ({"voice": "anna\r\nX-Evil: 1"}, 400, "voice", "unknown_voice", "this model knows anna, ben"),
    ({"voice": ...}, 400, "voice", "unknown_voice", "'voice' is missing: this model knows anna, ben"),
    ({"voice": "default"}, 400, "voice", "unknown_voice", "'voice' is missing"),
    ({"voice": ["anna"]}, 400, "voice", "invalid_type", "a name, or an object"),
    ({"voice": {"id": "anna", "x": 1}}, 400, "voice", "invalid_type", "a name, or an object"),
    ({"response_format": "ogg"}, 400, "response_format", "invalid_value", "'mp3', 'opus', 'aac', 'flac', 'wav'"),
    ({"speed": 0.2}, 400, "speed", "invalid_value", "speed is 0.2: expected 0.25..4.0"),
    ({"speed": 5}, 400, "speed", "invalid_value", "expected 0.25..4.0"),
    ({"speed": "fast"}, 400, "speed", "invalid_value", "expected 0.25..4.0"),
    ({"stream_format": "websocket"}, 400, "stream_format", "invalid_value", "'audio' or 'sse'"),
    ({"seed": -1}, 400, "seed", "invalid_value", "seed is -1"),
    ({"seed": 2**53}, 400, "seed", "invalid_value", "less than or equal"),
    ({"seed": 1.5}, 400, "seed", "invalid_value", "integer"),
    ({"seed": True}, 400, "seed", "invalid_value", "integer"),
    ({"stream": "yes"}, 400, "stream", "invalid_value", "boolean"),
    ({"temperature": 2.5}, 400, "temperature", "invalid_value", "less than or equal to 2"),
    ({"top_p": 0}, 400, "top_p", "invalid_value", "top_p is 0: "),
    ({"max_new_tokens": 6}, 400, "max_new_tokens", "invalid_value", "greater than or equal to 7"),
    ({"max_new_tokens": 1201}, 400, "max_new_tokens", "invalid_value", "this server allows at most 1200"),
    ({"model": None}, 400, "model", "missing_parameter", "'model' is missing"),
    ({"input": "\U0001f600 ..."}, 400, "input", "invalid_value", "no letter, digit or tag"),
    ({"stream": False, "stream_format": "sse"}, 400, "stream", "invalid_value", "sse is a stream"),
    ({"pitch": 1}, 400, "pitch", "unknown_parameter", "this server knows model, input, voice"),
])  # fmt: skip
def test_what_is_wrong_is_named(client, speaker, change, status, param, code, words):
    error = error_of(speak(client, **change), status)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert words in error["message"]
    assert not any(r.made for r in speaker.readings)


@pytest.mark.parametrize("body, code", [
    (b"", "invalid_json"), (b"{", "invalid_json"), (b"[]", "invalid_type"), (b"null", "invalid_type"),
    (b'{"model": "tts-1", "input": "\xff\xfe", "voice": "anna"}', "invalid_json"),
    (b'{"model": "tts-1", "input": "\\ud800", "voice": "anna"}', "invalid_json"),
    (b'{"model": "tts-1", "input": "Hi.", "voice": "anna", "speed": NaN}', "invalid_value"),
    (b'{"model": "tts-1", "input": "Hi.", "voice": "anna", "speed": -Infinity}', "invalid_value"),
    (b'{"model": "tts-1", "input": "Hi.", "voice": "anna", "speed": 1e999}', "invalid_value"),
    (b'{"model": "tts-1", "input": "Hi.", "voice": "anna", "seed": ' + b"9" * 5000 + b"}", "invalid_json"),
    (b"[" * 50_000, "invalid_json"),
])  # fmt: skip
def test_bodies_that_are_no_request(client, body, code):
    error = error_of(client.post("/v1/audio/speech", content=body, headers=HEADERS), 400)
    assert error["code"] == code


def test_a_form_of_a_stranger_s_page_is_refused(client):
    """Browsers let any page send these; for application/json they would ask the server first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = client.post("/v1/audio/speech", content=json.dumps(asked()), headers={"Content-Type": kind})
        assert error_of(answer, 400)["code"] == "invalid_content_type"
    preflight = client.options("/v1/audio/speech", headers={"Origin": "https://evil.example",
                                                            "Access-Control-Request-Method": "POST"})  # fmt: skip
    assert preflight.status_code == 405
    answer = client.post("/v1/audio/speech", json=asked(), headers={"Origin": "https://evil.example"})
    assert not [name for name in (*preflight.headers, *answer.headers) if name.startswith("access-control")]


def test_no_audio_is_422(client, speaker):
    speaker.fail_at = 0
    error = error_of(speak(client), 422)
    assert (error["code"], error["message"]) == ("no_speech", "the model produced no audio")
    speaker.error = UserError("the prompt has 9000 tokens")
    assert error_of(speak(client), 400)["message"] == "the prompt has 9000 tokens"


def test_a_defect_is_500_and_tells_nothing(client, speaker, caplog):
    speaker.fail_at, speaker.error = 0, RuntimeError("secret /path")
    answer = speak(client)
    error = error_of(answer, 500)
    assert error["type"] == "server_error" and "secret" not in answer.text
    assert answer.headers["x-request-id"] in caplog.text and "secret /path" in caplog.text


def test_collected_answers_fail_with_a_status(client, speaker):
    speaker.fail_at = 3
    assert error_of(speak(client, stream=False), 422)["code"] == "no_speech"


def test_other_addresses_and_methods(client):
    assert "Not Found" in error_of(client.get("/v1/nothing"), 404)["message"]
    for path in ("/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/orpheus/server.py", "/v1/models/../../x"):
        error_of(client.get(path), 404)
    refused = client.get("/v1/audio/speech")
    assert "Method Not Allowed" in error_of(refused, 405)["message"] and refused.headers["allow"] == "POST"
    error_of(client.post("/health"), 405)


def test_large_bodies(speaker):
    client = TestClient(create_app(speaker, ServerOptions(max_input_chars=100)))
    most = ServerOptions(max_input_chars=100).max_body_bytes
    padded = json.dumps(asked()).ljust(most)
    assert client.post("/v1/audio/speech", content=padded, headers=HEADERS).status_code == 200
    too_large = [
        padded + " ",
        b" " * 3_000_000,
        (b" " * 10_000 for _ in range(10)),
        (b" " * 10_000 for _ in range(300)),
    ]
    for body in too_large:
        error = error_of(client.post("/v1/audio/speech", content=body, headers=HEADERS), 413)
        assert error["code"] == "body_too_large" and str(most) in error["message"]
    longest = "\U0001f600" * 100  # 12 bytes each, escaped
    assert speak(client, input="a" + longest[1:]).status_code == 200


# ---- what clients other than OpenAI's send ----


def test_null_is_absent(client, speaker):
    nothing = dict.fromkeys(("voice", "speed", "response_format", "stream_format", "instructions", "stream", "top_p",
                             "temperature", "max_new_tokens", "something_new"))  # fmt: skip
    answer = speak(client, **nothing, input="Yes.")
    assert error_of(answer, 400)["message"].startswith("the parameter 'voice' is missing")
    answer = speak(client, **nothing | {"voice": "ben"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/mpeg")


def test_sampling_may_be_asked_for(client, speaker):
    speak(client, temperature=0, top_p=1, max_new_tokens=70)
    speak(client)
    assert [r.sampling for r in speaker.readings] == [SamplingOptions(0, 1, max_new_tokens=70, seed=3),
                                                      SamplingOptions(seed=3)]  # fmt: skip


@pytest.mark.parametrize("text", ["...", "\U0001f600", " - ", "\u200b", "<>", "\n"])
def test_a_text_that_says_nothing_can_be_a_silence(speaker, text):
    client = TestClient(create_app(speaker, ServerOptions(skip_empty=True)))
    for change in ({}, {"stream": False}):
        answer = speak(client, input=text, **change)
        assert (answer.status_code, answer.content) == (200, bytes(2 * 6000))
    assert speak(client, input=text, response_format="mp3").status_code == 200
    assert "speech.audio.done" in speak(client, input=text, stream_format="sse").text
    assert error_of(speak(client, input=text, voice="eve"), 400)["param"] == "voice"
    assert error_of(speak(client, input="<laugh"), 400)["param"] == "input"
    assert error_of(speak(TestClient(create_app(speaker)), input=text), 400)["param"] == "input"


def test_stock_names_and_tags_of_others_are_answered_with_ours(client, speaker):
    assert "start the server with --alias nova=anna" in error_of(speak(client, voice="nova"), 400)["message"]
    assert "--alias" not in error_of(speak(client, voice="eve"), 400)["message"]
    speaker.trained_tags = ("giggles", "sighs", "gasps")
    assert "tags like <giggles> or <sighs> into" in error_of(speak(client, instructions="Sad."), 400)["message"]


# ---- voices ----


def test_one_voice_is_the_default():
    client = TestClient(create_app(Speaker(voices=("anna",))))
    expected = pcm16(tone(TEXT, "anna", 3))
    assert all(speak(client, voice=v).content == expected for v in (..., None, "", "default", "anna"))
    assert client.get("/v1/audio/voices").json()["default"] == "anna"


def test_a_default_and_aliases_can_be_given(speaker):
    options = ServerOptions(voice="ben", alias=("alloy=anna", "nova=default"))
    client = TestClient(create_app(speaker, options))
    spoken = {v: speak(client, voice=v).content for v in (..., "default", "nova", "alloy", "ben")}
    ben, anna = pcm16(tone(TEXT, "ben", 3)), pcm16(tone(TEXT, "anna", 3))
    assert spoken == {...: ben, "default": ben, "nova": ben, "alloy": anna, "ben": ben}
    assert "(and alloy, nova)" in error_of(speak(client, voice="echo"), 400)["message"]
    for wrong in (ServerOptions(voice="eve"), ServerOptions(alias=("alloy=eve",))):
        with pytest.raises(UserError, match="unknown voice 'eve': this model knows anna, ben"):
            create_app(speaker, wrong)
    with pytest.raises(UserError, match="expected NAME=VOICE"):
        ServerOptions(alias=("alloy",))


def test_a_model_whose_voices_are_not_known():
    client = TestClient(create_app(Speaker(voices=())))
    assert speak(client, voice="default").content == pcm16(tone(TEXT, None, 3))
    assert speak(client, voice="zoe").content == pcm16(tone(TEXT, "zoe", 3))
    assert "--alias alloy=VOICE" in error_of(speak(client, voice="alloy"), 400)["message"]
    assert client.get("/v1/audio/voices").json()["default"] is None


def test_voices_and_models(speaker):
    speaker.trained_tags = ("giggles",)
    client = TestClient(create_app(speaker, ServerOptions(model_name="elise", max_input_chars=50)))
    assert client.get("/v1/audio/voices").json() == {
        "voices": [{"id": "anna", "name": "anna"}, {"id": "ben", "name": "ben"}], "default": None,
        "tags": ["<giggles>"], "max_input_chars": 50}  # fmt: skip
    names = ["elise", "tts-1", "tts-1-hd", "gpt-4o-mini-tts"]
    assert client.get("/v1/audio/models").json() == {"models": [{"id": name} for name in names]}
    models = client.get("/v1/models").json()
    assert models["object"] == "list" and [m["id"] for m in models["data"]] == ["elise"]
    assert models["data"][0] == client.get("/v1/models/elise").json() | {"object": "model"}
    assert error_of(client.get("/v1/models/other"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize("base, name", [
    ("embedded:tiny_orpheus", "tiny_orpheus"), ("unsloth/orpheus-3b-0.1-ft", "unsloth/orpheus-3b-0.1-ft"),
    ("/home/me/secret/my_voice", "my_voice"), ("exported/voice.gguf", "exported/voice.gguf"), ("a/b/voice.gguf",
                                                                                               "voice.gguf"),
])  # fmt: skip
def test_the_model_s_name_tells_no_folder(base, name):
    assert create_app(Speaker(base=base)).state.model == name


# ---- keys, hosts ----


def test_keys(speaker):
    app = create_app(speaker, keys=Keys(frozenset({"first", "second"})))
    client = TestClient(app)
    for wrong in ({}, {"Authorization": "Bearer third"}, {"Authorization": "first"}, {"Authorization": "Basic first"},
                  {"Authorization": "Bearer"}, {"Authorization": "Bearer first, second"}):  # fmt: skip
        answer = client.post("/v1/audio/speech", json=asked(), headers=wrong)
        assert error_of(answer, 401)["code"] == "invalid_api_key" and answer.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/models", "/v1/audio/voices", "/metrics", "/v1/nothing"):
        error_of(client.get(path), 401)
    for right in ("Bearer first", "bearer second", "Bearer  first "):
        assert client.post("/v1/audio/speech", json=asked(), headers={"Authorization": right}).status_code == 200
    assert client.get("/health").status_code == client.get("/openapi.json").status_code == 200
    document = client.get("/openapi.json").json()
    assert "401" in document["paths"]["/v1/models"]["get"]["responses"]


def test_keys_are_read_from_file_and_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("ORPHEUS_API_KEYS", raising=False)
    assert not read_keys(None)
    file = tmp_path / "keys"
    file.write_text("# mine\none\n\n  two  \n")
    monkeypatch.setenv("ORPHEUS_API_KEYS", "three,four")
    keys = read_keys(file)
    assert [keys.admit(f"Bearer {key}") for key in ("one", "two", "three", "four", "# mine", "")] == [True] * 4 + [
        False
    ] * 2
    for content, words in (("# none\n", "holds no API key"), ("a b\n", "spaces or non-ASCII"), ("ключ\n", "non-ASCII")):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=words):
            read_keys(file)
    with pytest.raises(UserError, match="can't read the API keys from .*nowhere"):
        read_keys(tmp_path / "nowhere")
    monkeypatch.setenv("ORPHEUS_API_KEYS", " , ")
    with pytest.raises(UserError, match="ORPHEUS_API_KEYS holds no API key"):
        read_keys(None)
    monkeypatch.setenv("ORPHEUS_API_KEYS", "")  # as a compose file passes on what is not set
    assert not read_keys(None)


@pytest.mark.parametrize("host, status", [
    ("localhost", 200), ("localhost:8000", 200), ("LOCALHOST.", 200), ("127.0.0.1:1", 200), ("[::1]:80", 200),
    ("evil.example", 400), ("localhost.evil.example", 400), ("", 400), ("127.0.0.1@evil.example", 400),
])  # fmt: skip
def test_a_local_server_answers_to_local_names_alone(speaker, host, status):
    client = TestClient(create_app(speaker, hosts={"localhost", "127.0.0.1", "::1"}))
    assert client.get("/health", headers={"Host": host}).status_code == status
