"""docker-compose.yml and deploy/docker/, read by Docker Compose and hadolint themselves and held against the rooms.

No engine is here, so no container runs: test_container_stack.py starts the same commands without one.
"""

import ast
import importlib.util
import itertools
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import dags.settings
import export.settings
import gateway.settings
import loadtest.settings
import server.settings
import training.settings
import ui.settings
from server.triton import RESTRICTED
from server.triton import command as embedded_command
from tests.deploy.compose import FILE, PAGES, PROFILES, ROOT, Compose

DOCKER = ROOT / "deploy" / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
HADOLINT = Path(sys.executable).parent / "hadolint"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ONE_SHOT = {"models", "train", "trt-build", "loadtest"}
ROOMS_OF = {  # whose settings the environment of each service is for
    "gateway": [gateway.settings],
    "ui": [ui.settings],
    "triton": [server.settings],
    "triton-gpu": [server.settings],
    "train": [training.settings, export.settings],
    "airflow": [dags.settings, training.settings, export.settings, loadtest.settings],
    "loadtest": [loadtest.settings],
}


@pytest.fixture(scope="module")
def document(compose) -> dict:
    return compose.document(*PROFILES)


@pytest.fixture(scope="module")
def services(document) -> dict[str, dict]:
    return document["services"]


def words(service: dict) -> list[str]:
    """Entry point and command, as the container gets them."""
    return [word.replace("$$", "$") for word in (service["entrypoint"] or []) + (service["command"] or [])]


def names_on(services: dict[str, dict], network: str) -> dict[str, dict]:
    """The services of a network by each name they have there."""
    found = {}
    for name, service in services.items():
        if network in service.get("networks", {}):
            options = service["networks"][network] or {}
            found |= dict.fromkeys([name, *options.get("aliases", [])], service)
    return found


def ports_of(service: dict) -> set[int]:
    return {int(port) for port in service.get("expose", [])} | {port["target"] for port in service.get("ports", [])}


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_accepts_the_file_with_each_profile(compose, profile):
    assert compose.document(profile)["services"]


def test_compose_refuses_what_its_specification_does_not_know(compose, tmp_path):
    text = FILE.read_text(encoding="utf-8")
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(text.replace("cap_drop: [ALL]", "cap_dropp: [ALL]"), encoding="utf-8")
    assert wrong.read_text(encoding="utf-8") != text
    done = compose.run("config", "--quiet", files=(wrong,))
    assert done.returncode != 0
    assert "cap_dropp" in done.stderr


def test_without_a_secret_nothing_starts_and_the_remedy_is_named(compose):
    secrets = [name for name in compose.secrets if name != "COMPOSE_PROFILES"]
    assert secrets
    for name in secrets:
        done = compose.run("config", "--quiet", **{name: None})
        assert done.returncode != 0, name
        assert f"{name} is missing a value: is not set; run deploy/docker/secrets.sh" in done.stderr


def test_secrets_are_made_once_apart_from_each_other_and_for_their_owner_only(tmp_path):
    compose = Compose(tmp_path)
    (tmp_path / ".env").write_text("NUNCHI_API_KEY=mine", encoding="utf-8")  # without an end of line
    assert "NUNCHI_API_KEY" not in compose.make_secrets()
    made = compose.secrets
    assert made["NUNCHI_API_KEY"] == "mine"
    assert len(set(made.values())) == len(made)
    assert compose.make_secrets() == ""
    assert compose.secrets == made

    other = tmp_path / "new"
    other.mkdir()
    Compose(other).make_secrets()
    assert stat.S_IMODE((other / ".env").stat().st_mode) == 0o600
    assert not set(Compose(other).secrets.values()) & (set(made.values()) - {"cpu"})


def test_only_gateway_and_page_are_published_and_to_loopback(services):
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"gateway", "ui"}
    assert {port["host_ip"] for ports in published.values() for port in ports} == {"127.0.0.1"}


