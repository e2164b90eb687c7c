"""What holds for the whole house: nothing unpickles, nothing leaves its folder, the lock can be audited."""

import ast
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ["training", "export", "gateway", "server", "loadtest", "deploy"]
UNPICKLES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
LOADS_PICKLES = {("torch", "load"), ("pandas", "read_pickle"), ("pd", "read_pickle"), ("torch", "jit")}

# Ends the process with status 3 the moment anything is unpickled after the imports.
NO_PICKLES = """
import sys, os
def refuse(event, arguments):
    if event == "pickle.find_class":
        os.write(2, f"unpickled {arguments}".encode())
        os._exit(3)
sys.addaudithook(refuse)
"""


def sources() -> list[Path]:
    return [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]


def faults(tree: ast.AST) -> Iterator[str]:
    """Imports that unpickle, calls that do, and calls that run text as code or through a shell."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in UNPICKLES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNPICKLES:
            yield node.module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in LOADS_PICKLES:
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "__import__"):
                yield node.func.id
            for keyword in node.keywords:
                if keyword.arg in ("shell", "allow_pickle", "trust_remote_code", "weights_only"):
                    wanted = keyword.arg == "weights_only"
                    if not (isinstance(keyword.value, ast.Constant) and keyword.value.value is wanted):
                        yield f"{keyword.arg}={ast.unparse(keyword.value)}"


@pytest.mark.parametrize("source", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_module_unpickles_or_runs_text(source):
    assert list(faults(ast.parse(source.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(x)",
        "np.load(x, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "eval(x)",
        "load(x, trust_remote_code=True)",
        "f(weights_only=False)",
    ],
)
def test_the_look_at_the_modules_would_see_it(text):
    assert list(faults(ast.parse(text)))


LOADS = {
    "gateway": "from gateway.bundle import read_bundle; load = lambda: read_bundle(models)",
    "server": "from server.bundle import *; load = lambda: check_files(read_served_bundle(models))",
    "export": "from export.bundle import verify_bundle; load = lambda: verify_bundle(next(models.glob('*/[0-9]*')))",
    "training": "from training.encoders import load_classifier; load = lambda: load_classifier('nano', ['a', 'b'])",
}


@pytest.mark.parametrize("room", LOADS)
def test_loading_unpickles_nothing(room):
    models = f"from pathlib import Path; models = Path({str(ROOT / 'model_repository')!r})"
    program = f"{models}\n{LOADS[room]}\n{NO_PICKLES}\nload()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_watch_over_loading_would_see_a_pickle(tmp_path):
    file = tmp_path / "model.bin"
    program = f"import pickle, fractions\nopen({str(file)!r}, 'wb').write(pickle.dumps(fractions.Fraction(1, 2)))\n"
    program += f"{NO_PICKLES}\npickle.load(open({str(file)!r}, 'rb'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 3 and "unpickled" in done.stderr


@contextmanager
def vulnerability_service(known: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """The far end of `make audit`, which cannot be reached from here: OSV's API.  Yields its URL and what was asked."""
    asked: list[str] = []

    class Osv(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["content-length"])))
            name = query["package"]["name"]
            asked.append(f"{name}=={query['version']}")
            found = [self.vulnerability(name, known[name])] if name in known else []
            body = json.dumps({"vulns": found} if found else {}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        @staticmethod
        def vulnerability(package: str, identity: str) -> dict:
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}]
            affected = [{"package": {"name": package, "ecosystem": "PyPI"}, "ranges": ranges}]
            return {"id": identity, "aliases": [], "summary": "made up", "details": "made up", "affected": affected,
                    "published": "2026-01-01T00:00:00Z"}  # fmt: skip

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Osv) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query", asked
        server.shutdown()


def audit(url: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", "audit", f"OSV={url}"], cwd=ROOT, capture_output=True, text=True)


def test_make_audit_asks_for_every_package_of_the_lock_and_fails_on_a_vulnerability():
    locked = set((ROOT / "requirements.lock").read_text(encoding="utf-8").split())
    with vulnerability_service({"starlette": "OSV-2026-1"}) as (url, asked):
        done = audit(url)
    assert {line.lower() for line in asked} == {line.lower() for line in locked}
    assert done.returncode == 2 and "OSV-2026-1" in done.stdout and "starlette" in done.stdout
    with vulnerability_service({}) as (url, _):
        assert audit(url).returncode == 0


def test_make_audit_never_says_all_is_well_when_it_could_not_ask():
    done = audit("http://127.0.0.1:9/v1/query")
    assert done.returncode == 2 and "could not ask" in done.stderr
