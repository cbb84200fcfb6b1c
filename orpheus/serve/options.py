"""What the server allows, and who may use it."""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orpheus.config import check_ranges
from orpheus.errors import UserError

KEYS_VARIABLE = "ORPHEUS_API_KEYS"
DEFAULT_VOICE = "default"  # in a request: the server's own choice
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ServerOptions:
    """Names, limits and keys of the server."""

    model_name: str | None = None
    """Name of the model for clients. Default: the adapter's or the base's."""
    voice: str | None = None
    """The voice of requests that name none (or 'default'). Default: the model's only one."""
    alias: tuple[str, ...] = ()
    """Further names for voices, like alloy=tara: clients that know OpenAI's voices alone work unchanged then."""
    api_key_file: Path | None = None
    """File with the keys that clients must show, one a line; ORPHEUS_API_KEYS may hold more. Default: none needed."""
    max_input_chars: int = 4 * 1024
    """Longest text of a request. OpenAI's limit."""
    skip_empty: bool = False
    """Answer a text without a letter or digit ('...', an emoji) with a quarter of a second of silence, not with 400."""
    max_concurrent: int = 8
    """Requests spoken at the same time: the slots of the batch."""
    max_queue: int = 32
    """Requests that may wait for a slot; more are told to come again later (429)."""
    shutdown_seconds: float = 300.0
    """After Ctrl-C or SIGTERM: how long the answers under way may take. Those that take longer are cut off."""
    allow_host: tuple[str, ...] = ()
    """On a local address, or without keys: further Host names by which it is reached (a proxy's, a container's)."""

    def __post_init__(self) -> None:
        check_ranges(self, max_input_chars=(1, math.inf), max_concurrent=(1, 1000), max_queue=(0, math.inf),
                     shutdown_seconds=(0, math.inf))  # fmt: skip
        for alias in self.alias:
            if not re.fullmatch(r"[^=\s]+=[^=\s]+", alias):
                raise UserError(f"alias is {alias!r}, expected NAME=VOICE, like alloy=tara")

    def check_voices(self, known: Sequence[str]) -> None:
        """UserError for a voice, or an alias of one, that the model does not have; `known` is empty: any may be."""
        for voice in [self.voice, *(alias.split("=")[1] for alias in self.alias)]:
            if voice and voice != DEFAULT_VOICE and known and voice not in known:
                raise UserError(f"unknown voice '{voice}': this model knows {', '.join(known)}")

    @property
    def max_body_bytes(self) -> int:
        """The largest body: a text of `max_input_chars` as JSON can be 12 bytes a character, and there is the rest."""
        return 12 * self.max_input_chars + 16 * 1024


class Keys:
    """The keys that open the server; none: it is open to all."""

    def __init__(self, keys: frozenset[str] = frozenset()) -> None:
        # Of equal length, so that comparing them tells nothing about how long a key is.
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: str | None) -> bool:
        """Whether the header is 'Bearer KEY' with one of the keys. All are compared, each in constant time."""
        scheme, _, key = (authorization or "").partition(" ")
        shown = hashlib.sha256(key.strip().encode()).digest()
        matches = [hmac.compare_digest(shown, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def read_keys(file: Path | None) -> Keys:
    """The keys of a file (one a line; blank lines and those with # are none) and of ORPHEUS_API_KEYS (commas between).

    UserError: the file can't be read, or a source that is given holds no key: the server would be open to all.
    """
    keys: set[str] = set()
    sources = {KEYS_VARIABLE: told.split(",")} if (told := os.environ.get(KEYS_VARIABLE)) else {}
    if file is not None:
        try:
            sources[str(file)] = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"can't read the API keys from {file}: {error}") from error
    for source, lines in sources.items():
        found = {line.strip() for line in lines} - {""}
        found = {line for line in found if not line.startswith("#")}
        if not found:
            raise UserError(f"{source} holds no API key: put one there, or leave it out and serve without keys")
        if any(not re.fullmatch(r"[!-~]+", key) for key in found):
            raise UserError(f"{source} holds an API key with spaces or non-ASCII characters: no client could send it")
        keys |= found
    return Keys(frozenset(keys))
