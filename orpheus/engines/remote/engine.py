"""Speaking with a model that another program serves: any server of OpenAI's `/v1/completions`.

The row ends, as in every engine, with the first id that is not legal audio at its position. So garbage, and anything
that was lost on the way, ends the row and the reader says where: ids are never moved to a slot that they don't name.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from orpheus.config import SamplingOptions
from orpheus.engines.background import Background
from orpheus.engines.base import check_lengths
from orpheus.engines.remote.reply import MOST_BYTES, Reply, expected, message_of, shown
from orpheus.engines.remote.servers import Kind, given, ids_of, kind_of
from orpheus.errors import MissingPackage, UserError
from orpheus.format.tokens import TokenLayout

log = logging.getLogger(__name__)

API_KEY = "ORPHEUS_API_KEY"
CONNECT_S = 10.0
RETRY_AFTER_S = (0.2, 1.0)
"""Pauses before a request is sent again. Only before its first token: later, speech would be heard twice."""
BUSY = (429, 502, 503, 504)  # worth trying again
REFUSED = (400, 415, 422, 500)  # how servers answer a prompt of a type that they don't take
SEEDS = 2**32 - 1
"""llama.cpp's seeds have 32 bits, and the largest of them means 'random'."""


class RemoteEngine:
    """Continues prompts on a completions server: vLLM, trtllm-serve, SGLang, llama-server, LM Studio, and others.

    Args:
        server: its address, like http://127.0.0.1:8000 (with or without /v1).
        layout: the token ids of the model that it serves.
        context_length: most tokens, prompt and speech together.
        model: the name under which it is served; None if the server has one model.
        api_key: None takes it from the environment, ORPHEUS_API_KEY. It is never logged.
        timeout_s: longest wait for the first token, and from one token to the next.
        tokenizer: the model's. With it, a server that takes no token ids is sent text, and a warning says so.
    Raises:
        UserError: the server can't be reached or used; the message says what to do.
    """

    name = "remote"

    def __init__(
        self,
        server: str,
        layout: TokenLayout,
        context_length: int,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 60,
        tokenizer: Any = None,
    ) -> None:
        self.server, self.layout, self.timeout_s, self.tokenizer = server.rstrip("/"), layout, timeout_s, tokenizer
        self.api_key = api_key or os.environ.get(API_KEY)
        self._client = self._connect()
        self._background = Background("remote-engine")
        try:
            self.kind, self.model, self.context_length = self._find_model(model, context_length)
            self._turns = asyncio.Semaphore(self.kind.at_once or 10**6)
            self.sends_text = self._needs_text()
        except BaseException:
            self.close()
            raise
        form = "text" if self.sends_text else "token ids"
        log.info("speaking with '%s' on %s (%s), prompts as %s", self.model, self.server, self.kind.name, form)
        if self.kind.caveat:
            log.warning("%s, %s, %s", self.server, self.kind.name, self.kind.caveat)

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, seeds: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """Yield `(row, id)` as tokens arrive; all rows are asked for at once. Closing it hangs up on the server.

        Raises UserError for a prompt that does not fit, and when a row fails, after hanging up on the others.
        """
        if sampling.decoding != "strict":
            raise UserError(
                f"decoding '{sampling.decoding}' needs the model in this process, and {self.server} draws from its "
                "whole vocabulary: use --decoding strict, or another engine"
            )
        check_lengths(prompts, sampling.max_new_tokens, self.context_length)
        bodies = [self._request(prompt, sampling, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        yield from self._background.merge([self._row(body) for body in bodies])

    # ---- one row ----

    def _request(self, prompt: Sequence[int], sampling: SamplingOptions, seed: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": self._text_of(prompt) if self.sends_text else [int(i) for i in prompt],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed % SEEDS,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.kind.fields(sampling, self.layout),
        }

    async def _row(self, body: dict[str, Any]) -> AsyncGenerator[int, None]:
        """The ids of one row, to the first that is not legal or the last that was asked for."""
        import httpx

        count = 0
        async with self._turns:
            for pause_s in (*RETRY_AFTER_S, None):
                try:
                    async with aclosing(self._ids(body)) as ids:
                        async for token_id in ids:
                            yield token_id
                            count += 1
                            if not self.layout.legal(token_id, count - 1) or count == body["max_tokens"]:
                                return
                except (httpx.TransportError, _Busy) as error:
                    if count or pause_s is None:
                        raise self._unreachable(error, count) from error
                    log.warning("%s: %s; trying again", self.server, _reason(error))
                    await asyncio.sleep(pause_s)
                except TimeoutError as error:
                    raise UserError(
                        f"{self.server} sent no token for {self.timeout_s:g} s (after {count} tokens): it is too busy, "
                        "or hangs; look at its log, or wait longer with a larger timeout"
                    ) from error

    async def _ids(self, body: dict[str, Any]) -> AsyncGenerator[int, None]:
        """All ids of one request; the last one is never legal. UserError, TransportError, TimeoutError, _Busy."""
        reply = Reply(self.layout, self.server)
        loop = asyncio.get_running_loop()
        # Not the client's own timeout: a server's pings would keep that from running out.
        async with (
            asyncio.timeout(self.timeout_s) as limit,
            self._client.stream("POST", self._url("completions"), json=body) as response,
        ):
            if response.status_code != 200:
                raise self._refusal(response.status_code, await beginning(response))
            async for data in response.aiter_bytes():
                ids = reply.push(data)
                for token_id in ids:
                    yield token_id
                if reply.done:
                    return
                if ids:
                    limit.reschedule(loop.time() + self.timeout_s)
            for token_id in reply.close():
                yield token_id

    # ---- getting to know the server ----

    def _connect(self) -> Any:
        try:
            import httpx
        except ImportError as error:
            raise MissingPackage("httpx", "speaking with a server") from error
        try:
            url = httpx.URL(self.server)
        except httpx.InvalidURL:
            url = httpx.URL("")
        if url.scheme not in ("http", "https") or not url.host:
            raise UserError(f"'{self.server}' is no address of a server: write it like http://127.0.0.1:8000")
        if url.userinfo:
            raise UserError(f"take the password out of the address of {url.host} and set {API_KEY} instead")
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            timeout=httpx.Timeout(None, connect=min(CONNECT_S, self.timeout_s)),
            limits=httpx.Limits(max_connections=None),
            trust_env=url.host not in ("127.0.0.1", "localhost", "::1"),  # no proxy leads to this machine
        )

    def close(self) -> None:
        """Close the connections. The engine can't be used any more."""
        self._background.run(self._client.aclose())
        self._background.stop()

    def _url(self, what: str) -> str:
        return f"{self.server.removesuffix('/v1')}/v1/{what}"

    def _ask(self, method: str, what: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status and answer (JSON, or the bytes if it is none) of a short request."""
        import httpx

        async def ask() -> tuple[int, bytes]:
            async with (
                asyncio.timeout(self.timeout_s),
                self._client.stream(method, self._url(what), json=body) as response,
            ):
                return response.status_code, await beginning(response)

        try:
            status, content = self._background.run(ask())
        except TimeoutError as error:
            raise UserError(f"{self.server} did not answer in {self.timeout_s:g} s: is it still loading?") from error
        except httpx.TransportError as error:
            raise self._unreachable(error, 0) from error
        return status, parsed(content)

    def _find_model(self, model: str | None, context_length: int) -> tuple[Kind, str, int]:
        """The kind of server, the name of its model, and the context that both sides have."""
        status, answer = self._ask("GET", "models")
        cards = answer.get("data") if isinstance(answer, dict) else None
        if status != 200 or not isinstance(cards, list):
            raise self._refusal(status, answer)
        with expected(self.server, "list of models", answer):
            names = [shown(card.get("id")) for card in cards]
            if model is None and len(names) == 1:
                model = names[0]
            if model not in names:
                what = "no model is named" if model is None else f"there is no model '{model}'"
                raise UserError(f"{what}: {self.server} serves {', '.join(names) or 'none'}; choose one of them")
            card = cards[names.index(model)]
            longest = given(card, "max_model_len", int) or context_length
        return kind_of(shown(card.get("owned_by"))), model, min(context_length, longest)

    def _needs_text(self) -> bool:
        """False if the server takes ids as the prompt; True if it reads our text as exactly these ids.

        Found out with the shortest prompt and one token. UserError if neither works.
        """
        lo = self.layout
        prompt = [lo.start_of_human, lo.bos, lo.end_of_text, lo.end_of_human, lo.start_of_ai, lo.start_of_speech]
        once = SamplingOptions(temperature=0, max_new_tokens=1)
        self.sends_text = False
        status, answer = self._try(prompt, once)
        if status in REFUSED:
            why = message_of(answer)
            if self.tokenizer is None:
                raise UserError(
                    f"{self.server} takes no token ids as the prompt ({why}): give the engine the model's tokenizer, "
                    "so that it can send text"
                )
            self.sends_text = True
            status, answer = self._try(prompt, once)
            if status == 200:
                log.warning("%s takes no token ids as the prompt (%s): it is sent text", self.server, why)
        if status != 200:
            raise self._refusal(status, answer)
        with expected(self.server, "answer to a prompt", answer):
            self._check_reading(answer, prompt)
        return self.sends_text

    def _try(self, prompt: Sequence[int], sampling: SamplingOptions) -> tuple[int, Any]:
        body = self._request(prompt, sampling, 0)
        del body["stream"], body["stream_options"]
        return self._ask("POST", "completions", body)

    def _check_reading(self, answer: Any, prompt: list[int]) -> None:
        """UserError if the server says that it read another prompt, or if it does not show audio tokens."""
        choice = (given(answer, "choices", list) or [{}])[0]
        read, count = choice.get("prompt_token_ids"), given(given(answer, "usage", dict) or {}, "prompt_tokens", int)
        if read not in (None, prompt):  # vLLM and SGLang repeat it
            raise UserError(f"{self.server} read the prompt {prompt} as {shown(read)}: it serves another model")
        if self.sends_text and count is None:
            raise UserError(f"{self.server} does not say how many tokens it read, so the prompt can't be checked")
        if count not in (None, len(prompt)):
            hint = "it adds a BOS of its own; switch that off (llama.cpp: tokenizer.ggml.add_bos_token=bool:false)"
            other = "it serves another model, or reads the control tokens as text"
            raise UserError(
                f"{self.server} read a prompt of {len(prompt)} tokens as {count}: "
                f"{hint if count == len(prompt) + 1 else other}"
            )
        if not ids_of(answer, choice) and not choice.get("text") and choice.get("finish_reason") == "length":
            raise UserError(
                f"{self.server} hides special tokens, and audio tokens are special in its model: start it so that it "
                "shows them (llama-server: --special), or serve a GGUF exported by this toolkit"
            )

    def _text_of(self, prompt: Sequence[int]) -> str:
        """The prompt as text that the model's tokenizer reads as exactly these ids; UserError if there is none."""
        ids = [int(i) for i in prompt]
        text = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) != ids:
            raise UserError(
                f"the prompt can't be written as text without changing its tokens ({shown(text)}), and {self.server} "
                "takes no token ids: use a server that does"
            )
        return str(text)

    # ---- errors ----

    def _refusal(self, status: int, answer: Any) -> Exception:
        """The error for an answer that is none; _Busy where it is worth asking again."""
        said = message_of(parsed(answer) if isinstance(answer, bytes) else answer)
        if self.api_key:
            said = said.replace(self.api_key, "***")
        hint = f"; set {API_KEY}" if status in (401, 403) else ""
        return (_Busy if status in BUSY else UserError)(f"{self.server} answered {status}: {said}{hint}")

    def _unreachable(self, error: Exception, count: int) -> UserError:
        if isinstance(error, _Busy):
            return UserError(f"{error}; tried {len(RETRY_AFTER_S) + 1} times")
        if count:
            return UserError(
                f"the connection to {self.server} broke after {count} tokens ({_reason(error)}): try again"
            )
        return UserError(f"{self.server} can't be reached ({_reason(error)}): is the server running there?")


class _Busy(UserError):
    """The server can't answer now."""


def _reason(error: Exception) -> str:
    return shown(error) or type(error).__name__


def parsed(content: bytes) -> Any:
    """JSON as what it means, anything else as it is."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content


async def beginning(response: Any) -> bytes:
    """At most so much of an answer as anything that is meant well has."""
    data = b""
    async for part in response.aiter_bytes():
        data += part
        if len(data) > MOST_BYTES:
            break
    return data[:MOST_BYTES]
