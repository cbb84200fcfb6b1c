"""What goes wrong with a request, in the shape of OpenAI's errors."""

from __future__ import annotations

import json
from typing import Any

INVALID = "invalid_request_error"


class Problem(Exception):
    """A request that is not answered: an HTTP status and OpenAI's error object.

    Args:
        status: 400, 401, 404, 405, 408, 413, 422, 429, 500 or 503.
        param: the parameter that is wrong, if it is one.
        code: a fixed word for programs.
        headers: to send with it.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None,
                 headers: dict[str, str] | None = None) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    @property
    def kind(self) -> str:
        """OpenAI's type of it."""
        return "rate_limit_error" if self.status == 429 else "server_error" if self.status >= 500 else INVALID

    def body(self) -> dict[str, Any]:
        """What the client gets."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    async def send(self, send: Any) -> None:
        """Answer with it (ASGI)."""
        data = json.dumps(self.body()).encode()
        headers = {"content-type": "application/json", "content-length": str(len(data)), **self.headers}
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": encoded})
        await send({"type": "http.response.body", "body": data})


SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
"""JSON schema of every error's body."""

MEANINGS = {
    400: "The request is wrong: a parameter, the text, the voice, or the body as a whole",
    401: "The API key is missing or wrong",
    404: "There is no such model or page",
    405: "This address wants another method",
    408: "The body did not come in time",
    413: "The body is too large",
    422: "The model gave no audio for this text",
    429: "All places are taken: come again after Retry-After seconds",
    500: "A defect of the server",
    503: "The server is stopping",
}


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers with these statuses, as OpenAPI tells of them."""
    return {
        status: {"description": MEANINGS[status], "content": {"application/json": {"schema": SCHEMA}}}
        for status in statuses
    }
