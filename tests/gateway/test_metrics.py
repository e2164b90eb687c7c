"""The page Prometheus reads: what is counted, under which labels, and that the labels stay few."""

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.bundle import Tokens, read_bundle
from gateway.metrics import VERSIONS_KEPT, Metrics
from gateway.stages import Stages
from tests.bundles import write_bundle


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    repository = tmp_path_factory.mktemp("metrics") / "model_repository"
    write_bundle(repository, labels=3)
    return read_bundle(repository)


def series(metrics: Metrics) -> dict[str, float]:
    """Every sample of the page, written as Prometheus shows it."""
    return {
        f"{sample.name}{{{','.join(f'{key}={value}' for key, value in sorted(sample.labels.items()))}}}": sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def versions_of(metrics: Metrics) -> set[str]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {sample.labels["version"] for each in families for sample in each.samples if "version" in sample.labels}


def test_requests_are_counted_by_route_status_code_and_version(metrics):
    metrics.answered("/v1/predict", 200, "ok", "1")
    metrics.answered("/v1/predict", 200, "ok", "1")
    metrics.answered("/v1/predict", 429, "overloaded", "2")
    page = series(metrics)
    assert page["nunchi_gateway_requests_total{code=ok,route=/v1/predict,status=200,version=1}"] == 2
    assert page["nunchi_gateway_requests_total{code=overloaded,route=/v1/predict,status=429,version=2}"] == 1


def test_the_stages_are_told_apart_and_so_are_the_versions(metrics):
    metrics.spent(Stages(tokenization=0.001, queue=0.002, inference=0.004), 0.1, "1")
    metrics.spent(Stages(tokenization=0.001, queue=0.002, inference=0.004), 0.1, "2")
    page = series(metrics)
    for stage, seconds in (("tokenization", 0.001), ("queue", 0.002), ("inference", 0.004), ("total", 0.1)):
        for version in ("1", "2"):
            assert page[f"nunchi_gateway_stage_seconds_sum{{stage={stage},version={version}}}"] == seconds


def test_labels_truncations_and_batch_sizes_are_counted(metrics, bundle):
    tokens = [Tokens([2, 4, 3], False), Tokens([2, 4, 5, 3], False), Tokens([2] * 32, True)]
    metrics.read(bundle, tokens, [2, 0, 2], [0.9, 0.5, 0.8])
    metrics.sent(3)
    page = series(metrics)
    assert page["nunchi_gateway_texts_total{}"] == 3
    assert page["nunchi_gateway_tokens_total{}"] == 3 + 4 + 32
    assert page["nunchi_gateway_truncated_texts_total{version=1}"] == 1
    assert page["nunchi_gateway_predictions_total{label=positive,version=1}"] == 2
    assert page["nunchi_gateway_predictions_total{label=negative,version=1}"] == 1
    assert page["nunchi_gateway_predictions_total{label=neutral,version=1}"] == 0
    for size in ("request_texts", "triton_rows"):
        assert page[f"nunchi_gateway_{size}_bucket{{le=2.0}}"] == 0
        assert page[f"nunchi_gateway_{size}_bucket{{le=4.0}}"] == 1


def test_the_limit_of_texts_in_flight_is_asked_each_time(metrics):
    limit = 10
    metrics.watch_in_flight(lambda: 3, lambda: limit)
    assert series(metrics)["nunchi_gateway_in_flight_texts_limit{}"] == 10
    limit = 4
    page = series(metrics)
    assert (page["nunchi_gateway_in_flight_texts{}"], page["nunchi_gateway_in_flight_texts_limit{}"]) == (3, 4)


def test_a_shadow_is_compared_text_by_text(metrics):
    metrics.shadowed("2", texts=4, agreeing=3, live_seconds=0.01, candidate_seconds=0.02)
    metrics.shadow_dropped(5)
    metrics.candidate_failed("2")
    page = series(metrics)
    assert page["nunchi_gateway_shadow_texts_total{version=2}"] == 4
    assert page["nunchi_gateway_shadow_agreeing_texts_total{version=2}"] == 3
    assert page["nunchi_gateway_shadow_seconds_sum{side=live,version=2}"] == 0.01
    assert page["nunchi_gateway_shadow_seconds_sum{side=candidate,version=2}"] == 0.02
    assert page["nunchi_gateway_shadow_dropped_texts_total{}"] == 5
    assert page["nunchi_gateway_candidate_failures_total{version=2}"] == 1


def test_a_candidate_is_shown_while_there_is_one_and_its_end_while_there_is_none(metrics):
    metrics.candidate_is("2", "canary", 0.1, "")
    share, ended = "nunchi_gateway_candidate_share{mode=canary,version=2}", "nunchi_gateway_candidate_ended"
    assert series(metrics)[share] == 0.1
    metrics.candidate_is(None, "", 0, "errors")
    page = series(metrics)
    assert share not in page
    assert page[f"{ended}{{reason=errors,version=2}}"] == 1
    metrics.candidate_is("3", "shadow", 1, "")
    assert not [each for each in series(metrics) if each.startswith(ended)]


def test_a_candidate_ended_by_command_raises_no_alarm(metrics):
    metrics.candidate_is("2", "canary", 0.1, "")
    metrics.candidate_is(None, "", 0, "")
    assert not [each for each in series(metrics) if "candidate_ended{" in each or "candidate_share{" in each]


def test_versions_that_are_long_gone_leave_no_series(metrics, bundle):
    for number in range(1, 21):
        version = replace(bundle, version=str(number))
        metrics.serves(version)
        metrics.answered("/v1/predict", 200, "ok", version.version)
        metrics.spent(Stages(), 0.1, version.version)
        metrics.read(version, [Tokens([2, 4, 3], True)], [1], [0.9])
        metrics.shadowed(version.version, 1, 1, 0.1, 0.1)
    assert versions_of(metrics) == {str(number) for number in range(21 - VERSIONS_KEPT, 21)}
    assert series(metrics)["nunchi_gateway_texts_total{}"] == 20


def test_a_version_that_goes_on_keeps_its_series_however_many_candidates_come_and_go(metrics, bundle):
    metrics.serves(bundle)
    metrics.answered("/v1/predict", 200, "ok", "1")
    for number in range(2, 12):
        metrics.candidate_is(str(number), "canary", 0.1, "")
        metrics.answered("/v1/predict", 200, "ok", str(number))
    metrics.answered("/v1/predict", 200, "ok", "1")
    assert series(metrics)["nunchi_gateway_requests_total{code=ok,route=/v1/predict,status=200,version=1}"] == 2
    assert len(versions_of(metrics)) == VERSIONS_KEPT


def test_what_a_request_is_asked_for_shows_on_the_page_of_a_running_gateway(shared_app):
    def counted(name: str) -> float:
        return shared_app.metric(f"nunchi_gateway_{name}")

    shared_app.batch(["좋다", "싫다"])
    names = ("request_texts_sum", "triton_rows_sum", 'predictions_total{label="positive",version="1"}')
    before = [counted(name) for name in names]
    shared_app.batch(["좋다", "최고", "감동"])
    assert [counted(name) - first for name, first in zip(names, before, strict=True)] == [3, 3, 3]
