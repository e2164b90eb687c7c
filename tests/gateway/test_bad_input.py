"""What the gateway says to what it cannot take, each with its status and code, through the real Ray Serve gateway.

None may be a 500, and none may reach Triton half-checked.
"""

import json
import socket

import httpx
import pytest

from gateway.errors import PROBLEMS
from tests.gateway.gateway_process import GatewayProcess

JSON = {"content-type": "application/json"}
DEEP = 100_000

# what it is: (the body, code)
PREDICT_BODIES = {
    "empty text": (b'{"text": ""}', "empty_text"),
    "white space": (b'{"text": " \\t\\n\\u3000 "}', "empty_text"),
    "empty after cleaning": (b'{"text": "<br><br>"}', "empty_text"),
    "only a null byte": (b'{"text": "\\u0000"}', "empty_text"),
    "only control characters": (b'{"text": "\\u0001\\u200b\\u007f"}', "empty_text"),
    "no text": (b"{}", "invalid_request"),
    "null": (b'{"text": null}', "invalid_request"),
    "a number": (b'{"text": 12}', "invalid_request"),
    "a list": (b'{"text": ["x"]}', "invalid_request"),
    "an object": (b'{"text": {"x": 1}}', "invalid_request"),
    "true": (b'{"text": true}', "invalid_request"),
    "an unknown field": (b'{"text": "x", "lang": "ko"}', "invalid_request"),
    "another route's field": (b'{"texts": ["x"]}', "invalid_request"),
    "return_probs as text": (b'{"text": "x", "return_probs": "yes"}', "invalid_request"),
    "return_probs as a number": (b'{"text": "x", "return_probs": 1}', "invalid_request"),
    "return_probs null": (b'{"text": "x", "return_probs": null}', "invalid_request"),
    "a list as body": (b"[]", "invalid_request"),
    "a text as body": ('"영화"'.encode(), "invalid_request"),
    "null as body": (b"null", "invalid_request"),
    "no body": (b"", "invalid_request"),
    "half a document": (b'{"text": "x"', "invalid_request"),
    "two documents": (b'{"text": "x"} {"text": "y"}', "invalid_request"),
    "single quotes": (b"{'text': 'x'}", "invalid_request"),
    "a trailing comma": (b'{"text": "x",}', "invalid_request"),
    "a raw null byte": (b'{"text": "\x00"}', "invalid_request"),
    "a raw line break": (b'{"text": "a\nb"}', "invalid_request"),
    "UTF-8 cut in the middle": ('{"text": "영'.encode()[:-1] + b'"}', "invalid_request"),
    "Latin-1": (b'{"text": "caf\xe9"}', "invalid_request"),
    "EUC-KR": ('{"text": "영화"}'.encode("euc-kr"), "invalid_request"),
    "UTF-16": ('{"text": "영화"}'.encode("utf-16"), "invalid_request"),
    "overlong UTF-8": (b'{"text": "\xc0\x80"}', "invalid_request"),
    "a lone leading surrogate": (b'{"text": "\\ud800"}', "invalid_request"),
    "a lone trailing surrogate": (b'{"text": "a\\udc00b"}', "invalid_request"),
    "a surrogate as UTF-8": (b'{"text": "\xed\xa0\x80"}', "invalid_request"),
    "NaN": (b'{"text": NaN}', "invalid_request"),
    "Infinity": (b'{"text": "x", "return_probs": Infinity}', "invalid_request"),
    "a huge number": (b'{"text": ' + b"9" * 5000 + b"}", "invalid_request"),
    "a huge exponent": (b'{"text": 1e999999}', "invalid_request"),
    "deep lists": (b'{"text": ' + b"[" * DEEP + b"]" * DEEP + b"}", "invalid_request"),
    "deep lists never closed": (b"[" * DEEP, "invalid_request"),
    "deep objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "invalid_request"),
    "deep in an unknown field": (b'{"text": "x", "y": ' + b"[" * DEEP + b"]" * DEEP + b"}", "invalid_request"),
    "1 MB of text": (json.dumps({"text": "a" * 1_000_000}).encode(), "payload_too_large"),
    "1 MB of Korean": (json.dumps({"text": "가" * 333_333}, ensure_ascii=False).encode(), "payload_too_large"),
    "a text longer than allowed": (json.dumps({"text": "a" * 20_001}).encode(), "payload_too_large"),
}

