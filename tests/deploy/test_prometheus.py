"""deploy/prometheus and deploy/grafana against a real Prometheus that scrapes a real gateway and a real Triton."""

import json
import math
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from gateway.drift import MINIMUM_TEXTS
from tests.bundles import set_serving, write_bundle, write_json
from tests.gateway.gateway_process import GatewayProcess, running_gateway, wait_until
from tests.triton_process import TritonProcess, free_ports, running_triton

ROOT = Path(__file__).resolve().parent.parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "nunchi.json").read_text(encoding="utf-8"))
RULES = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    pytest.param(target["expr"].replace("$__rate_interval", "30s"), id=f"{panel['title']} {target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
# Nothing of the kind happens in a healthy stack; that the series exists under this name is checked all the same.
RARE = {"nunchi_gateway_candidate_ended", "nunchi_gateway_candidate_failures_total"}
REFERENCE = {
    "rows": 1000,
    "label": [0.5, 0.5],
    "confidence": {"edges": [0.75], "shares": [0.5, 0.5]},
    "length": {"edges": [8, 16], "shares": [0.3, 0.4, 0.3]},
    "unknown": {"edges": [0], "shares": [0.9, 0.1]},
}


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of prometheus and promtool."""
    installed = subprocess.run([PROMETHEUS / "install.sh"], capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    return Path(installed.stdout.splitlines()[-1])


def promtool(programs: Path, *arguments: object) -> None:
    done = subprocess.run([programs / "promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_configuration_and_the_rules(programs):
    promtool(programs, "check", "config", PROMETHEUS / "prometheus.yml")
    promtool(programs, "check", "rules", PROMETHEUS / "alerts.yml")


def test_each_alert_fires_when_it_should_and_only_then(programs):
    promtool(programs, "test", "rules", PROMETHEUS / "alerts_test.yml")


def test_no_alert_is_without_its_test():
    cases = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    fired = {
        sample["labels"]
        for case in cases
        for expected in case["promql_expr_test"]
        for sample in expected["exp_samples"]
    }
    assert fired == {f'{{alertname="{rule["alert"]}"}}' for rule in RULES}


def test_each_alert_says_what_is_wrong_and_what_to_do():
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "description", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_the_dashboard_is_what_grafana_reads():
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("nunchi", "Nunchi")
    assert [(each["name"], each["type"], each["query"]) for each in DASHBOARD["templating"]["list"]] == [
        ("datasource", "datasource", "prometheus")
    ]
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert [target["refId"] for target in panel["targets"]] == [*"ABCDEF"[: len(panel["targets"])]]
    for file in (ROOT / "deploy" / "grafana" / "provisioning").rglob("*.yaml"):
        assert yaml.safe_load(file.read_text(encoding="utf-8"))["apiVersion"] == 1


@dataclass
class Prometheus:
    url: str

    def get(self, path: str, **parameters: object) -> object:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def query(self, expression: str) -> list[dict]:
        return self.get("query", query=expression)["result"]

    def firing(self) -> set[str]:
        return {each["labels"]["alertname"] for each in self.get("alerts")["alerts"] if each["state"] == "firing"}


@dataclass
class Watched:
    """A gateway and its Triton, with a candidate in shadow, and the Prometheus that scrapes both."""

    gateway: GatewayProcess
    triton: TritonProcess
    prometheus: Prometheus

    def ask(self, texts: int) -> None:
        with httpx.Client(base_url=self.gateway.url, timeout=30) as client:
            batch = [("좋다 영화", "지루 배우 는", "영화 " * 40)[row % 3] for row in range(texts)]
            assert client.post("/v1/predict/batch", json={"texts": batch}).status_code == 200
            assert client.post("/v1/predict", json={"text": "최고"}).status_code == 200
            assert client.post("/v1/predict", json={"text": ""}).status_code == 422


@contextmanager
def running_prometheus(programs: Path, folder: Path, targets: dict[str, int]) -> Iterator[Prometheus]:
    """Our configuration and rules, quicker: every second instead of every five, and nothing waits half a minute."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [f"127.0.0.1:{targets[job['job_name']]}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    rules = (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8")
    (folder / "alerts.yml").write_text(rules.replace("for: 30s", "for: 2s"), encoding="utf-8")
    (port,) = free_ports(1)
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                programs / "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: httpx.get(f"{prometheus.url}/-/ready").status_code == 200, 20, "Prometheus is ready")
        yield prometheus
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def watched(programs, tmp_path_factory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    repository = folder / "model_repository"
    for version in (1, 2):
        manifest = write_bundle(repository, version) / "manifest.json"
        write_json(manifest, json.loads(manifest.read_text(encoding="utf-8")) | {"reference": REFERENCE})
    set_serving(repository, 1)
    candidate = {"version": 2, "mode": "shadow", "share": 1.0, "since": "2026-11-22T12:00:00+00:00"}
    serving = json.loads((repository / "serving.json").read_text(encoding="utf-8"))
    write_json(repository / "serving.json", serving | {"candidate": candidate})
    with (
        running_triton(repository, folder / "var") as triton,
        running_gateway(repository, triton.grpc_port) as gateway,
        running_prometheus(
            programs, folder, {"nunchi-gateway": gateway.port, "nunchi-triton": triton.metrics_port}
        ) as prometheus,
    ):
        stack = Watched(gateway, triton, prometheus)
        wait_until(lambda: len(prometheus.query("nunchi_gateway_candidate_share")) == 1, 20, "the candidate is seen")
        for _ in range(6):  # over some scrapes, because a rate needs two
            stack.ask(MINIMUM_TEXTS // 3)
            time.sleep(1)
        wait_until(lambda: prometheus.query("nunchi_gateway_drift_psi"), 20, "drift is seen")
        wait_until(
            lambda: prometheus.query("rate(nunchi_gateway_shadow_texts_total[30s]) > 0"), 20, "the shadow is seen"
        )
        yield stack


def names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:nunchi|nv)_\w+|\bup\b", expression))


def assert_answered(prometheus: Prometheus, expression: str) -> None:
    """The query gives data; one about what rarely happens names a metric that is there all the same."""
    known = prometheus.get("metadata")
    for name in names(expression) & RARE:
        assert name in known or name.removesuffix("_total") in known, f"nothing scraped is called {name}"
    if not names(expression) & RARE:
        values = [float(each["value"][1]) for each in prometheus.query(expression)]
        assert any(math.isfinite(value) for value in values), f"no data for {expression}"


@pytest.mark.parametrize("expression", QUERIES)
def test_each_panel_shows_something(watched, expression):
    assert_answered(watched.prometheus, expression)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_asks_for_what_is_there(watched, rule):
    """Every selector of the rule, without its verdict: the comparisons are promtool's to test."""
    assert names(rule["expr"])
    for selector in re.findall(r"\b(?:nunchi_|nv_)\w+(?:\{[^}]*\})?|\bup\{[^}]*\}", rule["expr"]):
        harmless = re.sub(r'(,\s*)?status(=~|=)"(5\.\.|429)"', "", selector)
        assert_answered(watched.prometheus, harmless)


def test_a_healthy_stack_raises_no_alarm_but_drift(watched):
    assert watched.prometheus.firing() <= {"NunchiDrift"}
    assert all(float(each["value"][1]) == 1 for each in watched.prometheus.query('up{job=~"nunchi-.*"}'))


def test_the_alarm_is_raised_when_triton_is_gone(watched):
    """The last test of this stack: it does not come back."""
    watched.triton.stop()
    wait_until(lambda: "NunchiTritonDown" in watched.prometheus.firing(), 20, "the alert fires")
    (alert,) = [
        each for each in watched.prometheus.get("alerts")["alerts"] if each["labels"]["alertname"] == "NunchiTritonDown"
    ]
    assert alert["annotations"]["summary"] == f"Triton 127.0.0.1:{watched.triton.metrics_port} does not answer"
    assert "NunchiGatewayDown" not in watched.prometheus.firing()
