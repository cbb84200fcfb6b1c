"""The server with the embedded voice, asked by OpenAI's own client: six formats, streamed and not, seeds, events."""

from __future__ import annotations

import base64
import io
import json

import httpx
import numpy as np
import openai
import pytest

from orpheus.audio.encoders import FORMS
from orpheus.audio.recordings import pcm16, read
from orpheus.config import PRESETS, ReadingOptions, SamplingOptions
from orpheus.serve.app import create_app
from orpheus.speak.inference import OrpheusInference
from tests.audio.test_encoders import alike
from tests.support.speakers import running

TEXT = "The cat is here. <laugh>"
LATE_S = 0.1  # what an encoder puts before and after the sound


@pytest.fixture(scope="module")
def tts() -> OrpheusInference:
    preset = PRESETS["tiny"]
    return OrpheusInference(None, preset.base, preset.codec, device="cpu")


@pytest.fixture(scope="module")
def url(tts):
    with running(create_app(tts)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none is needed", max_retries=0)


@pytest.fixture(scope="module")
def spoken(tts) -> np.ndarray:
    """What the library itself says, float32 [N]."""
    return tts.generate(TEXT, voice="tara", seed=5)[0].samples


def asked(format: str, seed: int | None = 5, **more) -> dict:
    extra = {} if seed is None else {"extra_body": {"seed": seed}}
    return {"model": "tts-1", "voice": "tara", "input": TEXT, "response_format": format} | extra | more


def test_the_voices_and_their_tags_are_known(url):
    known = httpx.get(f"{url}/v1/audio/voices").json()
    assert [v["id"] for v in known["voices"]] == ["dan", "leo", "tara"] and known["default"] is None
    assert known["tags"] == ["<gasps>", "<giggles>", "<laughs>", "<sighs>"]  # those of its training alone


def heard(data: bytes, format: str) -> np.ndarray:
    if format == "pcm":
        return np.frombuffer(data, "<i2") / np.float32(32768)
    if format in ("aac", "flac"):
        import av

        return np.concatenate([f.to_ndarray().astype("f4")[0] for f in av.open(io.BytesIO(data)).decode(audio=0)])
    return read(data)


@pytest.mark.parametrize("format", FORMS)
def test_openai_s_client_hears_the_voice_in_every_format(client, spoken, format):
    whole = client.audio.speech.create(**asked(format)).content
    with client.audio.speech.with_streaming_response.create(**asked(format)) as answer:
        parts = list(answer.iter_bytes())
        assert answer.headers["content-type"] == FORMS[format].media_type
    assert len(parts) > 2 and b"".join(parts) == whole
    samples = heard(whole, format)
    assert 0 <= len(samples) - len(spoken) < LATE_S * 24000 and alike(spoken, samples) > 0.95


def test_streamed_collected_and_the_library_are_the_same_samples(client, tts, spoken):
    streamed = client.audio.speech.create(**asked("wav")).content
    whole = client.audio.speech.create(**asked("wav", extra_body={"seed": 5, "stream": False})).content
    assert pcm16(read(streamed)) == pcm16(read(whole)) == pcm16(spoken)


def test_a_fresh_seed_is_told_and_gives_the_same_again(client):
    first, second = (client.audio.speech.with_raw_response.create(**asked("pcm", None)) for _ in range(2))
    seeds = [int(answer.headers["x-seed"]) for answer in (first, second)]
    assert seeds[0] != seeds[1] and first.content != second.content
    assert client.audio.speech.create(**asked("pcm", seeds[0])).content == first.content


def test_events_for_openai_s_client(client):
    with client.audio.speech.with_streaming_response.create(**asked("pcm", stream_format="sse")) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    usage = events[-1]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] and usage["output_tokens"] % 7 == 1
    sound = b"".join(base64.b64decode(e["audio"]) for e in events[:-1])
    assert sound == client.audio.speech.create(**asked("pcm")).content
    assert usage["output_tokens"] // 7 * 2048 * 2 == len(sound)


def test_speed_for_openai_s_client(client, spoken):
    quick = client.audio.speech.create(**asked("pcm", speed=2.0)).content
    assert len(quick) // 2 == round(len(spoken) / 2)


def test_a_longer_text_is_read_piece_by_piece(tts):
    sampling, reading = SamplingOptions(seed=5, decoding="framed"), ReadingOptions(guard=True, piece_chars=20)
    text = "The cat is here. It is a sunny day."
    with running(create_app(tts, sampling=sampling, reading=reading)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none is needed", max_retries=0)
        answer = client.audio.speech.create(**asked("pcm", None, input=text)).content
    read = tts.read(text, "tara", sampling, reading)
    assert answer == pcm16(np.concatenate(list(read))) and len(read.pieces) > 1


def test_openai_s_client_understands_the_errors(client, tts):
    with pytest.raises(openai.BadRequestError, match="this model knows dan, leo, tara") as wrong:
        client.audio.speech.create(**asked("mp3", voice="alloy"))
    assert (wrong.value.param, wrong.value.code) == ("voice", "unknown_voice")
    with pytest.raises(openai.BadRequestError, match="write it as <gasps>"):
        client.audio.speech.create(**asked("mp3", input="Oh <sigh"))
    with pytest.raises(openai.NotFoundError, match="this server has tiny_orpheus"):
        client.audio.speech.create(**asked("mp3", model="gpt-4"))
    with pytest.raises(openai.BadRequestError, match="unknown parameter 'pitch'"):
        client.audio.speech.create(**asked("mp3", extra_body={"pitch": 2}))
    assert [m.id for m in client.models.list()] == ["tiny_orpheus"]
    assert client.models.retrieve("tiny_orpheus").owned_by == "orpheus"
    assert tts.voices == ("dan", "leo", "tara")
