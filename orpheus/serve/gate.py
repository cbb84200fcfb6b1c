"""What every request passes on its way in and out: host, key, whether the server stops; ids, headers, the log."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Collection
from typing import Any

from orpheus.serve.answers import Desk
from orpheus.serve.counts import known_path
from orpheus.serve.options import Keys
from orpheus.serve.problems import Problem

log = logging.getLogger(__name__)

OPEN_PATHS = ("/", "/health", "/openapi.json")  # no key is asked for: they tell nothing and cost nothing
STAYS_OPEN = ("/health", "/metrics")  # while the server stops
SPEECH = "/v1/audio/speech"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
DISCARDED = 1 << 20  # bytes that are read and thrown away, since a client that still sends would not read its 413


class Gate:
    """ASGI middleware around the whole application.

    Args:
        hosts: the Host names by which the server may be reached; None: any. A page of a stranger's could make its own
            name point to this machine (DNS rebinding), and would then be allowed to read what a local server says.
    """

    def __init__(self, app: Any, desk: Desk, keys: Keys, hosts: Collection[str] | None) -> None:
        self.app, self.desk, self.keys, self.hosts = app, desk, keys, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        head = scope["method"] == "HEAD"
        if head and scope["path"] != SPEECH:  # answered like GET; the body is left out on the way
            scope = {**scope, "method": "GET"}
        scope["request_id"] = uuid.uuid4().hex
        passed = _Passed(send, scope["request_id"], close=self.desk.stopping, head=head)
        counted = int(scope["path"] not in STAYS_OPEN)
        self.desk.busy += counted
        try:
            self._check(scope)
            await self.app(scope, receive, passed.send)
        except Problem as problem:
            passed.close_if_unread(scope["headers"])  # a refused body is not waited for
            scope["reason"] = problem.code
            await problem.send(passed.send)
        except Exception:
            log.exception("%s: a defect of the server", scope["request_id"])
            scope["outcome"], scope["reason"] = "aborted", "internal_error"
            if passed.status is None:  # else uvicorn closes the connection: the client sees a broken answer
                await Problem(500, "the server failed; its log tells more, under the id of this answer's X-Request-Id",
                              code="internal_error").send(passed.send)  # fmt: skip
                scope["outcome"] = 500
        finally:
            self.desk.busy -= counted
            outcome = scope.get("outcome", passed.status)
            self.desk.counts.request(scope["path"], outcome)
            self._log(scope, "HEAD" if head else scope["method"], outcome, time.monotonic() - started)

    def _log(self, scope: Any, method: str, outcome: int | str, seconds: float) -> None:
        """A line for each request for speech, and for each that went wrong. Nothing in it is a client's own words."""
        if scope["path"] == SPEECH or outcome != 200:
            said = " ".join(str(scope[part]) for part in ("reason", "note") if scope.get(part))
            log.log(logging.WARNING if outcome in ("aborted", 500) else logging.INFO, "%s %s %s in %.2f s, id %s%s",
                    method if method in METHODS else "OTHER", known_path(scope["path"]), outcome, seconds,
                    scope["request_id"], f": {said}" if said else "")  # fmt: skip

    def _check(self, scope: Any) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        name = host_name(headers.get(b"host", ""))
        if self.hosts is not None and name not in self.hosts and not is_address(name):
            raise Problem(400, f"this server is reached by address or as {', '.join(sorted(self.hosts))}, "
                          f"not as {name[:80]!r}: see its option --allow-host", code="unknown_host")  # fmt: skip
        if self.desk.stopping and path not in STAYS_OPEN:
            raise Problem(503, "the server is stopping", code="stopping", headers={"Retry-After": "5"})
        if self.keys and path not in OPEN_PATHS and not self.keys.admit(headers.get(b"authorization")):
            raise Problem(401, "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'",
                          code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})  # fmt: skip


class _Passed:
    """The way out: sends on, notes the status, adds what every answer has."""

    def __init__(self, send: Any, request_id: str, close: bool, head: bool) -> None:
        self._send, self._head = send, head
        self.status: int | None = None
        self._headers = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
        self._headers += [(b"connection", b"close")] if close else []

    def close_if_unread(self, headers: Any) -> None:
        told = dict(headers)
        if b"transfer-encoding" in told or len(told.get(b"content-length", b"0")) > 4:  # 10 kB and more
            self._headers.append((b"connection", b"close"))

    async def send(self, message: Any) -> None:
        if self._head and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        if message["type"] == "http.response.start":
            self.status = message["status"]
            mine = {name for name, _ in self._headers}
            message["headers"] = [*(pair for pair in message["headers"] if pair[0].lower() not in mine),
                                  *self._headers]  # fmt: skip
        await self._send(message)


def host_name(host: str) -> str:
    """The name in a Host header, without its port: '[::1]:8000' -> '::1'; '' for anything else (RFC 9110)."""
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?)(?::[0-9]{0,5})?", host.lower())
    return (match[1] or match[2]) if match else ""


def is_address(host: str) -> bool:
    """Whether it is an IP address. No stranger can make one point elsewhere, as a name can."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def read_body(request: Any, most: int, seconds: float) -> bytes:
    """The body of a (Starlette) request. Problem: more than `most` bytes (413), or not there in time (408)."""
    from starlette.requests import ClientDisconnect

    length = request.headers.get("content-length", "0").strip()
    size = int(length) if len(length) < 16 and length.isdecimal() else 0  # h11 checks it; this is only to be quick
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(seconds):
            if size <= most + DISCARDED:
                size = 0
                async for part in request.stream():
                    size += len(part)
                    if size > most + DISCARDED:
                        break
                    parts.append(part if size <= most else b"")
    except TimeoutError:
        raise Problem(408, f"the body did not come within {seconds:g} s", code="timeout") from None
    except ClientDisconnect:
        raise Problem(400, "the client went away before its body was complete", code="incomplete_body") from None
    if size > most:
        raise Problem(413, f"the body is larger than {most} bytes", code="body_too_large")
    return b"".join(parts)
