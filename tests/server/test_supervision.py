"""What happens to a running server: crashes, stops, overload, promotion, all with the real Triton."""

import asyncio
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.bundles import END, PAD, START, VOCABULARY, set_serving, write_bundle, write_config
from tests.server.asking import ask, ask_all, tensors
from tests.server.odd_bundles import replace_model, slow_model
from tests.triton_process import running_triton, start_triton

LIKES = [START, VOCABULARY.index("좋다"), END]
RECOVERY_SECONDS = 10
HANG_SECONDS = 10  # the deadline a caller gives


def family(triton) -> dict[str, psutil.Process]:
    """tritonserver and the stub of each version, by name: 'triton', 'stub 1', …"""
    found = {}
    for process in psutil.Process(triton.process.pid).children(recursive=True):
        with suppress(psutil.Error):
            arguments = process.cmdline()
            if arguments and arguments[0].endswith("tritonserver"):
                found["triton"] = process
            elif arguments and arguments[0].endswith("_stub"):
                found[f"stub {Path(arguments[1]).parent.name}"] = process
    return found


def regions(triton) -> list[Path]:
    """Its /dev/shm regions, by the prefix on record while it runs."""
    prefix = json.loads((triton.var_dir / "run" / "triton.lock").read_text())["region_prefix"]
    return list(Path("/dev/shm").glob(f"{prefix}*"))


def gone(processes, ports) -> None:
    """Assert that none of the processes runs and none of the ports is taken."""
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert not alive
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))


class Traffic:
    """A caller who asks one question again and again, and remembers every answer."""

    def __init__(self, triton) -> None:
        self.triton = triton
        self.right: list[float] = []  # when
        self.wrong: list[np.ndarray] = []
        self.errors: list[str] = []
        self.longest = 0.0

    def __enter__(self):
        self.expected = ask(self.triton, [LIKES])
        self.enough = threading.Event()
        self.thread = threading.Thread(target=self.go_on)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.enough.set()
        self.thread.join()

    def go_on(self) -> None:
        while not self.enough.is_set():
            began = time.monotonic()
            try:
                answer = ask(self.triton, [LIKES], seconds=HANG_SECONDS)
            except InferenceServerException as error:
                self.errors.append(error.status())
            else:
                if np.allclose(answer, self.expected, atol=1e-4):
                    self.right.append(time.monotonic())
                else:
                    self.wrong.append(answer)
            self.longest = max(self.longest, time.monotonic() - began)

    def first_right_after(self, moment: float, patience: float) -> float:
        """Seconds from `moment` to the next right answer."""
        while time.monotonic() < moment + patience:
            later = [when for when in self.right if when > moment]
            if later:
                return later[0] - moment
            time.sleep(0.02)
        pytest.fail(f"no right answer within {patience} s: {self.triton.output}")


@pytest.mark.parametrize("victim", ["stub 1", "triton"])
def test_after_a_kill_under_traffic_answers_come_back_and_none_was_wrong_or_hung(repository, tmp_path, victim):
    with running_triton(repository, tmp_path / "var") as triton:
        before = regions(triton)
        with Traffic(triton) as traffic:
            traffic.first_right_after(time.monotonic(), HANG_SECONDS)
            family(triton)[victim].kill()
            killed = time.monotonic()
            triton.wait_for_line(" ready ", count=2, seconds=RECOVERY_SECONDS)
            traffic.first_right_after(max(killed, time.monotonic()), RECOVERY_SECONDS)
        assert time.monotonic() - killed < 2 * RECOVERY_SECONDS
        assert traffic.wrong == []
        assert set(traffic.errors) <= {"StatusCode.UNAVAILABLE", "StatusCode.INTERNAL"}
        assert traffic.longest < HANG_SECONDS
        assert not set(before) & set(regions(triton)), "the regions of the first life are still there"


def test_a_stub_that_hangs_is_replaced_although_it_lives(repository, tmp_path):
    with running_triton(repository, tmp_path / "var") as triton:
        family(triton)["stub 1"].suspend()
        line = triton.wait_for_line(" restart ", seconds=30)
        assert "no answer for" in line or "is not healthy" in line, "Triton notices it too, now and then first"
        triton.wait_for_line(" ready ", count=2)
        assert ask(triton, [LIKES]).argmax() == 1