# what it is: (the body, code, row)
BATCH_BODIES = {
    "no texts": (b'{"texts": []}', "invalid_request", None),
    "a text, not a list": (b'{"texts": "x"}', "invalid_request", None),
    "a number in row 2": (b'{"texts": ["x", "y", 3]}', "invalid_request", 2),
    "null in row 1": (b'{"texts": ["x", null]}', "invalid_request", 1),
    "a surrogate in a row": (b'{"texts": ["x", "\\ud800"]}', "invalid_request", None),
    "an empty text in row 1": (b'{"texts": ["x", "", "z"]}', "empty_text", 1),
    "row 0 of one empty after cleaning": (b'{"texts": ["<br>"]}', "empty_text", 0),
    "row 2 too long": (json.dumps({"texts": ["x", "y", "a" * 20_001]}).encode(), "payload_too_large", 2),
    "1,025 texts": (json.dumps({"texts": ["x"] * 1025}).encode(), "too_many_texts", None),
    "10,000 texts": (json.dumps({"texts": ["좋다"] * 10_000}).encode(), "too_many_texts", None),
    "10,000 numbers": (json.dumps({"texts": [1] * 10_000}).encode(), "invalid_request", 0),
    "NaN as a row": (b'{"texts": [NaN]}', "invalid_request", 0),
}

STATUS = {problem.code: problem.status for problem in PROBLEMS.values()}


def post(gateway: GatewayProcess, path: str, body: bytes, headers: dict[str, str] = JSON) -> httpx.Response:
    return httpx.post(f"{gateway.url}{path}", content=body, headers=headers, timeout=30)


def assert_problem(answer: httpx.Response, code: str, row: int | None = None) -> dict:
    assert answer.status_code == STATUS[code], answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == code
    assert problem["type"] == f"urn:nunchi:problem:{code}"
    assert problem["status"] == answer.status_code
    assert problem["title"] and problem["detail"]
    assert problem["instance"] == answer.headers["x-request-id"]
    assert problem.get("row") == row
    assert answer.headers["x-inference-time"] == "0.000"  # nothing of it reached Triton
    assert answer.headers.get_list("x-request-id", split_commas=True) == [problem["instance"]]
    return problem


@pytest.mark.parametrize(("body", "code"), PREDICT_BODIES.values(), ids=PREDICT_BODIES)
def test_a_bad_prediction_request_is_refused(shared_gateway, body, code):
    assert_problem(post(shared_gateway, "/v1/predict", body), code)


