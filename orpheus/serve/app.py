"""The speech server as an application: OpenAI's routes for speech, the web page, health and figures. No model logic.

`create_app` takes any voice that can `read`; `orpheus/serve/command.py` is the program around it.
"""
# No `from __future__ import annotations`: FastAPI reads the annotations of the routes, whose types live in create_app.

import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orpheus.audio.encoders import FORMS, Encoder
from orpheus.config import ReadingOptions, SamplingOptions
from orpheus.errors import UserError
from orpheus.format.prompt import TAGS_BY_LANGUAGE
from orpheus.format.texts import normalise
from orpheus.serve.admission import Admission
from orpheus.serve.answers import Answer, Desk, Silence
from orpheus.serve.counts import Counts
from orpheus.serve.gate import Gate, read_body
from orpheus.serve.options import DEFAULT_VOICE, Keys, ServerOptions
from orpheus.serve.problems import Problem, described
from orpheus.serve.requests import OPENAI_MODELS, OPENAI_VOICES, SpeechRequest, parse, schema
from orpheus.speak.reading import Reading

BODY_S = 30.0  # a body of some kilobytes that takes longer is not meant well


@dataclass(frozen=True)
class Voice:
    """A voice, as Open WebUI and others read it."""

    id: str
    name: str


@dataclass(frozen=True)
class Voices:
    """What can be asked for. `default`: null where a request must name its voice, or the voice has no name."""

    voices: list[Voice]
    default: str | None
    tags: list[str]
    max_input_chars: int


@dataclass(frozen=True)
class Model:
    """A model, in OpenAI's shape."""

    id: str
    created: int
    object: str = "model"
    owned_by: str = "orpheus"


@dataclass(frozen=True)
class Models:
    """All models, in OpenAI's shape."""

    data: list[Model]
    object: str = "list"


@dataclass(frozen=True)
class ModelId:
    """A model's name alone."""

    id: str


@dataclass(frozen=True)
class AudioModels:
    """All models, as Open WebUI reads them."""

    models: list[ModelId]


@dataclass(frozen=True)
class Health:
    """`status`: ok, or stopping (with HTTP status 503)."""

    status: str
    model: str
    running: int
    queued: int


class Names:
    """Which model and which voice the names in a request mean."""

    def __init__(self, tts: Any, options: ServerOptions) -> None:
        self.model = options.model_name or model_name(tts)
        self.voices: tuple[str, ...] = tuple(tts.voices)
        self.default = options.voice or (self.voices[0] if len(self.voices) == 1 else None)
        self.aliases = dict(alias.split("=") for alias in options.alias)
        options.check_voices(self.voices)

    @property
    def models(self) -> tuple[str, ...]:
        """All names of the model."""
        return (self.model, *OPENAI_MODELS)

    @property
    def known(self) -> tuple[str, ...]:
        """All names that mean a voice; empty: any may."""
        nameless = ("", DEFAULT_VOICE) if self.default else ()
        return (*self.voices, *self.aliases, *nameless) if self.voices else ()

    def check_model(self, name: str) -> None:
        """Problem (404) for a model that is not here."""
        if name not in self.models:
            raise Problem(404, f"there is no model {name[:80]!r}: this server has {self.model}", "model",
                          "model_not_found")  # fmt: skip

    def voice(self, name: str) -> str | None:
        """The voice that is meant; None: the one without a name. Problem (400), with the known ones: there is none."""
        name = self.aliases.get(name, name)
        if name in self.voices:
            return name
        if name in ("", DEFAULT_VOICE):
            if self.default is None and self.voices:
                raise self._unknown("the parameter 'voice' is missing")
            return self.default
        if self.voices:
            hint = (
                f"; to map it, start the server with --alias {name}={self.voices[0]}" if name in OPENAI_VOICES else ""
            )
            raise self._unknown(f"there is no voice {name[:80]!r}", hint)
        if name in OPENAI_VOICES:
            raise Problem(400, f"{name!r} is a voice of OpenAI's, not of this model: ask for 'default', or start the "
                          f"server with --alias {name}=VOICE", "voice", "unknown_voice")  # fmt: skip
        return name  # a base whose voices are not known: any name may be right

    def _unknown(self, what: str, hint: str = "") -> Problem:
        more = f" (and {', '.join(self.aliases)})" if self.aliases else ""
        return Problem(400, f"{what}: this model knows {', '.join(self.voices)}{more}{hint}", "voice",
                       "unknown_voice")  # fmt: skip


