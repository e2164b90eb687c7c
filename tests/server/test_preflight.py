import re
import socket
import sys
from pathlib import Path

import pytest

from server import preflight
from server.errors import CannotStart
from server.settings import Settings
from server.triton import stub_of
from tests.triton_process import free_ports

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_this_machine_passes(repository, tmp_path):
    bundle, libpython = preflight.check_machine(Settings(model_repository=repository, var=tmp_path / "var"))
    assert bundle.version == 1
    assert libpython.name.startswith(f"libpython{MINOR}.so")


@pytest.mark.parametrize(
    ("system", "machine", "libc", "sentence"),
    [
        ("Darwin", "arm64", ("", ""), "this is Darwin arm64; use such a machine, or a virtual one"),
        ("Linux", "aarch64", ("glibc", "2.40"), "this is Linux aarch64"),
        (
            "Linux",
            "x86_64",
            ("glibc", "2.31"),
            "needs glibc 2.35 or newer (Debian 12, Ubuntu 22.04), this is glibc 2.31",
        ),
        ("Linux", "x86_64", ("", ""), "this is another libc; use such"),
    ],
)
def test_another_platform_is_told_what_is_needed(system, machine, libc, sentence):
    with pytest.raises(CannotStart, match=re.escape(sentence)):
        preflight.check_platform(system, machine, libc)


def test_a_newer_glibc_is_newer_although_its_digits_sort_lower():
    preflight.check_platform("Linux", "x86_64", ("glibc", "2.100"))


def test_a_path_the_shell_would_split_is_refused_with_its_variable(tmp_path):
    with pytest.raises(CannotStart, match=r"NUNCHI_VAR is /tmp/my state, and Triton cannot use a path with ' '; move"):
        preflight.check_paths(Settings(model_repository=tmp_path, var=Path("/tmp/my state")))
    with pytest.raises(CannotStart, match=r"NUNCHI_MODEL_REPOSITORY is .* with ';' '모'"):
        preflight.check_paths(Settings(model_repository=tmp_path / "모;", var=tmp_path))


def test_bash_and_the_python3_of_the_environment_are_needed(monkeypatch, tmp_path):
    with pytest.raises(CannotStart, match=r"python3 does not exist.*make setup"):
        preflight.check_programs(str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotStart, match=r"bash is not on PATH.*install bash"):
        preflight.check_programs(sys.executable)


def test_a_python_without_a_stub_is_told_which_ones_there_are():
    with pytest.raises(CannotStart, match=r"this is Python 3\.14, nvidia-pytriton has stubs for 3\.8, .*3\.13"):
        stub_of((3, 14))


def test_libpython_is_taken_from_the_interpreter_before_the_loader(tmp_path):
    own, system = tmp_path / "own", tmp_path / "system"
    for folder in (own, system):
        folder.mkdir()
        (folder / f"libpython{MINOR}.so.1.0").touch()
    listed = [system / "libpython3.7.so.1.0", system / f"libpython{MINOR}.so.1.0"]
    assert preflight.find_libpython([tmp_path, own], listed).parent == own
    assert preflight.find_libpython([tmp_path], listed) == listed[1]


def test_a_missing_libpython_names_the_package_and_another_minor_version_does_not_do(tmp_path):
    (tmp_path / "libpython3.7.so.1.0").touch()
    with pytest.raises(
        CannotStart, match=rf"needs libpython{MINOR}\.so\.1\.0.*apt install libpython{MINOR}.*--enable-shared"
    ):
        preflight.find_libpython([tmp_path], [tmp_path / "libpython3.7.so.1.0"])


def test_shared_memory_must_be_there_and_large_enough(monkeypatch, tmp_path):
    with pytest.raises(CannotStart, match=r"shm is missing or not writable.*mount it"):
        preflight.check_shared_memory(tmp_path / "shm")
    monkeypatch.setattr(preflight, "SHARED_MEMORY_BYTES", 1 << 60)
    with pytest.raises(CannotStart, match=r"MiB free, the server needs .*--shm-size"):
        preflight.check_shared_memory(tmp_path)


def test_a_port_in_use_is_named_with_its_holder_and_its_variable():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(
            CannotStart, match=rf"port {port} cannot be used \(address already in use by .*process \d+\)"
        ) as caught:
            preflight.check_ports({"NUNCHI_TRITON_GRPC_PORT": port})
    assert "set NUNCHI_TRITON_GRPC_PORT to another port" in str(caught.value)


def test_a_port_taken_on_all_addresses_is_taken_on_the_loopback_too():
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        with pytest.raises(CannotStart):
            preflight.check_ports({"NUNCHI_TRITON_HTTP_PORT": listener.getsockname()[1]})


def test_a_port_that_was_closed_a_moment_ago_is_free():
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)) as listener, socket.create_connection(("127.0.0.1", port)):
        listener.accept()[0].close()  # the server closes first: its side lingers
    preflight.check_ports({"NUNCHI_TRITON_HTTP_PORT": port})