@pytest.mark.parametrize(("body", "code", "row"), BATCH_BODIES.values(), ids=BATCH_BODIES)
def test_a_bad_batch_is_refused_and_its_row_named(shared_gateway, body, code, row):
    problem = assert_problem(post(shared_gateway, "/v1/predict/batch", body), code, row)
    if row is not None:
        assert f"texts.{row}" in problem["detail"] or f"texts[{row}]" in problem["detail"]


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/xml"]
)
def test_a_body_not_declared_as_json_is_refused(shared_gateway, content_type):
    headers = {} if content_type is None else {"content-type": content_type}
    problem = assert_problem(post(shared_gateway, "/v1/predict", b'{"text": "x"}', headers), "unsupported_media_type")
    assert "application/json" in problem["detail"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_a_body_declared_as_json_in_other_words_is_taken(shared_gateway, content_type):
    assert post(shared_gateway, "/v1/predict", b'{"text": "x"}', {"content-type": content_type}).status_code == 200


def test_what_looks_bad_but_is_not_gets_an_answer(shared_gateway):
    for body in (
        b'{"text": "\\u0000\\uc88b\\ub2e4\\u0000"}',  # null bytes around a word
        b'{"text": "\\ud83d\\ude00"}',  # a proper pair of surrogates
        '{"text": "😀👨‍👩‍👧"}'.encode(),
        '{"text": "é̸̡̢̧̛̛̗̘̙̜̝̞̟̠"}'.encode(),
        b'{"text": "first", "text": "second"}',
        b' \n\t{"text": "x"}\n',
        json.dumps({"text": "a" * 20_000}).encode(),
        b'{"text": "<"}',
        b'{"text": "[CLS] [SEP] [PAD]"}',
    ):
        assert post(shared_gateway, "/v1/predict", body).status_code == 200, body


def test_a_problem_says_what_does_not_fit_without_repeating_it(shared_gateway):
    problem = assert_problem(
        post(shared_gateway, "/v1/predict", b'{"text": 1, "secret-field": "secret-value"}'), "invalid_request"
    )
    assert [fault["where"] for fault in problem["faults"]] == ["text", "secret-field"]
    assert "secret-value" not in json.dumps(problem)


def test_limits_are_named_with_value_and_remedy(shared_gateway):
    batch = post(shared_gateway, "/v1/predict/batch", BATCH_BODIES["10,000 texts"][0]).json()["detail"]
    assert "10000" in batch and "1024" in batch and "several batches" in batch
    text = post(shared_gateway, "/v1/predict", PREDICT_BODIES["a text longer than allowed"][0]).json()["detail"]
    assert "20001" in text and "20000" in text and "shorten" in text


def test_a_body_without_content_length_is_stopped_at_the_limit_too(shared_gateway):
    def endless():
        yield b'{"text": "'
        for _ in range(
            240
        ):  # 12 MB: more than any socket buffer, so somebody has to read on for the answer to be heard
            yield b"a" * 50_000

    answer = httpx.post(f"{shared_gateway.url}/v1/predict", content=endless(), headers=JSON, timeout=30)
    assert "content-length" not in answer.request.headers
    assert_problem(answer, "payload_too_large")


def test_an_address_or_method_nobody_serves_is_a_problem_too(shared_gateway):
    for path, shown in (("/v2/predict", "'/v2/predict'"), ("/%ff%00" + "x" * 999, "'/\ufffd\\x00xxx")):
        unknown = httpx.get(f"{shared_gateway.url}{path}")
        assert_problem(unknown, "not_found")
        assert shown in unknown.json()["detail"] and len(unknown.json()["detail"]) < 200
    wrong = httpx.get(f"{shared_gateway.url}/v1/predict")
    assert_problem(wrong, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert wrong.json()["detail"] == "/v1/predict does not take GET, but POST"


@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes"])
def test_pages_of_ray_serve_are_not_there_because_nothing_goes_through_it(shared_gateway, path):
    assert_problem(httpx.get(f"{shared_gateway.url}{path}"), "not_found")


def test_headers_that_ray_would_obey_change_nothing(shared_gateway):
    headers = {
        **JSON,
        "x-request-timeout-seconds": "0.000001",
        "x-request-disconnect-disabled": "?1",
        "serve_multiplexed_model_id": "other",
    }
    assert post(shared_gateway, "/v1/predict", '{"text": "영화"}'.encode(), headers).status_code == 200


@pytest.mark.parametrize("name", ["x-request-id", "x-session-id", "serve_multiplexed_model_id", "authorization"])
def test_headers_that_are_not_utf_8_do_not_crash_a_request(shared_gateway, name):
    with socket.create_connection(("127.0.0.1", shared_gateway.port), timeout=30) as connection:
        connection.sendall(f"GET /healthz HTTP/1.1\r\nhost: x\r\n{name}: ".encode() + b"\xff\xfe\xed\xa0\r\n")
        connection.sendall(b"connection: close\r\n\r\n")
        head = b"".join(iter(lambda: connection.recv(65536), b""))
    assert head.startswith(b"HTTP/1.1 200 "), head
    assert head.lower().count(b"x-request-id:") == 1


def test_the_gateway_still_answers_after_all_that(shared_gateway):
    assert httpx.get(f"{shared_gateway.url}/readyz").status_code == 200
    page = httpx.get(f"{shared_gateway.url}/metrics").text
    assert 'status="500"' not in page