def model_name(tts: Any) -> str:
    """What clients call the model: the last part of a folder's name; a hub id whole."""
    about = tts.provenance["model"]
    name = str(about.get("adapter") or about.get("base") or "orpheus").rpartition(":")[2]
    is_hub_id = name.count("/") == 1 and not Path(name).exists()
    return name if is_hub_id else Path(name).name or "orpheus"


def known_tags(tts: Any) -> list[str]:
    """The tags to offer: those that it was trained with, else Orpheus' English ones."""
    return [f"<{tag}>" for tag in tts.trained_tags or TAGS_BY_LANGUAGE["en"]]


def create_app(
    tts: Any,
    options: ServerOptions | None = None,
    *,
    sampling: SamplingOptions | None = None,
    reading: ReadingOptions | None = None,
    keys: Keys | None = None,
    hosts: Collection[str] | None = None,
) -> Any:
    """The FastAPI application that speaks with `tts` (an `OrpheusInference`, or what reads as it does).

    Args:
        sampling, reading: how all requests are spoken; a request's own seed comes first.
        keys: who may; None: all.
        hosts: Host names by which it may be reached; None: any.
    Raises:
        UserError: an alias or the default voice is none of the model's.
    """
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException

    options, sampling = options or ServerOptions(), sampling or SamplingOptions()
    reading = reading or ReadingOptions(guard=True)
    names, keys = Names(tts, options), keys or Keys()
    admission = Admission(options.max_concurrent, options.max_queue)
    pool = ThreadPoolExecutor(options.max_concurrent, "speak")
    desk = Desk(admission, Counts(admission), pool)
    created = int(time.time())

    def speech_of(asked: SpeechRequest) -> Answer:
        """Everything that can be wrong with a request is found here, before it waits for a slot."""
        names.check_model(asked.model)
        voice = names.voice(asked.voice_name)
        own = {name: getattr(asked, name) for name in ("seed", "temperature", "top_p", "max_new_tokens")}
        drawn = replace(sampling, **{name: value for name, value in own.items() if value is not None})
        tokens = 0
        read: Reading | Silence
        try:
            read = tts.read(asked.input, voice, drawn, reading, collected=not asked.stream, warn=False)
            if asked.stream_format == "sse":
                tokens = len(tts.renderer.text_ids(asked.input, voice))
        except UserError as error:
            if not options.skip_empty or any(c.isalnum() for c in normalise(asked.input)):
                raise Problem(400, str(error), "input", "invalid_value") from None
            read = Silence(drawn.seed or 0)
        return Answer(desk, asked, read, Encoder(asked.response_format, asked.speed, read.note), tokens,
                      tts.unknown_words(asked.input))  # fmt: skip

    class Spoken(Response):
        """An answer as FastAPI wants it."""

        def __init__(self, answer: Answer) -> None:
            super().__init__()
            self.answer = answer

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.answer(scope, receive, send)

    app = FastAPI(title="Orpheus speech server", version="1", docs_url=None, redoc_url=None, redirect_slashes=False,
                  description="Text to speech, as OpenAI's API has it: docs/serve.md.")  # fmt: skip
    app.state.desk = desk
    app.state.model = names.model

    @app.exception_handler(Problem)
    async def refuse(request: Request, problem: Problem) -> Response:
        request.scope["reason"] = problem.code or ""
        return JSONResponse(problem.body(), problem.status, problem.headers)

    @app.exception_handler(HTTPException)
    async def refuse_as_openai(request: Request, error: HTTPException) -> Response:
        said = f"{request.method} {request.url.path[:80]}: {error.detail}"
        return await refuse(request, Problem(error.status_code, said, None, None, dict(error.headers or {})))

    always = described(400, 500, 503)
    guarded = described(401) if keys else {}
    security: dict[str, Any] = {"security": [{"bearer": []}]} if keys else {}

    @app.post("/v1/audio/speech", response_class=Response, responses={
        200: {"description": "The audio, or events with the audio", "headers": ANSWER_HEADERS, "content": CONTENT},
        **described(404, 408, 413, 422, 429), **always, **guarded,
    }, openapi_extra={**security, "requestBody": {"required": True, "content": {"application/json": {
        "schema": schema(options.max_input_chars, sampling.max_new_tokens, names.models, names.known)}}}})  # fmt: skip
    async def speech(request: Request) -> Response:
        """Speak a text. Takes OpenAI's parameters, and `seed` and `stream`."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which no form of a stranger's page can send
            raise Problem(400, f"the body's Content-Type is {kind[:80] or 'missing'}, expected application/json",
                          code="invalid_content_type")  # fmt: skip
        body = await read_body(request, options.max_body_bytes, BODY_S)
        limits = options.max_input_chars, sampling.max_new_tokens, known_tags(tts)
        answer = await run_in_threadpool(lambda: speech_of(parse(body, *limits)))
        return Spoken(answer)

    @app.get("/v1/audio/voices", responses={**always, **guarded}, openapi_extra=security)
    async def voices() -> Voices:
        """The voices and tags that a text may use."""
        return Voices([Voice(v, v) for v in names.voices], names.default, known_tags(tts), options.max_input_chars)

    @app.get("/v1/audio/models", responses={**always, **guarded}, openapi_extra=security)
    async def audio_models() -> AudioModels:
        """The names that a request may give for the model."""
        return AudioModels([ModelId(name) for name in names.models])

    @app.get("/v1/models", responses={**always, **guarded}, openapi_extra=security)
    async def models() -> Models:
        """The models: one."""
        return Models([Model(names.model, created)])

    @app.get("/v1/models/{name:path}", responses={**described(404), **always, **guarded},
             openapi_extra=security)  # fmt: skip
    async def model(name: str) -> Model:
        """A model by its name."""
        names.check_model(name)
        return Model(names.model, created)

    @app.get("/health", responses={503: {"model": Health, "description": "It is stopping"}, **described(400, 500)})
    async def health() -> Health:
        """Whether it is well, and how busy."""
        state = Health("stopping" if desk.stopping else "ok", names.model, admission.running, admission.queued)
        return JSONResponse(vars(state), 503) if desk.stopping else state  # type: ignore[return-value]

    @app.get("/metrics", response_class=Response, responses={
        200: {"description": "Figures for Prometheus", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **described(400, 500), **guarded,
    }, openapi_extra=security)  # fmt: skip
    async def metrics() -> Response:
        """What was counted since the start."""
        text, media_type = desk.counts.text()
        return Response(text, headers={"content-type": media_type})

    @app.get("/", response_class=Response, include_in_schema=False)
    async def root() -> Response:
        from orpheus.serve import page

        return Response(page.page(), headers=page.headers())

    if keys:
        document = app.openapi()
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    app.add_middleware(Gate, desk=desk, keys=keys, hosts=hosts)
    return app


ANSWER_HEADERS = {
    "X-Seed": {"description": "The seed that gives this speech again", "schema": {"type": "string"}},
    "X-Provenance": {
        "description": "That the speech is synthetic, and how it was made, percent-encoded; the files say it too",
        "schema": {"type": "string"},
    },
    "X-Finish-Reason": {
        "description": "With stream false: end_of_speech, or how the first piece ended that did not",
        "schema": {"type": "string"},
    },
    "X-Unknown-Words": {
        "description": "Words that a toy voice does not know, percent-encoded; absent where there are none",
        "schema": {"type": "string"},
    },
    "X-Request-Id": {"description": "Names the request in the server's log", "schema": {"type": "string"}},
}
CONTENT = {
    **{form.media_type: {"schema": {"type": "string", "format": "binary"}} for form in FORMS.values()},
    "text/event-stream": {},  # OpenAPI 3.1 has no word for the events of a stream
}
