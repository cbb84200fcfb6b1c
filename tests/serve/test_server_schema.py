"""Schemathesis against the server's own OpenAPI document: no 5xx, and every answer is one that it promises."""

from __future__ import annotations

from collections import defaultdict

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from orpheus.serve.app import create_app
from orpheus.serve.options import Keys, ServerOptions
from orpheus.serve.requests import SpeechRequest
from tests.support.speakers import Speaker

APP = create_app(Speaker(voices=("anna",)), ServerOptions(max_input_chars=300), keys=Keys(frozenset({"sesame"})))
KEY = {"Authorization": "Bearer sesame"}

schema = schemathesis.openapi.from_asgi("/openapi.json", APP)
# A text that is a string and yet nothing to speak ('?'), or a voice that is not there, is refused: rightly so.
SEEN: dict[str, list[int]] = defaultdict(list)
EXCLUDED = [positive_data_acceptance]


@schema.parametrize()
@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.generate],
          suppress_health_check=list(HealthCheck), derandomize=True, database=None)  # fmt: skip
def test_no_request_brings_the_server_down(case):
    answer = case.call_and_validate(headers=KEY, excluded_checks=EXCLUDED)
    SEEN[case.operation.label].append(answer.status_code)


def test_speech_was_made_and_refused():
    statuses = SEEN["POST /v1/audio/speech"]
    assert statuses.count(200) > 10 and statuses.count(400) > 10


def test_the_document_tells_the_truth():
    document = TestClient(APP).get("/openapi.json").json()
    assert set(document["paths"]) == {"/v1/audio/speech", "/v1/audio/voices", "/v1/audio/models", "/v1/models",
                                      "/v1/models/{name}", "/health", "/metrics"}  # fmt: skip
    speech = document["paths"]["/v1/audio/speech"]["post"]
    body = speech["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == set(SpeechRequest.__dataclass_fields__)
    assert all(field.get("description") for field in body["properties"].values())
    assert set(speech["responses"]) == {"200", *map(str, (400, 401, 404, 408, 413, 422, 429, 500, 503))}
    assert "422" not in document["paths"]["/v1/models"]["get"]["responses"]
    assert speech["security"] == [{"bearer": []}] and "security" not in document["paths"]["/health"]["get"]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
