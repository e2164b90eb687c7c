import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from server.settings import Settings
from server.triton import admin_key, command, environment, lay_out, wheel


@pytest.fixture
def layout(tmp_path):
    libpython = tmp_path / "libpython3.11.so.1.0"
    libpython.touch()
    return lay_out(tmp_path / "triton", libpython)


def test_the_private_folder_holds_the_two_backends_and_an_empty_working_directory(layout):
    files = {str(file.relative_to(layout.root)) for file in layout.root.rglob("*") if not file.is_dir()}
    assert files == {
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py",
        "backends/python/triton_python_backend_stub",
        "backends/onnxruntime/model.py",
        "libraries/libpython3.11.so.1.0",
    }
    assert os.access(layout.backends / "python" / "triton_python_backend_stub", os.X_OK)
    assert list(layout.working_directory.iterdir()) == []


def test_a_second_start_leaves_nothing_of_the_first_in_the_private_folder(layout):
    (layout.working_directory / "model").mkdir()  # would be imported in place of the backend
    again = lay_out(layout.root, layout.libraries / "libpython3.11.so.1.0")
    assert list(again.working_directory.iterdir()) == []


def test_the_environment_finds_this_python_and_lets_nothing_else_through(layout, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    variables = environment(layout)
    assert set(variables) == {"PATH", "LD_LIBRARY_PATH", "LC_ALL", "GLIBC_TUNABLES"}
    assert variables["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    libraries = [Path(folder) for folder in variables["LD_LIBRARY_PATH"].split(":")]
    assert libraries == [wheel().parent.parent / "nvidia_pytriton.libs", layout.libraries]
    assert list(libraries[0].glob("libtritonserver*"))


def test_the_command_line_is_fenced_in(layout, tmp_path):
    settings = Settings(model_repository=tmp_path, triton_http_port=1, triton_grpc_port=2, triton_metrics_port=3)
    line = command(settings, layout, "the-key", "nunchi_ab_")
    for expected in (
        "--model-control-mode=explicit",
        "--load-model=sentiment",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        "--http-restricted-api=shared-memory,model-repository,model-config,trace,logging:admin-key=the-key",
        "--grpc-restricted-protocol=shared-memory,model-repository,model-config,trace,logging:admin-key=the-key",
        "--disable-auto-complete-config",
        "--strict-readiness=false",
        "--metrics-config=summary_latencies=true",
        "--backend-config=python,shm-region-prefix-name=nunchi_ab_",
        f"--model-repository={tmp_path}",
        "--http-port=1",
        "--grpc-port=2",
        "--metrics-port=3",
    ):
        assert expected in line


def test_an_admin_key_of_ours_is_new_each_time_and_readable_by_the_owner_only(tmp_path):
    (tmp_path / "run").mkdir()
    settings = Settings(var=tmp_path)
    keys = {admin_key(settings), admin_key(settings)}
    file = tmp_path / "run" / "triton-admin-key"
    assert len(keys) == 2 and file.read_text().strip() in keys
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_an_admin_key_of_the_user_is_not_written_down(tmp_path):
    (tmp_path / "run").mkdir()
    admin_key(Settings(var=tmp_path))
    assert admin_key(Settings(var=tmp_path, triton_admin_key="k" * 16)) == "k" * 16
    assert not (tmp_path / "run" / "triton-admin-key").exists()


def test_what_the_process_of_a_model_allocates_lies_in_large_pages_where_the_kernel_has_them(layout):
    program = "weights = b'x' * (64 << 20); print(open('/proc/self/smaps_rollup').read())"
    variables = environment(layout) | {"LD_LIBRARY_PATH": ""}  # the fixture's library is an empty file
    ended = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True)
    (kibibytes,) = re.findall(r"AnonHugePages: +(\d+) kB", ended.stdout)
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    has_them = setting.exists() and "[never]" not in setting.read_text(encoding="ascii")
    assert (int(kibibytes) >= 32 << 10) == has_them


def test_the_running_server_sees_four_variables_and_listens_on_the_loopback_address_only(shared_triton):
    children = psutil.Process(shared_triton.process.pid).children(recursive=True)
    assert len(children) == 2
    triton, stub = children
    # glibc 2.36 cuts its tunables apart where they lie, so the second looks like a variable of its own.
    seen, seen_by_stub = (set(each.environ()) - {"glibc.malloc.arena_max"} for each in (triton, stub))
    assert seen == {"PATH", "LD_LIBRARY_PATH", "LC_ALL", "GLIBC_TUNABLES"}
    assert seen_by_stub <= {"PATH", "LD_LIBRARY_PATH", "LC_ALL", "GLIBC_TUNABLES", "PWD", "SHLVL", "_"}
    listening = {each.laddr for each in triton.net_connections() if each.status == psutil.CONN_LISTEN}
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert {address.port for address in listening} == {
        shared_triton.http_port,
        shared_triton.grpc_port,
        shared_triton.metrics_port,
    }
