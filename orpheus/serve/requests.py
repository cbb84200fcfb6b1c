"""The body of a request for speech: OpenAI's parameters and a few of our own, read strictly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MinLen

from orpheus.audio.encoders import FORMS, SPEEDS
from orpheus.format.tokens import FRAME_SLOTS
from orpheus.serve.problems import Problem

OPENAI_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
"""Names that every server of this kind answers to, so that programs written for OpenAI's run unchanged."""
OPENAI_VOICES = ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage",
                 "shimmer", "verse")  # fmt: skip
MOST_SEED = 2**53 - 1  # the largest that every JSON reader keeps as it is

Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
STRICT = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True)
class VoiceId:
    """A voice as an object."""

    __pydantic_config__ = STRICT

    id: str
    """The voice's name."""


@dataclass(frozen=True)
class SpeechRequest:
    """What is to be spoken, and how."""

    __pydantic_config__ = STRICT

    model: str
    """A name of `GET /v1/models`; OpenAI's own (tts-1, tts-1-hd, gpt-4o-mini-tts) mean the same."""
    input: Annotated[str, MinLen(1)]
    """The text, with tags of `GET /v1/audio/voices` where the voice should laugh or sigh."""
    voice: str | VoiceId | None = None
    """A name of `GET /v1/audio/voices`; null, '' or 'default': the server's default voice."""
    response_format: Format = "mp3"
    """The format of the audio. pcm: 16 bit, little-endian, 24 kHz, mono."""
    speed: Annotated[float, Ge(SPEEDS[0]), Le(SPEEDS[1])] = 1.0
    """Faster or slower; the pitch stays."""
    stream_format: Literal["audio", "sse"] = "audio"
    """audio: the bytes of the file. sse: server-sent events with the same bytes in base64."""
    instructions: str | None = None
    """Must be empty: this model takes no instructions. Put tags into the text."""
    seed: Annotated[int, Ge(0), Le(MOST_SEED)] | None = None
    """The same seed gives the same speech. Null: a fresh one; the answer's header X-Seed tells which."""
    stream: bool = True
    """True: the audio is sent as it is spoken. False: when it is complete, with Content-Length."""
    temperature: Annotated[float, Ge(0), Le(2)] | None = None
    """Livelier and less stable; 0 takes the most likely token. Null: the server's own."""
    top_p: Annotated[float, Ge(0.01), Le(1)] | None = None
    """Draw among the most likely tokens that together hold this probability. Null: the server's own."""
    max_new_tokens: Annotated[int, Ge(FRAME_SLOTS)] | None = None
    """Most tokens of a piece of the text, 82 a second; no more than the server allows. Null: as many as that."""

    @property
    def voice_name(self) -> str:
        """The voice's name; '' for the default."""
        return self.voice.id if isinstance(self.voice, VoiceId) else self.voice or ""


assert set(FORMS) == set(Format.__args__)  # type: ignore[attr-defined]


def parse(body: bytes, max_chars: int, max_new_tokens: int, tags: Sequence[str]) -> SpeechRequest:
    """The request in a body of JSON. Problem (400) for all that is not exactly as the schema says; null is absent.

    tags: those that the voice knows, for what is said of instructions.
    """
    from pydantic import ValidationError

    try:
        request: SpeechRequest = _adapter().validate_json(_without_nulls(body), strict=True)
    except ValidationError as error:
        raise _problem(dict(error.errors(include_url=False)[0])) from None
    if len(request.input) > max_chars:
        raise Problem(400, f"input has {len(request.input)} characters, at most {max_chars} are allowed: send it in "
                      "parts", "input", "string_above_max_length")  # fmt: skip
    if request.instructions and request.instructions.strip():
        raise Problem(400, f"this model takes no instructions: put tags like {' or '.join(tags[:2])} into the text "
                      "instead, where they belong; GET /v1/audio/voices lists them", "instructions",
                      "unsupported_parameter")  # fmt: skip
    if (request.max_new_tokens or 0) > max_new_tokens:
        raise Problem(400, f"max_new_tokens is {request.max_new_tokens}: this server allows at most {max_new_tokens}",
                      "max_new_tokens", "invalid_value")  # fmt: skip
    if request.stream_format == "sse" and not request.stream:
        raise Problem(400, "stream_format sse is a stream: leave 'stream' out, or ask for stream_format audio",
                      "stream", "invalid_value")  # fmt: skip
    return request


def _without_nulls(body: bytes) -> bytes:
    """The body without the parameters that are null."""
    from pydantic_core import from_json, to_json

    try:
        given = from_json(body)
    except ValueError:
        return body  # what is wrong with it is said later
    if not isinstance(given, dict) or None not in given.values():
        return body
    kept = {name: value for name, value in given.items() if value is not None}
    return to_json(kept, inf_nan_mode="constants")


def schema(max_chars: int, max_new_tokens: int, models: Sequence[str], voices: Sequence[str]) -> dict[str, Any]:
    """JSON schema of the body, for OpenAPI; it holds what it refers to. `voices`: all names allowed; empty: any."""
    made: dict[str, Any] = _adapter().json_schema()
    voice_id = made.pop("$defs")["VoiceId"]
    fields = made["properties"]
    fields["model"]["enum"] = list(models)
    fields["input"]["maxLength"] = max_chars
    name = {"type": "string", **({"enum": list(voices)} if voices else {})}
    voice_id["properties"]["id"] |= name
    fields["voice"]["anyOf"] = [name, voice_id, {"type": "null"}]
    fields["instructions"]["anyOf"][0]["maxLength"] = 0
    fields["max_new_tokens"]["anyOf"][0]["maximum"] = max_new_tokens
    for field in fields.values():
        if "default" in field and "anyOf" not in field:
            kind = {key: field.pop(key) for key in [*field] if key not in ("default", "description", "title")}
            field["anyOf"] = [kind, {"type": "null"}]
    return made


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(SpeechRequest)


def _problem(error: dict[str, Any]) -> Problem:
    """pydantic's first finding, as a problem with one parameter or with the body."""
    where = [str(part) for part in error["loc"]]
    name = where[0] if where else None
    if error["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON in UTF-8: {error['msg'].removeprefix('Invalid JSON: ')}", None,
                       "invalid_json")  # fmt: skip
    if name is None:
        return Problem(400, 'the body must be a JSON object, like {"model": ..., "input": ...}', None, "invalid_type")
    if error["type"] == "unexpected_keyword_argument":
        known = ", ".join(SpeechRequest.__dataclass_fields__)
        where_known = known if len(where) == 1 else "id"
        return Problem(400, f"unknown parameter '{'.'.join(where)[:80]}': this server knows {where_known}",
                       name[:80], "unknown_parameter")  # fmt: skip
    if error["type"] == "missing":
        return Problem(400, f"the parameter '{name}' is missing", name, "missing_parameter")
    if name == "voice":
        return Problem(400, 'voice must be a name, or an object like {"id": name}', name, "invalid_type")
    if name == "speed":
        said = f"expected {SPEEDS[0]}..{SPEEDS[1]}"
    else:
        said = error["msg"].removeprefix("Input ").removeprefix("String ")
    given = error["input"]
    got = repr(given) if given is None or isinstance(given, bool | int | float) else f"a {type(given).__name__}"
    return Problem(400, f"{name} is {repr(given) if given == '' else got[:40]}: {said}", name, "invalid_value")
