"""The bench once, small, with every generator; what it makes of its figures is tested on documents of our own."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from loadtest import generators, measure, roofline
from loadtest.bench import complaints
from loadtest.claims import claims
from loadtest.doors import HttpDoor
from loadtest.report import write_html
from loadtest.texts import NoTexts, read_texts
from tests.bundles import write_bundle
from tests.stack_process import ROOT


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """`python -m loadtest.bench` over a tiny model, with a limit that no gateway keeps."""
    folder = tmp_path_factory.mktemp("bench")
    write_bundle(folder / "model_repository")
    command = [sys.executable, "-m", "loadtest.bench", "--output", folder / "out", "--rounds", "2", "--seconds", "0.5"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUNCHI_")}
    environment = inherited | {"NUNCHI_MODEL_REPOSITORY": str(folder / "model_repository")}
    command += ["--levels", "1,3", "--max-failures", "1", "--max-p95", "0.001"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (folder / "out" / "bench.json").exists(), done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    done.folder = folder / "out"
    return done


@pytest.fixture(scope="module")
def document(done):
    return json.loads((done.folder / "bench.json").read_text(encoding="utf-8"))


def test_every_door_was_asked_at_every_level_in_every_round(document):
    rows = {(row["door"], row["callers"]): row for row in document["rows"]}
    single = {(door, callers) for door in ("gateway", "Triton, gRPC") for callers in (1, 3)}
    assert set(rows) == single | {("gateway, 64 texts a request", 2)}
    for row in rows.values():
        assert row["requests"] > 0
        assert len(row["turns"]) == 2
    assert set(rows["gateway", 1]["split"]) == {"tokenization", "queue", "inference", "total"}
    assert sum(document["batch_sizes"]["1"].values()) > 0  # Triton counted what came through the gateway
    assert document["half"]["rate"] > 0
    assert document["roofline"]["giga_operations"] > 0


def test_wrk_and_perf_analyzer_measured_it_too(document):
    runs = [(run["generator"], run["door"], run["callers"]) for run in document["generators"]]
    triton = [("perf_analyzer", "Triton, gRPC", callers) for callers in (1, 3)]
    assert runs == [("wrk", "gateway", 3), *triton]
    assert all(run["per_second"] > 0 and run["milliseconds"]["p50"] > 0 for run in document["generators"])


def test_a_limit_that_is_not_kept_is_said_and_ends_with_one(done, document):
    assert done.returncode == 1
    assert "failed: p95 through the gateway with 3 callers is " in done.stdout
    assert list(complaints(document, 1.0, None)) == []
    failing = document["rows"][0] | {"failures": {"503": document["rows"][0]["requests"]}}
    (sentence,) = complaints(document | {"rows": [failing]}, 0.01, None)
    assert sentence == "100.00% of the requests failed, 1.00% may"


def test_the_report_asks_nobody_for_anything(done):
    """Every address in it is a place in itself."""

    class Addresses(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found = []

        def handle_starttag(self, tag, attributes):
            assert tag not in ("script", "link", "img", "iframe")
            names = ("src", "href", "xlink:href", "data", "action")
            self.found += [value for name, value in attributes if name in names]

    text = (done.folder / "bench.html").read_text(encoding="utf-8")
    parser = Addresses()
    parser.feed(text)
    assert text.count("<svg") == 5
    assert [address for address in parser.found if not address.startswith("#")] == []
    assert "@import" not in text
    assert "url(http" not in text


def test_the_limit_of_kcbert_is_the_one_of_the_issue():
    config = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    assert roofline.layer_parameters(config) == 85_054_464
    assert roofline.texts_per_second(833, 85_054_464, 19.6) == pytest.approx(249.8, abs=0.1)


def row(door: str, callers: int, speed: float, p50: float = 1.0, texts: int = 1) -> dict:
    times = {"p50": p50, "p95": p50, "p99": 2 * p50}
    return {"door": door, "callers": callers, "texts_per_second": speed, "milliseconds": times,
            "texts_per_request": texts}  # fmt: skip


def test_promises_are_judged_by_the_rows_of_one_run():
    rows = [
        row("gateway", 1, 50, 10),
        row("gateway", 32, 100),
        row("Triton, gRPC", 32, 125),
        row("infinity, int8", 32, 51),
    ]
    kcbert = {
        "rows": [*rows, row("TorchServe", 32, 12)],
        "model": {"layer_parameters": 85_054_464, "checkpoint": "kcbert-shape"},
        "roofline": {"texts_per_second": 160.0},
        "overhead": {"added_ms": 1.4},
        "half": {"milliseconds": {"p99": 29.0}},
    }
    found = {claim["what"].split(",")[0].split(" (")[0]: claim for claim in claims(kcbert)}
    met = {what: claim["met"] for what, claim in found.items()}
    assert met == {
        "gateway ÷ infinity": False,  # 1.96 of 2
        "gateway ÷ TorchServe": True,
        "gateway ÷ int8 roofline": True,
        "cost of the gateway: 1 - gateway ÷ Triton": False,  # 0.2 of 0.12
        "p50 added by the gateway at one caller": True,
        "p99 at half of capacity ÷ p50 at one caller": True,
        "single texts per second": None,  # promised for the shipped model
    }
    shipped = kcbert | {"rows": rows[:3], "model": {"layer_parameters": 1, "checkpoint": None}}
    assert [claim["met"] for claim in claims(shipped)] == [None, None, None, None, False]
    few = kcbert | {"rows": [row("gateway", 1, 50), row("Triton, gRPC", 1, 60)]}
    assert {claim["met"] for claim in claims(few)} == {None}  # one caller proves nothing about 32


def test_a_run_that_was_cut_short_says_so_and_claims_what_it_saw(document, tmp_path):
    cut = document | {
        "cut": "wrk <failed>",
        "rows": document["rows"][:1],
        "overhead": None,
        "half": None,
        "generators": [],
    }
    assert [claim["what"].split()[0] for claim in claims(cut)] == ["gateway", "single"]
    assert claims(cut | {"rows": []}) == []
    write_html(cut | {"claims": claims(cut)}, tmp_path / "cut.html")
    assert "ended early (wrk &lt;failed&gt;)" in (tmp_path / "cut.html").read_text(encoding="utf-8")


def test_wrk_counts_seconds_and_an_answer_that_does_not_come_is_said(tmp_path):
    class Slow(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            time.sleep(1.1)
            with suppress(OSError):  # who asked has left
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

        def log_message(self, *_):
            pass

    tools = generators.install()
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        door = HttpDoor("slow", [b"{}"], url=f"http://127.0.0.1:{server.server_port}/")
        assert generators.wrk(tools, door, 2, 4, tmp_path)["milliseconds"]["p50"] >= 1100
        with pytest.raises(generators.NoGenerator, match="no answer of slow within 1 s"):
            generators.wrk(tools, door, 1, 1, tmp_path)
        server.shutdown()


def test_a_door_that_is_closed_counts_as_failures():
    door = HttpDoor("nobody", [b"{}"], url="http://127.0.0.1:1/v1/predict")
    figures = measure.figures([measure.run(door, 0.3, callers=2, settle=0)])
    assert set(figures["failures"]) == {"ConnectionRefusedError"}
    assert (figures["texts_per_second"], figures["milliseconds"]["p50"]) == (0, None)


@pytest.mark.parametrize(
    "content", ["id\tdocument\tlabel\n1\t좋다\t1\n2\t\t0\n", "text\n좋다\n", "좋다\n\n", "\ufeff좋다"]
)
def test_texts_come_from_a_table_or_from_plain_lines(tmp_path, content):
    file = tmp_path / "texts"
    file.write_text(content, encoding="utf-8")
    assert read_texts(file) == ["좋다"]


def test_texts_are_the_bundled_reviews_in_a_random_order_that_stays_the_same():
    texts = read_texts()
    assert len(texts) == 1628
    assert texts == read_texts() != sorted(texts)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    (tmp_path / "cp949.txt").write_bytes("좋다".encode("cp949"))
    with pytest.raises(NoTexts, match=r"cp949.txt cannot be read .*; name a UTF-8 file of reviews"):
        read_texts(tmp_path / "cp949.txt")
