"""One streamed answer of a completions server: bytes in, token ids out. No network here."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orpheus.engines.remote.servers import given, ids_of
from orpheus.engines.remote.token_text import UNKNOWN, TokenText
from orpheus.errors import UserError
from orpheus.format.tokens import TokenLayout

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 20  # of a line, or of a short answer: an event has some hundreds


class Reply:
    """Reads the events of one request (server-sent events: lines `data: {...}`, the last one `data: [DONE]`).

    Ids come from the server where it sends them, else from the names of tokens in its text. A server that ended the
    speech without showing the id that ended it gives the layout's end_of_speech.
    """

    def __init__(self, layout: TokenLayout, server: str) -> None:
        self.layout, self.server = layout, server
        self.text = TokenText(layout)
        self.count = 0  # ids so far
        self.done = False
        self.finish_reason: str | None = None
        self._line = b""
        self._sends_ids = False
        self._stop_id: int | None = None
        self._counted: int | None = None  # tokens by the server's own count

    def push(self, data: bytes) -> list[int]:
        """The ids that are complete with these bytes, however the stream is cut.

        Raises UserError for an error event, and at the end for ids that were lost or a reason to end that is no end.
        """
        *lines, self._line = (self._line + data).split(b"\n")
        if max(map(len, [*lines, self._line])) > MOST_BYTES:
            raise UserError(
                f"{self.server} sent a line of more than {MOST_BYTES} bytes, which is no event of a completion"
            )
        ids: list[int] = []
        for line in lines:
            # Other lines are comments (pings), names of events, and the empty lines between events.
            if line.startswith(b"data:") and not self.done:
                ids += self._event(line.removeprefix(b"data:").strip())
        return ids

    def _event(self, data: bytes) -> list[int]:
        if data == b"[DONE]":
            return self.close()
        with expected(self.server, "event of a completion", data):
            return self._ids(json.loads(data))

    def _ids(self, event: Any) -> list[int]:
        choices = given(event, "choices", list) or []
        if event.get("error") or event.get("object") == "error":
            raise UserError(f"{self.server} broke off after {self.count} tokens: {message_of(event)}")
        counted = given(given(event, "usage", dict) or {}, "completion_tokens", int)
        self._counted = self._counted if counted is None else counted
        ids: list[int] = []
        for choice in choices:
            named = ids_of(event, choice)
            self._sends_ids |= named is not None
            text = given(choice, "text", str) or ""
            ids += named or [] if self._sends_ids else self._read(text)
            if reason := given(choice, "finish_reason", str):
                self.finish_reason = reason
                stop_id = choice.get("stop_reason", choice.get("matched_stop"))  # vLLM and TensorRT-LLM; SGLang
                self._stop_id = stop_id if type(stop_id) is int else None
        self.count += len(ids)
        return ids

    def _read(self, text: str, last: bool = False) -> list[int]:
        ids = self.text.finish() if last else self.text.push(text)
        if UNKNOWN in ids:
            log.warning("%s sent %r where an audio token belongs: speech ends there", self.server, self.text.foreign)
        return ids

    def close(self) -> list[int]:
        """The stream is over: what is still held, and the id that ended it. UserError if this was no proper end."""
        self.done = True
        if self.finish_reason is None:
            raise UserError(
                f"{self.server} broke off after {self.count} tokens without saying why: look at its log, and try again"
            )
        held = self._read("", last=True)
        self.count += len(held)
        lost = (self._counted or 0) - self.count
        if lost > 1:  # one is the token that ended it
            raise UserError(
                f"{self.server} counts {self._counted} tokens but {self.count} arrived: "
                "the missing ones would be missing in the speech; try again, or use a server that sends token ids"
            )
        stop_id = self.layout.end_of_speech if self._stop_id is None else self._stop_id
        if self.finish_reason == "stop" and self.layout.slot_of(stop_id) is None:
            return [*held, stop_id]
        if self.finish_reason == "length":
            raise UserError(
                f"{self.server} ended after {self.count} tokens, at a limit of its own: start it with a longer "
                "context, or lower --max-new-tokens"
            )
        raise UserError(f"{self.server} broke off after {self.count} tokens: '{shown(self.finish_reason)}'")


@contextmanager
def expected(server: str, what: str, said: Any) -> Iterator[None]:
    """Whatever is odd in what a server said becomes a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise UserError(f"{server} sent what is no {what}: {shown(said)}") from error


def message_of(answer: Any, depth: int = 8) -> str:
    """What an error answer says, in one line: OpenAI's form, FastAPI's, and those of the servers we know."""
    for key in ("error", "message", "detail", "msg"):
        if depth and isinstance(answer, dict) and answer.get(key):
            return message_of(answer[key], depth - 1)
    if depth and isinstance(answer, list) and answer:
        return message_of(answer[0], depth - 1)
    return shown(answer)


def shown(value: Any) -> str:
    """The beginning of anything a server sent, in one line that can be printed."""
    text = value[:1000].decode("utf-8", "replace") if isinstance(value, bytes) else str(value)[:1000]
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    return line if len(line) <= 200 else f"{line[:200]}..."
