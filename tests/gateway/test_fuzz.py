"""The OpenAPI document fuzzed with schemathesis against the real Ray Serve gateway: no 5xx, nothing undocumented.

Both kinds of requests are made: such as the document allows, and such as it forbids.
"""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
POSTS = [("POST", path) for path in ("/v1/predict", "/v1/predict/batch")]
ABOUT = ("/v1/model", "/v1/versions", "/v1/operations", "/v1/operations/{operation}")
GETS = [("GET", path) for path in (*ABOUT, "/healthz", "/readyz", "/metrics")]
PATHS = {path for _, path in POSTS + GETS}
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
# A GET takes nothing, so there is nothing wrong to send it.
RUNS = [(*each, POSITIVE) for each in POSTS + GETS] + [(*each, NEGATIVE) for each in POSTS]


@pytest.fixture(scope="module")
def document(shared_gateway):
    return schemathesis.openapi.from_url(f"{shared_gateway.url}/openapi.json")


@pytest.mark.parametrize(("method", "path", "mode"), RUNS)
def test_no_generated_request_finds_an_undocumented_answer(document, method, path, mode):
    statuses = set()
    examples = 100 if method == "POST" else 10

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=document[path][method].as_strategy(generation_mode=mode))
    def ask(case):
        answer = case.call(timeout=30)
        case.validate_response(answer, checks=CHECKS)
        statuses.add(answer.status_code)

    ask()
    assert statuses and not any(status >= 500 for status in statuses)
    if method == "POST":  # the requests were not all of one kind
        assert 422 in statuses if mode is NEGATIVE else 200 in statuses


def test_the_document_names_every_route_and_every_limit(document):
    raw = document.raw_schema
    assert set(raw["paths"]) == PATHS
    assert set(raw["paths"]["/v1/predict"]["post"]["responses"]) == {
        *("200", "401", "404", "408", "413", "415", "422", "429", "500", "503", "504")
    }
    assert raw["components"]["schemas"]["BatchRequest"]["properties"]["texts"]["maxItems"] == 1024
