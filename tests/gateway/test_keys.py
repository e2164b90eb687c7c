"""Whose key it is: the file of keys, its rotation while the gateway runs, and what it refuses to start with."""

import logging
import os
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.errors import SettingRefused
from gateway.keys import NAME_OF_THE_VARIABLE, Keys
from tests.gateway.gateway_process import NotStarted, start_gateway, wait_until
from tests.gateway.served_app import served_app

ALICE, BOB, CAROL = "alices-key-0001", "bobs-key-00002", "carols-key-0003"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "keys", f"# who may ask\n\nalice: {ALICE}\n  bob the builder:  {BOB}  \n{CAROL}\n")


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    """As an operator should: a new file, renamed over the old one."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.chmod(mode)
    os.replace(new, path)
    return path


def test_every_key_has_the_name_that_stands_before_it(file):
    keys = Keys(SecretStr("the variable's"), file)
    assert keys.owner(f"Bearer {ALICE}") == "alice"
    assert keys.owner(f"Bearer {BOB}") == "bob the builder"
    assert keys.owner(f"Bearer {CAROL}") == "line 5"
    assert keys.owner("Bearer the variable's") == NAME_OF_THE_VARIABLE


@pytest.mark.parametrize(
    "authorization",
    [
        *(
            "",
            "Bearer",
            "Bearer ",
            ALICE,
            f"Basic {ALICE}",
            f"bearer{ALICE}",
            f"Bearer {ALICE} ",
            f"Bearer {ALICE[:-1]}",
        ),
        *("Bearer alice", "Bearer 눈치", "Bearer \udcff", f"Bearer # {ALICE}"),
    ],
)
def test_anything_else_is_nobodys_key(file, authorization):
    assert Keys(None, file).owner(authorization) is None


def test_without_keys_none_is_asked_for(file):
    assert not Keys(None, None).asked_for
    assert Keys(None, file).asked_for and Keys(SecretStr("x"), None).asked_for


def test_the_first_key_is_compared_with_all_the_others_too_and_none_by_its_text(file, monkeypatch):
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append({len(one), len(other)})
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    assert Keys(SecretStr("first-of-all"), file).owner("Bearer first-of-all") == NAME_OF_THE_VARIABLE
    assert compared == [{32}] * 4


@pytest.mark.parametrize(
    ("text", "mode", "complaint"),
    [
        ("", 0o600, "holds no key"),
        ("# only words\n\n", 0o600, "holds no key"),
        (f"alice: {ALICE}\nbob: short\n", 0o600, "line 2: .* key of 8 or more"),
        (f"alice: {ALICE}\nbob: two words here\n", 0o600, "line 2"),
        (f"alice: {ALICE}\n눈치열쇠눈치열쇠\n", 0o600, "line 2"),
        (f"alice: {ALICE}\n", 0o604, "mode 0604.* chmod 600"),
        (f"alice: {ALICE}\n", 0o602, "mode 0602"),
    ],
)
def test_a_file_that_will_not_do_is_refused_in_a_sentence_without_a_key(tmp_path, text, mode, complaint):
    path = write(tmp_path / "keys", text, mode)
    with pytest.raises(SettingRefused, match=f"NUNCHI_API_KEYS_FILE {path}.*{complaint}") as refusal:
        Keys(None, path)
    assert "\n" not in str(refusal.value) and ALICE not in str(refusal.value) and "two words" not in str(refusal.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(SettingRefused, match="No such file"):
        Keys(None, tmp_path / "nowhere")
    with pytest.raises(SettingRefused, match="Is a directory"):
        Keys(None, tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(SettingRefused, match="not UTF-8"):
        Keys(None, tmp_path / "binary")


def test_a_group_may_read_the_file(file):
    file.chmod(0o640)
    assert Keys(None, file).owner(f"Bearer {ALICE}") == "alice"


def test_keys_change_while_the_gateway_runs_and_a_broken_file_changes_nothing(
    shared_repository, shared_triton, file, caplog
):
    caplog.set_level(logging.INFO, "gateway.keys")

    def status(key: str) -> int:
        return app.client.get("/v1/model", headers={"authorization": f"Bearer {key}"}).status_code

    with served_app(shared_repository, shared_triton.grpc_port, api_keys_file=file) as app:
        assert (status(ALICE), status(BOB), status("a-new-key")) == (200, 200, 401)
        write(file, f"alice: {ALICE}\ndora: a-new-key\n")
        wait_until(lambda: status("a-new-key") == 200, 5, "the new key is taken")
        assert (status(ALICE), status(BOB)) == (200, 401)
        assert "alice, dora" in caplog.text
        write(file, "dora: short\n")
        wait_until(lambda: status(ALICE) == 200 and "keeping the 2 keys" in caplog.text, 5, "it is said")
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            assert status(ALICE) == 200
            time.sleep(0.1)
        assert caplog.text.count("keeping the 2 keys") == 1
        file.unlink()
        time.sleep(1.1)
        assert status("a-new-key") == 200
        write(file, f"erin: {CAROL}\n")
        wait_until(lambda: status(CAROL) == 200, 5, "the mended file is read")
        assert status(ALICE) == 401
    assert not any(key in caplog.text for key in (ALICE, BOB, CAROL, "a-new-key"))


def test_the_gateway_does_not_start_with_a_wrong_file(repository, tmp_path):
    path = write(tmp_path / "keys", "alice: short\n")
    gateway = start_gateway(repository, 1, NUNCHI_API_KEYS_FILE=str(path))
    with pytest.raises(NotStarted):
        gateway.wait_for_line("listening on")
    assert gateway.process.wait(20) == 2
    gateway.process.stdout.close()
    (sentence,) = [line for line in gateway.lines if line.startswith("error: ")]
    assert f"NUNCHI_API_KEYS_FILE {path}, line 1" in sentence