def test_a_server_that_hangs_is_replaced(repository, tmp_path):
    with running_triton(repository, tmp_path / "var") as triton:
        family(triton)["triton"].suspend()
        triton.wait_for_line(" ready ", count=2)
        assert ask(triton, [LIKES]).argmax() == 1


def test_an_overloaded_server_is_left_in_peace(repository, tmp_path):
    """Requests of different lengths do not share a batch, so thirty of them are a queue of many seconds."""
    replace_model(repository, slow_model(0.6), check=False)
    with running_triton(repository, tmp_path / "var") as triton:
        requests = [([[START] * length], [[1] * length]) for length in range(2, 33)]
        answers = asyncio.run(ask_all(triton, requests, seconds=300))
        assert not [answer for answer in answers if isinstance(answer, Exception)]
        assert "overloaded" in triton.output, "the queue was too short for this test to show anything"
        assert " restart " not in triton.output


def test_a_stop_leaves_no_process_no_port_and_no_region(repository, tmp_path):
    with running_triton(repository, tmp_path / "var") as triton:
        processes, shared = list(family(triton).values()), regions(triton)
        assert len(processes) == 2 and shared
        assert triton.stop(15) == 0
        gone(processes, [triton.grpc_port, triton.http_port, triton.metrics_port])
        assert not [region for region in shared if region.exists()]


def test_a_request_in_flight_is_answered_before_the_stop(repository, tmp_path):
    replace_model(repository, slow_model(0.8), check=False)
    with running_triton(repository, tmp_path / "var") as triton, ThreadPoolExecutor() as pool:
        answer = pool.submit(ask, triton, [LIKES], seconds=30)
        time.sleep(0.3)  # it is being computed; a canary may stand before it
        assert triton.stop() == 0
        assert answer.result().argmax() == 1


def test_ctrl_c_stops_it_too_even_with_a_dead_stub(repository, tmp_path):
    """Triton itself would hang with a dead stub until its exit timeout, and leave its regions."""
    with running_triton(repository, tmp_path / "var") as triton:
        processes, shared = family(triton), regions(triton)
        processes["stub 1"].kill()
        triton.process.send_signal(signal.SIGINT)
        assert triton.process.wait(15) == 0
        gone(processes.values(), [triton.grpc_port, triton.http_port, triton.metrics_port])
        assert not [region for region in shared if region.exists()]


def test_when_the_supervisor_is_killed_triton_goes_too_and_a_new_start_is_clean(repository, tmp_path):
    with running_triton(repository, tmp_path / "var") as first:
        processes, shared = list(family(first).values()), regions(first)
        ports = (first.http_port, first.grpc_port, first.metrics_port)
        first.process.kill()
        first.process.wait()
        # At once, on the same ports: Triton has been told to stop, but takes its seconds for that.
        second = start_triton(repository, tmp_path / "var", ports=ports)
        try:
            second.wait_for_line(" ready ")
            gone(processes, [])
            assert not [region for region in shared if region.exists()]
            assert ask(second, [LIKES]).argmax() == 1
        finally:
            assert second.stop() == 0
            second.process.stdout.close()


def test_nothing_of_a_killed_supervisor_outlives_it(repository, tmp_path):
    with running_triton(repository, tmp_path / "var") as triton:
        processes = list(family(triton).values())
        triton.process.kill()
        gone(processes, [triton.grpc_port, triton.http_port, triton.metrics_port])


def test_what_two_killed_processes_left_in_shared_memory_is_cleared_by_the_next_start(repository, tmp_path):
    with running_triton(repository, tmp_path / "var") as triton:
        processes, shared = family(triton), regions(triton)
        triton.process.kill()
        processes["stub 1"].kill()  # before Triton: it would clear its region when it sees Triton gone
        processes["triton"].kill()
        gone(processes.values(), [])
        assert [region for region in shared if region.exists()], "nothing was left, so this test showed nothing"
    with running_triton(repository, tmp_path / "var"):
        assert not [region for region in shared if region.exists()]


