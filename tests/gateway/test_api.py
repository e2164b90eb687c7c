"""What the API answers when all is well, by the real application, tokenizer and Triton."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from gateway.bundle import read_bundle
from gateway.schemas import BatchAnswer, ModelAnswer, PredictAnswer
from tests.bundles import CREATED, GOLDEN_TOLERANCE, NEGATIVE, POSITIVE
from tests.gateway.served_app import served_app

STAGES = ("x-tokenization-time", "x-queue-time", "x-inference-time", "x-total-time")
TEXTS = [*POSITIVE, *NEGATIVE, "영화 정말 좋다", "배우 연기 가 별로", "좋다 싫다", "great ㅋㅋ"]


def test_one_text_gets_label_confidence_and_version(shared_app):
    answer = shared_app.predict("정말 재미 최고")
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("confidence") > 0.9
    assert body == {
        "prediction": "positive",
        "label": "긍정",
        "truncated": False,
        "input_tokens": 5,
        "model_version": "1",
    }
    assert shared_app.predict("최악 지루").json()["label"] == "부정"


def test_probabilities_come_only_when_asked_for(shared_app):
    assert "probs" not in shared_app.predict("영화", return_probs=False).json()
    body = shared_app.predict("영화 좋다", return_probs=True).json()
    assert list(body["probs"]) == ["negative", "positive"]
    assert math.isclose(sum(body["probs"].values()), 1, abs_tol=1e-5)
    assert body["confidence"] == body["probs"][body["prediction"]]


def test_golden_rows_come_out_as_published(shared_app, shared_repository):
    for row in read_bundle(shared_repository).manifest.golden:
        probs = shared_app.predict(row.text, return_probs=True).json()["probs"]
        assert list(probs.values()) == pytest.approx(row.probabilities, abs=GOLDEN_TOLERANCE)


def test_answers_fit_their_documented_models(shared_app):
    PredictAnswer.model_validate_json(shared_app.predict("영화", return_probs=True).content)
    BatchAnswer.model_validate_json(shared_app.batch(["영화", "좋다"], return_probs=True).content)
    ModelAnswer.model_validate_json(shared_app.client.get("/v1/model").content)


def test_a_batch_answers_each_text_as_alone_and_in_the_order_asked(shared_app):
    together = shared_app.batch(TEXTS, return_probs=True).json()
    assert together["model_version"] == "1"
    for text, row in zip(TEXTS, together["predictions"], strict=True):
        alone = shared_app.predict(text, return_probs=True).json()
        assert alone.pop("model_version") == "1"
        for name in ("confidence", "probs"):
            assert row.pop(name) == pytest.approx(alone.pop(name), abs=1e-4)
        assert row == alone


def test_a_batch_of_many_chunks_keeps_its_order(shared_app):
    texts = [f"{'좋다 ' * (index % 7)}{TEXTS[index % len(TEXTS)]}" for index in range(1024)]
    rows = shared_app.batch(texts).json()["predictions"]
    assert len(rows) == 1024
    for index in (0, 63, 64, 65, 500, 1023):
        alone = shared_app.predict(texts[index]).json()
        assert (rows[index]["prediction"], rows[index]["input_tokens"]) == (alone["prediction"], alone["input_tokens"])


def test_a_text_longer_than_the_model_reads_is_reported_as_truncated(shared_app):
    exactly = shared_app.predict("영화 " * 30).json()  # 30 words and two marks: the model's 32
    longer = shared_app.predict("영화 " * 31).json()
    assert (exactly["truncated"], exactly["input_tokens"]) == (False, 32)
    assert (longer["truncated"], longer["input_tokens"]) == (True, 32)


def test_a_long_text_goes_the_way_of_the_tokenizer_thread_and_comes_out_the_same(shared_app):
    short, long = shared_app.predict("최고 " * 31).json(), shared_app.predict("최고 " * 3000).json()
    assert short == long


def test_white_space_around_a_text_changes_nothing(shared_app):
    assert shared_app.predict("  좋다\n").json() == shared_app.predict("좋다").json()


def test_the_model_route_tells_what_serves(shared_app):
    assert shared_app.client.get("/v1/model").json() == {
        "name": "sentiment",
        "version": "1",
        "labels": [{"name": "negative", "korean": "부정"}, {"name": "positive", "korean": "긍정"}],
        "encoder": "tiny",
        "precision": "fp32",
        "max_length": 32,
        "metrics": None,
        "since": CREATED,
        "candidate": None,
    }


def test_every_answer_carries_its_id_version_and_times(shared_app):
    answers = [
        shared_app.predict("영화"),
        shared_app.batch(["영화", "좋다"]),
        shared_app.predict(" "),
        shared_app.client.get("/healthz"),
        shared_app.client.get("/nowhere"),
        shared_app.client.put("/v1/predict"),
    ]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    for answer in answers:
        assert answer.headers["x-model-version"] == "1"
        times = [float(answer.headers[stage]) for stage in STAGES]
        assert all(time >= 0 for time in times)
        assert sum(times[:3]) <= times[3] + 0.01  # what is left is reading, checking and writing
    assert all(float(answers[0].headers[stage]) > 0 for stage in (STAGES[0], STAGES[2]))
    assert [float(answers[3].headers[stage]) for stage in STAGES[:3]] == [0, 0, 0]


def test_a_sane_request_id_is_kept_and_another_replaced(shared_app):
    def echoed(offered: bytes) -> str:
        return shared_app.client.get("/healthz", headers={b"x-request-id": offered}).headers["x-request-id"]

    assert echoed(b"order-17/a:b_c.d~e") == "order-17/a:b_c.d~e"
    for insane in (b"", b"a b", b"x" * 129, "눈치".encode(), b"<script>"):
        assert len(echoed(insane)) == 32


@pytest.mark.parametrize("key", ["user-17", "a" * 128, "7f:00/+=@~._-"])
def test_a_request_key_is_taken(shared_app, key):
    answer = shared_app.client.post("/v1/predict", json={"text": "영화"}, headers={"x-request-key": key})
    assert answer.status_code == 200


@pytest.mark.parametrize("key", [b"", b"a" * 129, b"two words", "눈치".encode()])
def test_a_request_key_of_another_kind_is_refused(shared_app, key):
    for path, body in (("/v1/predict", {"text": "영화"}), ("/v1/predict/batch", {"texts": ["영화"]})):
        refused = shared_app.client.post(path, json=body, headers={b"x-request-key": key})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
        assert "x-request-key" in refused.json()["detail"]


def test_the_document_names_the_headers_a_client_may_send_and_get(shared_app):
    post = shared_app.client.get("/openapi.json").json()["paths"]["/v1/predict"]["post"]
    assert [each["name"] for each in post["parameters"]] == ["x-request-key", "x-ask-version"]
    assert post["responses"]["429"]["headers"]["Retry-After"]["schema"] == {"type": "integer", "minimum": 1}


def test_pages_of_other_origins_may_not_ask_unless_they_are_named(shared_app, shared_repository, shared_triton):
    page = {"origin": "https://example.org"}
    preflight = {**page, "access-control-request-method": "POST", "access-control-request-headers": "x-request-key"}
    allowed = "access-control-allow-origin"
    assert allowed not in shared_app.client.post("/v1/predict", json={"text": "영화"}, headers=page).headers
    assert allowed not in shared_app.client.options("/v1/predict", headers=preflight).headers
    with served_app(
        shared_repository, shared_triton.grpc_port, cors_origins="https://example.org", api_key="s3cret"
    ) as app:
        assert app.client.options("/v1/predict", headers=preflight).headers[allowed] == page["origin"]
        for origin, expected in ((page["origin"], page["origin"]), ("https://example.com", None)):
            unauthorized = app.client.post("/v1/predict", json={"text": "영화"}, headers={"origin": origin})
            assert (unauthorized.status_code, unauthorized.headers.get(allowed)) == (401, expected)
    with served_app(shared_repository, shared_triton.grpc_port, cors_origins="*") as app:
        answer = app.client.post("/v1/predict", json={"text": "영화"}, headers=page)
        assert (answer.status_code, answer.headers[allowed]) == (200, "*")
        assert "Retry-After" in answer.headers["access-control-expose-headers"]


def test_health_and_readiness(shared_app):
    assert shared_app.client.get("/healthz").json() == {"status": "alive"}
    assert shared_app.client.get("/readyz").json() == {"status": "ready", "model_version": "1"}


def test_a_crowd_asking_for_readiness_costs_triton_one_canary_a_second(shared_app, shared_triton):
    def inferences() -> float:
        page = httpx.get(f"http://127.0.0.1:{shared_triton.metrics_port}/metrics").text
        (line,) = [line for line in page.splitlines() if line.startswith("nv_inference_request_success{")]
        return float(line.rpartition(" ")[2])

    def ask(_: int) -> int:
        return httpx.get(f"{shared_app.url}/readyz", timeout=30).status_code

    before, started = inferences(), time.monotonic()
    with ThreadPoolExecutor(8) as crowd:
        assert set(crowd.map(ask, range(60))) == {200}
    time.sleep(0.2)  # Triton counts a moment after it answers
    seconds = time.monotonic() - started
    assert inferences() - before <= 2 * (seconds + 1)  # ours, and the server's own canary, once a second each


def test_the_documentation_page_is_there(shared_app):
    assert "swagger" in shared_app.client.get("/docs").text.lower()


def test_requests_texts_tokens_and_stages_are_counted(shared_app):
    requests = 'nunchi_gateway_requests_total{code="ok",route="/v1/predict/batch",status="200",version="1"}'

    def counted() -> list[float]:
        return [
            shared_app.metric(requests),
            shared_app.metric("nunchi_gateway_texts_total"),
            shared_app.metric("nunchi_gateway_tokens_total"),
            shared_app.metric('nunchi_gateway_truncated_texts_total{version="1"}'),
            shared_app.metric('nunchi_gateway_stage_seconds_count{stage="inference",version="1"}'),
        ]

    shared_app.batch(["영화"])
    before = counted()
    shared_app.batch(["좋다", "영화 " * 31])
    assert [after - first for after, first in zip(counted(), before, strict=True)] == [1, 2, 3 + 32, 1, 1]
    assert shared_app.metric("nunchi_gateway_in_flight_texts") == 0
    info = 'nunchi_gateway_model_info{encoder="tiny",model="sentiment",precision="fp32",version="1"}'
    assert shared_app.metric(info) == 1


def test_refused_requests_are_counted_under_their_code(shared_app):
    name = 'nunchi_gateway_requests_total{code="empty_text",route="/v1/predict",status="422",version="1"}'
    shared_app.predict("")
    before = shared_app.metric(name)
    shared_app.predict(" \t ")
    assert shared_app.metric(name) == before + 1


def test_addresses_nobody_documented_do_not_multiply_the_metrics(shared_app):
    for number in range(20):
        shared_app.client.get(f"/nowhere/{number}")
    page = shared_app.client.get("/metrics").text
    assert "nowhere" not in page and 'route="other"' in page


def test_many_clients_at_once_each_get_their_own_answer(shared_app):
    def ask(index: int) -> str:
        answer = httpx.post(f"{shared_app.url}/v1/predict", json={"text": TEXTS[index % len(TEXTS)]}, timeout=30)
        return answer.json()["prediction"]

    alone = [ask(index) for index in range(len(TEXTS))]
    with ThreadPoolExecutor(32) as clients:
        for index, prediction in enumerate(clients.map(ask, range(200))):
            assert prediction == alone[index % len(TEXTS)]