def test_the_pages_of_the_other_services_can_be_published_to_loopback_too(compose):
    services = compose.document(files=(FILE, PAGES))["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"gateway", "ui", "mlflow", "airflow", "prometheus", "grafana"}
    assert {port["host_ip"] for ports in published.values() for port in ports} == {"127.0.0.1"}
    for name in set(published) - {"gateway", "ui"}:
        assert {port["target"] for port in published[name]} <= {int(port) for port in services[name]["expose"]}


def test_no_way_leads_out_of_the_network_that_all_share(document):
    assert document["networks"]["inside"]["internal"] is True
    front = document["networks"]["front"]
    assert front["driver_opts"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}
    for name, service in document["services"].items():
        networks = set(service.get("networks", {}))
        assert ("front" in networks) == (name in ("gateway", "ui")), name
        assert ("outside" in networks) == (name in ("train", "airflow")), name
        assert networks or service["network_mode"] in ("none", "service:gateway"), name


def test_every_container_is_fenced_in(services):
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r"[1-9]\d*:\d+", service["user"]), name
        assert not service.keys() & {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode"}, name
        limits = service["deploy"]["resources"]["limits"]
        assert int(limits["memory"]) > 0, name
        assert limits["pids"] > 0, name
        for volume in service.get("volumes", []):
            assert "docker.sock" not in volume["source"], name
            if volume["type"] == "bind":
                assert volume["read_only"] is True, name
                assert Path(volume["source"]).exists(), volume["source"]
                assert Path(volume["source"]).is_relative_to(ROOT), name


def test_the_model_repository_is_written_by_those_who_release_and_by_nobody_else(services):
    may_write = {
        name
        for name, service in services.items()
        for volume in service.get("volumes", [])
        if volume["source"] == "models" and not volume.get("read_only")
    }
    # trt-build adds plans to what train has exported for a GPU
    assert may_write == {"models", "train", "airflow", "trt-build"}


def test_plans_are_built_by_the_image_that_serves_them_on_a_gpu(services):
    build, serve = services["trt-build"], services["triton-gpu"]
    assert build["image"] == serve["image"]
    assert build["deploy"]["resources"]["reservations"] == serve["deploy"]["resources"]["reservations"]
    assert words(build) == ["/bin/bash", "/models/gpu/build.sh"]


def test_no_secret_stands_in_a_command(compose, services):
    secrets = set(compose.secrets.values()) - {"cpu"}
    for name, service in services.items():
        assert not [word for word in words(service) for secret in secrets if secret in word], name


def test_images_are_pinned(services):
    for name, service in services.items():
        repository, _, tag = service["image"].rpartition(":")
        assert repository and re.search(r"\d+\.\d+", tag), name
        if repository.startswith("nunchi/"):
            assert tag == PROJECT["project"]["version"], name
            assert Path(service["build"]["context"], service["build"]["dockerfile"]).is_file(), name
        else:
            assert "build" not in service, name


def test_everything_waits_until_what_it_needs_is_healthy(services):
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            if needed in ONE_SHOT:
                assert how["condition"] == "service_completed_successfully", (name, needed)
                assert services[needed]["restart"] == "no"
            else:
                assert how["condition"] == "service_healthy", (name, needed)
            if not how["required"]:  # one of the two is there, whichever the profile is
                assert needed in ("triton", "triton-gpu")
    assert {name for name, service in services.items() if "healthcheck" not in service} == ONE_SHOT & set(services)


def test_a_health_check_asks_a_port_of_its_own_service(services):
    for name, service in services.items():
        test = " ".join(service.get("healthcheck", {}).get("test", []))
        for port in re.findall(r"http://127\.0\.0\.1:(\d+)", test):
            assert int(port) in ports_of(service), name
        if test and name != "postgres":
            assert "http://127.0.0.1:" in test, name


def test_one_of_the_two_tritons_answers_to_the_name(compose):
    for profile, there in (("cpu", "triton"), ("gpu", "triton-gpu")):
        services = compose.document(profile)["services"] if profile == "cpu" else gpu_alone(compose)
        assert [name for name in services if name.startswith("triton")] == [there]
        assert names_on(services, "inside")["triton"] is services[there]


def gpu_alone(compose: Compose) -> dict[str, dict]:
    """As COMPOSE_PROFILES=gpu in .env would have it."""
    lines = (compose.folder / ".env").read_text(encoding="utf-8")
    other = Compose(compose.folder / "gpu")
    other.folder.mkdir(exist_ok=True)
    (other.folder / ".env").write_text(lines.replace("COMPOSE_PROFILES=cpu", "COMPOSE_PROFILES=gpu"), encoding="utf-8")
    return other.document()["services"]


def addresses(text: str) -> set[tuple[str, int]]:
    """Whatever looks like `host:port` in it."""
    return {(host, int(port)) for host, port in re.findall(r"(?<![\w.-])([a-z][a-z0-9-]*):(\d{4,5})\b", text)}


def test_every_address_is_one_of_a_service_that_is_in_reach(services):
    seen = set()
    for name, service in services.items():
        spoken = [*words(service), *map(str, service.get("environment", {}).values())]
        for host, port in {pair for word in spoken for pair in addresses(word)}:
            if host == "localhost":
                continue
            reached = {}
            for network in service["networks"]:
                reached |= names_on(services, network)
            assert host in reached, (name, host)
            assert port in ports_of(reached[host]), (name, host, port)
            seen.add(host)
    assert seen >= {"gateway", "mlflow", "postgres", "store", "prometheus"}


def test_prometheus_scrapes_the_services_and_otherwise_does_as_on_the_machine_itself(services):
    inside = yaml.safe_load((DOCKER / "prometheus.yml").read_text(encoding="utf-8"))
    outside = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    known = names_on(services, "inside")
    ports = {
        "gateway": gateway.settings.Settings().gateway_port,
        "triton": server.settings.Settings().triton_metrics_port,
    }
    for job in inside["scrape_configs"]:
        (target,) = job["static_configs"][0]["targets"]
        host, _, port = target.partition(":")
        assert int(port) in ports_of(known[host])
        assert int(port) == ports[host]
    for config in (inside, outside):
        for job in config["scrape_configs"]:
            del job["static_configs"]
    assert inside == outside
    mounted = {Path(each["target"]).name: each["source"] for each in services["prometheus"]["volumes"]}
    assert all(rule in mounted for rule in inside["rule_files"])


def test_promtool_accepts_the_configuration_of_the_container(tmp_path):
    folder = subprocess.run([ROOT / "deploy/prometheus/install.sh"], capture_output=True, text=True, check=True).stdout
    for file in (DOCKER / "prometheus.yml", ROOT / "deploy" / "prometheus" / "alerts.yml"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    checked = [Path(folder.strip()) / "promtool", "check", "config", tmp_path / "prometheus.yml"]
    assert subprocess.run(checked, capture_output=True, text=True).returncode == 0


@pytest.mark.parametrize("name", ROOMS_OF)
def test_the_rooms_take_the_environment_they_get(services, monkeypatch, name):
    environment = {variable: value for variable, value in services[name]["environment"].items() if value is not None}
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    known = set()
    for room in ROOMS_OF[name]:
        settings = room.Settings()
        known |= {f"NUNCHI_{field.upper()}" for field in type(settings).model_fields}
        for field in type(settings).model_fields:
            if f"NUNCHI_{field.upper()}" in environment:
                value = getattr(settings, field)
                shown = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
                assert shown == environment[f"NUNCHI_{field.upper()}"]
    assert {variable for variable in environment if variable.startswith("NUNCHI_")} <= known


def test_in_its_container_the_gateway_insists_on_a_key(services, monkeypatch):
    environment = dict(services["gateway"]["environment"])
    del environment["NUNCHI_API_KEY"]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(gateway.settings.SettingRefused, match=r"NUNCHI_HOST is 0\.0\.0\.0"):
        gateway.settings.read_settings()


def test_ports_are_those_the_rooms_listen_on(services):
    assert {port["target"] for port in services["gateway"]["ports"]} == {gateway.settings.Settings().gateway_port}
    assert {port["target"] for port in services["ui"]["ports"]} == {ui.settings.Settings().ui_port}
    assert ports_of(services["triton"]) == set(server.settings.Settings().ports().values())
    assert ports_of(services["mlflow"]) == {int(services["mlflow"]["environment"]["MLFLOW_PORT"])}


def test_triton_is_told_what_the_embedded_one_is_told(services, tmp_path):
    """All but what is about the embedded server's place: its folders, its loopback address, its Python backend."""
    settings = server.settings.Settings(triton_admin_key="k" * 16)
    layout = type("Layout", (), {"backends": tmp_path})()
    embedded = embedded_command(settings, layout, "KEY", "prefix")[1:]
    local = ("--backend", "--cache", "--http-address", "--grpc-address", "--metrics-address", "--allow-gpu-metrics")
    local += ("--http-port", "--grpc-port", "--metrics-port", "--pinned", "--model-repository")
    wanted = {word.replace("KEY", "$NUNCHI_TRITON_ADMIN_KEY") for word in embedded if not word.startswith(local)}
    for name in ("triton", "triton-gpu"):
        shell, option, script = words(services[name])
        assert (shell, option) == ("/bin/bash", "-euc")
        assignment, _, call = script.replace("\\\n", "").partition("\n")
        (restricted,) = shlex.split(assignment)
        assert restricted == f"restricted={RESTRICTED}:admin-key=$NUNCHI_TRITON_ADMIN_KEY"
        given = shlex.split(call.replace("$restricted", restricted.removeprefix("restricted=")))
        assert given[:2] == ["exec", "tritonserver"]
        repository = "--model-repository=/models/model_repository"
        assert set(given[2:]) == wanted | {repository}


def test_every_module_and_file_of_a_command_is_there(services):
    modules = set()
    for service in services.values():
        for word, after in itertools.pairwise([*words(service), ""]):
            if word == "-m":
                modules.add(after)
            if word.endswith((".yaml", ".tsv")) and not word.startswith("-"):
                assert (ROOT / word).is_file(), word
    assert modules == {"training.tune", "loadtest.traffic"}
    assert all(map(importlib.util.find_spec, modules))


def test_python_in_health_checks_is_python(services):
    for service in services.values():
        test = service.get("healthcheck", {}).get("test", [])
        if "python" in test:
            ast.parse(test[-1])


def test_the_example_of_the_settings_lists_the_secrets(compose):
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    for name in compose.secrets:
        assert re.search(rf"^# {name}=", example, re.MULTILINE), name


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_hadolint_has_nothing_to_say(file):
    done = subprocess.run([HADOLINT, file], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_have_something_to_say(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN apt-get install curl\n", encoding="utf-8")
    assert "DL3006" in subprocess.run([HADOLINT, bad], capture_output=True, text=True).stdout


def instructions(file: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", file.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_an_image_is_made_in_two_stages_of_what_is_there_and_runs_as_nobody(file, services):
    found = instructions(file)
    stages = [argument for word, argument in found if word == "FROM"]
    python = PROJECT["project"]["requires-python"].removeprefix("==").removesuffix("*")
    assert len(stages) == 2
    assert stages[0] == f"{stages[1]} AS packages"
    assert stages[1].startswith(f"python:{python}") and stages[1].endswith("-slim-bookworm")
    (uv,) = re.findall(r"uv==(\S+)", file.read_text(encoding="utf-8"))
    assert f"uv_version={uv}\n" in (ROOT / "deploy" / "setup.sh").read_text(encoding="utf-8")
    installs = " ".join(argument for word, argument in found if word == "RUN" and "--constraint" in argument)
    assert "--constraint requirements.lock" in installs
    groups = re.findall(r"--group (\S+)", installs)
    assert groups and set(groups) <= set(PROJECT["dependency-groups"])

    last = found[max(place for place, (word, _) in enumerate(found) if word == "FROM") :]
    assert not any("pip" in argument for word, argument in last if word == "RUN")
    assert [argument for word, argument in last if word == "USER"] == ["1000:1000"]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for argument in (argument for word, argument in found if word == "COPY" and not argument.startswith("--from")):
        for source in argument.split()[:-1]:
            assert (ROOT / source).exists(), source
            above = [Path(source), *Path(source).parents]
            assert any(path.match(line[1:]) for path in above for line in ignored if line.startswith("!")), source

    used = [each for each in services.values() if each.get("build", {}).get("dockerfile", "").endswith(file.name)]
    assert used
    command = ast.literal_eval(next(argument for word, argument in last if word == "CMD"))
    if "-m" in command:
        assert importlib.util.find_spec(command[command.index("-m") + 1])
    for word, argument in last:
        if word == "EXPOSE":
            assert int(argument) in set().union(*map(ports_of, used))


def test_nothing_but_code_and_the_shipped_model_enters_a_build():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    let_in = {line[1:] for line in lines if line.startswith("!")}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for path in let_in:
        assert any(Path(each).match(path) or each.startswith(f"{path}/") for each in tracked), path
    assert not {path for path in let_in if path.startswith((".env", "var", ".git"))}