def test_two_servers_live_side_by_side_and_one_does_not_clear_the_others_regions(repository, tmp_path, shared_triton):
    with running_triton(repository, tmp_path / "var") as triton:
        assert regions(triton)
        theirs = regions(shared_triton)
        family(triton)["stub 1"].kill()
        triton.wait_for_line(" ready ", count=2)
    assert regions(shared_triton) == theirs
    assert ask(shared_triton, [LIKES]).argmax() == 1


def load(triton) -> None:
    with InferenceServerClient(f"127.0.0.1:{triton.grpc_port}") as client:
        client.load_model("sentiment", headers={"triton-grpc-protocol-admin-key": triton.admin_key})


def test_a_promotion_is_followed_and_the_release_of_the_old_version_is_no_crash(repository, tmp_path):
    with running_triton(repository, tmp_path / "var") as triton:
        write_bundle(repository, 2)
        load(triton)
        set_serving(repository, 2, previous=1)
        triton.wait_for_line("serving version=2")
        released = family(triton)["stub 1"]
        # what a promotion does at the end of its soak
        (repository / "sentiment" / "1").rename(tmp_path / "1")
        write_config(repository)
        load(triton)
        psutil.wait_procs([released], timeout=15)
        assert set(family(triton)) == {"triton", "stub 2"}
        time.sleep(2.5)  # in which the supervisor looks at the stubs and asks the canary
        assert " restart " not in triton.output and "stub died" not in triton.output
        family(triton)["stub 2"].kill()
        assert "version 2 died" in triton.wait_for_line(" restart ")
        assert "version=2" in triton.wait_for_line(" ready ", count=2)


def test_the_death_of_a_version_nobody_is_sent_to_is_reported_and_stops_nobody(repository, tmp_path):
    write_bundle(repository, 2)
    with running_triton(repository, tmp_path / "var") as triton:
        family(triton)["stub 2"].kill()
        triton.wait_for_line("stub died version=2")
        assert ask(triton, [LIKES]).argmax() == 1
        assert " restart " not in triton.output


def test_a_candidate_that_cannot_be_loaded_stops_nobody(repository, tmp_path):
    with running_triton(repository, tmp_path / "var") as triton:
        write_bundle(repository, 2)
        replace_model(repository, b"not a model", version=2, check=False)
        with pytest.raises(InferenceServerException):
            load(triton)
        time.sleep(2.5)
        assert ask(triton, [LIKES]).argmax() == 1
        assert " restart " not in triton.output


def test_a_version_that_answers_wrong_is_taken_down_and_the_way_back_is_serving_json(repository, tmp_path):
    """Its backend has found it right when it was loaded, and refuses it as long as it is wrong."""
    write_bundle(repository, 2)
    file = repository / "sentiment" / "2" / "manifest.json"
    sound = file.read_text(encoding="utf-8")
    with running_triton(repository, tmp_path / "var") as triton:
        manifest = json.loads(sound)
        for row in manifest["golden"]:
            row["probabilities"].reverse()
        file.write_text(json.dumps(manifest), encoding="utf-8")
        set_serving(repository, 2, previous=1)
        assert "version 2 is off by" in triton.wait_for_line(" restart ")
        file.write_text(sound, encoding="utf-8")
        set_serving(repository, 1, previous=2)
        assert "version=1" in triton.wait_for_line(" ready ", count=2)


def test_a_version_that_was_never_loaded_and_a_broken_serving_json_are_reported_only(repository, tmp_path):
    with running_triton(repository, tmp_path / "var") as triton:
        write_bundle(repository, 2)
        set_serving(repository, 2, previous=1)
        triton.wait_for_line("canary unanswered, no restart: not loaded: .*version 2")
        (repository / "serving.json").write_text("{")
        triton.wait_for_line("serving.json is not followed: .*is not JSON")
        set_serving(repository, 1)
        triton.wait_for_line("serving version=1")
        assert " restart " not in triton.output


def test_a_padded_request_of_full_width_is_what_the_gateway_sends(shared_triton):
    width = 32
    ids = [LIKES + [PAD] * (width - len(LIKES))]
    assert ask(shared_triton, ids, [[1] * 3 + [0] * 29]).argmax() == 1
    assert tensors(ids, ids)[0].shape() == [1, width]
