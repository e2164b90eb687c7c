"""deploy/k8s: rendered by kubectl itself, held against Kubernetes' schemas, the custom resources' fields and the rooms.

No cluster is here, so nothing of it was applied.
"""

import copy
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

import gateway.settings
import training.settings
from gateway.cluster import environment
from tests.deploy import schemas
from tests.deploy.compose import ROOT, Compose
from tests.deploy.custom_resources import SCHEMAS
from tests.deploy.test_packages import LOCK

K8S = ROOT / "deploy" / "k8s"
KUBECTL = Path(sys.executable).parent / "kubectl"
OVERLAYS = ["cpu", "gpu"]
AGE = {"--grpc-max-connection-age=60000", "--grpc-max-connection-age-grace=20000"}


def render(overlay: str) -> list[dict]:
    done = subprocess.run([KUBECTL, "kustomize", K8S / "overlays" / overlay], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request) -> dict[tuple[str, str], dict]:
    return {(each["kind"], each["metadata"]["name"]): each for each in render(request.param)}


@pytest.fixture(scope="module")
def cpu() -> dict[tuple[str, str], dict]:
    return {(each["kind"], each["metadata"]["name"]): each for each in render("cpu")}


def validate(manifest: dict) -> None:
    kind = manifest["apiVersion"], manifest["kind"]
    if kind in SCHEMAS:
        schemas.validate(manifest, *SCHEMAS[kind])
    else:
        kubernetes_validate.validate(manifest, schemas.KUBERNETES, strict=True)


def templates(value: object) -> Iterator[dict]:
    """Every pod template in it."""
    if isinstance(value, dict):
        if isinstance(value.get("spec"), dict) and "containers" in value["spec"]:
            yield value
        else:
            yield from templates([*value.values()])
    elif isinstance(value, list):
        for each in value:
            yield from templates(each)


def pods(manifests: dict[tuple[str, str], dict]) -> list[dict]:
    return [template for manifest in manifests.values() for template in templates(manifest.get("spec"))]


def containers(manifests: dict[tuple[str, str], dict]) -> list[dict]:
    return [container for pod in pods(manifests) for container in pod["spec"]["containers"]]


def labelled(manifests: dict[tuple[str, str], dict], wanted: dict[str, str]) -> list[dict]:
    return [pod for pod in pods(manifests) if wanted.items() <= pod.get("metadata", {}).get("labels", {}).items()]


def variables(container: dict) -> dict[str, str]:
    return {each["name"]: each.get("value", "from a secret") for each in container["env"]}


def test_kubernetes_and_the_operators_know_every_field(manifests):
    for manifest in manifests.values():
        validate(manifest)


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("Deployment", "triton", ["spec", "template", "spec"]),
        ("HorizontalPodAutoscaler", "triton", ["spec"]),
        ("RayService", "gateway", ["spec", "rayClusterConfig"]),
        ("RayService", "gateway", ["spec", "rayClusterConfig", "headGroupSpec", "template", "spec"]),
        ("RayJob", "tuning", ["spec", "rayClusterSpec", "workerGroupSpecs", 0]),
        ("PodMonitor", "gateway", ["spec", "podMetricsEndpoints", 0]),
    ],
)
def test_a_field_that_there_is_not_would_be_found(cpu, kind, name, path):
    manifest = copy.deepcopy(cpu[kind, name])
    place = manifest
    for step in path:
        place = place[step]
    place["replikas"] = 2
    with pytest.raises(jsonschema.ValidationError, match="replikas"):
        validate(manifest)


