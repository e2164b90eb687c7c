"""A small double of the model hub: its API over real HTTP for folders on disk, and a record of what it was asked.

with HubDouble({"owner/name": Repository(commit, folder)}) as hub:
    … HF_ENDPOINT=hub.url …
hub.asked    # ["/api/models/owner/name/revision/main", …]
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """``revisions`` maps branches and references to commits, ``folders`` commits to what they hold.

    ``fails``: the status that every question about it gets. ``offers``: its pull requests, (number, author, title).
    """

    revisions: dict[str, str] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    fails: int | None = None
    offers: list[tuple[int, str, str]] = field(default_factory=list)


class HubDouble:
    def __init__(self, repositories: dict[str, Repository]):
        self.repositories = repositories
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        owner, model, *rest = path.removeprefix("/").removeprefix("api/models/").split("/", 3)
        name = f"{owner}/{model}"
        question, subject = [*rest, *["revision", "main"][len(rest) :]]  # nothing more asked: the default branch
        repository = self.repositories.get(name)
        if repository is None or repository.fails == 404:
            return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'
        if repository.fails:
            return repository.fails, {}, b'{"error": "so it is said"}'
        if question == "discussions":
            offers = [_offer(*offer) for offer in repository.offers]
            return _json({"discussions": offers, "count": len(offers), "start": 0})
        if question == "resolve":
            commit, _, file = subject.partition("/")
            return _file(repository, commit, file)
        commit = repository.revisions.get(subject, subject)
        if commit not in repository.folders:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b'{"error": "Invalid rev id"}'
        if question == "revision":
            return _json({"id": name, "modelId": name, "sha": commit, "siblings": []})
        files = sorted(repository.folders[commit].iterdir())
        return _json(
            [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _digest(f)} for f in files]
        )  # tree


def _handler(hub: HubDouble):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(path)
            status, headers, body = hub.answer(path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    return Handler


def _file(repository: Repository, commit: str, name: str) -> tuple[int, dict[str, str], bytes]:
    file = repository.folders.get(commit, Path("/nowhere")) / name
    if not file.is_file():
        return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
    return 200, {"X-Repo-Commit": commit, "ETag": f'"{_digest(file)}"'}, file.read_bytes()


def _json(value) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _offer(number: int, author: str, title: str) -> dict:
    return {
        "num": number,
        "title": title,
        "status": "open",
        "isPullRequest": True,
        "author": {"name": author},
        "createdAt": "2026-11-22T12:00:00.000Z",
        "repo": {"name": "any", "type": "model"},
    }
