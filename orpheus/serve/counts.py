"""What the server counts, for Prometheus: requests, waiting, first audio, speech, what the guard did."""

from __future__ import annotations

from typing import Any

from orpheus.serve.admission import Admission

FIRST_AUDIO_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 60)
PATHS = ("/", "/v1/audio/speech", "/v1/audio/voices", "/v1/audio/models", "/v1/models",
         "/openapi.json", "/health", "/metrics")  # fmt: skip


class Counts:
    """The figures of one server, in a registry of their own."""

    def __init__(self, admission: Admission) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        self._requests = Counter("orpheus_requests", "Requests, by path and status; 499: the client went away, "
                                 "aborted: broken off after its first byte", ["path", "status"],
                                 registry=self.registry)  # fmt: skip
        self._first_audio = Histogram("orpheus_first_audio_seconds", "From a request's arrival to its first byte of "
                                      "audio, waiting included", registry=self.registry,
                                      buckets=FIRST_AUDIO_S)  # fmt: skip
        self._audio = Counter("orpheus_audio_seconds", "Seconds of speech made", registry=self.registry)
        self._tokens = Counter("orpheus_tokens", "Tokens drawn", registry=self.registry)
        self._pieces = Counter("orpheus_pieces", "Pieces of texts spoken, by how they ended: out_of_range and "
                               "max_new_tokens were cut short", ["finish"], registry=self.registry)  # fmt: skip
        self._guard = Counter("orpheus_guard_actions", "What the guard trimmed or drew again", registry=self.registry)
        self._dropped = Counter("orpheus_connections_dropped", "Connections closed: silent, stalled, crowded (it made "
                                "room), full (no room)", ["reason"], registry=self.registry)  # fmt: skip
        running = Gauge("orpheus_running", "Requests being spoken", registry=self.registry)
        running.set_function(lambda: admission.running)
        queued = Gauge("orpheus_queued", "Requests waiting for a slot", registry=self.registry)
        queued.set_function(lambda: admission.queued)

    def request(self, path: str, status: int | str) -> None:
        """A request has ended. Unknown paths are counted as one: a stranger must not make new series."""
        self._requests.labels(known_path(path), str(status)).inc()

    def dropped(self, why: str) -> None:
        """A connection was closed that sent or took nothing, or for which there was no room."""
        self._dropped.labels(why).inc()

    def first_audio(self, seconds: float) -> None:
        """A request's first byte of audio has come."""
        self._first_audio.observe(seconds)

    def spoken(self, reading: Any) -> None:
        """A reading (`orpheus.speak.reading.Reading`, or what is like it) has ended, completely or not."""
        self._audio.inc(reading.duration_s)
        self._tokens.inc(reading.tokens)
        for piece in reading.pieces:
            self._guard.inc(len(piece.guard))
            self._pieces.labels(piece.finish_reason).inc()

    def text(self) -> tuple[bytes, str]:
        """All figures in Prometheus' text format, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def known_path(path: str) -> str:
    """The path as it is counted and logged; "other" for one that is not known: a stranger's words go nowhere."""
    path = "/v1/models" if path.startswith("/v1/models/") else path
    return path if path in PATHS else "other"