def test_serve_accepts_the_configuration_of_the_gateway(cpu):
    config = yaml.safe_load(cpu["RayService", "gateway"]["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    module, _, name = application["import_path"].partition(":")
    assert (module, name) == ("gateway.cluster", "application")
    code = "import json, sys; from ray.serve.schema import ServeDeploySchema as S; config = json.load(sys.stdin)\n"
    code += "S(**config); sys.exit(str(set(config) - set(S.model_fields)) if set(config) - set(S.model_fields) else 0)"
    for there, status in (
        (config, 0),
        (config | {"proxy_locations": "EveryNode"}, 1),
        (config | {"applications": 1}, 1),
    ):
        done = subprocess.run([sys.executable, "-c", code], input=json.dumps(there), text=True, capture_output=True)
        assert done.returncode == status, done.stderr


def test_every_node_of_the_gateways_cluster_has_what_it_needs(cpu, monkeypatch):
    cluster = cpu["RayService", "gateway"]["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == LOCK["ray"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    wanted = environment() | {"PYTHONPATH": "/srv/nunchi"}
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        given = variables(container)
        assert {name: value for name, value in given.items() if not name.startswith("NUNCHI_")} == wanted
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        settings = gateway.settings.read_settings()
        assert settings.asks_for_a_key
        assert settings.triton_address == "triton:8001"
        assert str(settings.repository) == "/models/model_repository"
        known = {f"NUNCHI_{name.upper()}" for name in type(settings).model_fields}
        assert {name for name in given if name.startswith("NUNCHI_")} <= known
    (workers,) = cluster["workerGroupSpecs"]
    # A pod has one core, as Ray counts, and a replica takes one, so there are as many pods as replicas at most.
    assert workers["rayStartParams"]["num-cpus"] == "1"
    assert (workers["minReplicas"], workers["maxReplicas"]) == (settings.replicas, settings.max_replicas)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_search_is_the_projects_own(manifests, monkeypatch):
    job = manifests["RayJob", "tuning"]["spec"]
    python, option, module, flag, config = shlex.split(job["entrypoint"])
    assert (python, option, flag) == ("python", "-m", "--config")
    assert importlib.util.find_spec(module)
    assert (ROOT / config).is_file()
    assert job["rayClusterSpec"]["rayVersion"] == LOCK["ray"]
    (container,) = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    for name, value in variables(container).items():
        monkeypatch.setenv(name, value)
    assert training.settings.read_settings().tracking_uri == "http://mlflow:5050"


def test_triton_and_the_first_copy_are_told_what_compose_tells_them(cpu, tmp_path):
    compose = Compose(tmp_path)
    compose.make_secrets()
    services = compose.document("cpu")["services"]
    (triton,) = [each for each in containers(cpu) if each["name"] == "triton"]
    told = services["triton"]
    assert triton["image"] == told["image"]
    assert triton["command"] == told["entrypoint"]
    mine, others = (
        set(shlex.split(words[0].replace("\\\n", "").replace("$$", "$"))) for words in (triton["args"], told["command"])
    )
    assert mine - others == AGE
    assert others <= mine
    (models,) = [each for each in containers(cpu) if each["name"] == "models"]
    assert [*models["command"], *models["args"]] == services["models"]["command"]


def test_every_container_is_pinned_fenced_in_and_measured(manifests):
    found = containers(manifests)
    assert len(found) == 7
    for container in found:
        assert re.search(r":\d+\.\d+", container["image"]), container["name"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
    for pod in pods(manifests):
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        there = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} == there
    serving = [each for each in containers(manifests) if each["name"] in ("triton", "ray-head", "ray-worker")]
    for container in serving:
        (models,) = [mount for mount in container["volumeMounts"] if mount["name"] == "models"]
        assert models["readOnly"] is True


def test_whoever_selects_pods_selects_some(manifests):
    selectors = [
        selector["matchLabels"]
        for (kind, _), manifest in manifests.items()
        if kind in ("Deployment", "PodDisruptionBudget", "ServiceMonitor", "PodMonitor")
        for selector in [manifest["spec"]["selector"]]
    ]
    selectors += [manifests["Service", "triton"]["spec"]["selector"]]
    for selector in selectors:
        assert labelled(manifests, selector), selector


def test_only_the_gateways_reach_triton(manifests):
    policies = {name: manifest["spec"] for (kind, name), manifest in manifests.items() if kind == "NetworkPolicy"}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    (asks, scrapes) = policies["triton"]["ingress"]
    triton = policies["triton"]["podSelector"]["matchLabels"]
    assert {pod["spec"]["containers"][0]["name"] for pod in labelled(manifests, triton)} == {"triton"}
    (asker,) = asks["from"]
    assert {each["name"] for pod in labelled(manifests, asker["podSelector"]["matchLabels"]) for each in
            pod["spec"]["containers"]} == {"ray-head", "ray-worker"}  # fmt: skip
    assert asks["ports"] == [{"port": "grpc"}]
    assert scrapes["ports"] == [{"port": "metrics"}]
    for name, policy in policies.items():
        chosen = labelled(manifests, policy["podSelector"].get("matchLabels", {}))
        named = {port["name"] for pod in chosen for each in pod["spec"]["containers"] for port in each.get("ports", [])}
        ports = {port["port"] for rule in policy.get("ingress", []) for port in rule.get("ports", [])}
        assert {port for port in ports if isinstance(port, str)} <= named, name


def test_prometheus_scrapes_ports_that_there_are_under_the_names_of_the_alerts(manifests):
    known = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    jobs = set()
    for kind, field in (("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints")):
        for (found, _), manifest in manifests.items():
            if found == kind:
                (endpoint,) = manifest["spec"][field]
                chosen = labelled(manifests, manifest["spec"]["selector"]["matchLabels"])
                assert {port["name"] for port in chosen[0]["spec"]["containers"][0]["ports"]} >= {endpoint["port"]}
                jobs |= {each["replacement"] for each in endpoint["relabelings"]}
    assert jobs == {each["job_name"] for each in known}
    (replica,) = [port for each in containers(manifests) for port in each.get("ports", []) if port["name"] == "replica"]
    assert replica["containerPort"] == 30000  # Serve's first for replicas, unless it is told otherwise
    assert not [name for name in environment() if "INGRESS_MIN_HTTP_PORT" in name]


def test_triton_is_scaled_by_what_the_adapter_makes_of_its_counters(manifests, tmp_path):
    (metric,) = manifests["HorizontalPodAutoscaler", "triton"]["spec"]["metrics"]
    assert manifests["Deployment", "triton"]["spec"].get("replicas") is None
    (rule,) = yaml.safe_load((K8S / "prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"]["custom"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="nunchi"')
    waits, idle = ('{namespace="nunchi", pod="waits", version="3"}', '{namespace="nunchi", pod="idle", version="3"}')
    cases = {
        "rule_files": [],
        "evaluation_interval": "5s",
        "tests": [
            {
                "interval": "5s",
                "input_series": [
                    # 50 requests in 5 s that have waited 20 ms each
                    {"series": f"nv_inference_queue_duration_us{waits}", "values": "0+1000000x60"},
                    {"series": f"nv_inference_request_success{waits}", "values": "0+50x60"},
                    {"series": f"nv_inference_queue_duration_us{idle}", "values": "7+0x60"},
                    {"series": f"nv_inference_request_success{idle}", "values": "7+0x60"},
                ],
                "promql_expr_test": [
                    {
                        "expr": query,
                        "eval_time": "4m",
                        "exp_samples": [
                            {"labels": '{pod="waits"}', "value": 20},
                            {"labels": '{pod="idle"}', "value": 0},
                        ],
                    }
                ],
            }
        ],
    }
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(cases), encoding="utf-8")
    folder = subprocess.run([ROOT / "deploy/prometheus/install.sh"], capture_output=True, text=True, check=True).stdout
    command = [Path(folder.strip()) / "promtool", "test", "rules", tmp_path / "cases.yml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_overlay_gpu_asks_for_gpus():
    for overlay, wanted in (("cpu", set()), ("gpu", {"triton", "ray"})):
        found = {(each["kind"], each["metadata"]["name"]): each for each in render(overlay)}
        asking = {each["name"] for each in containers(found) if "nvidia.com/gpu" in each["resources"]["limits"]}
        assert asking == wanted
