"""A small hub on 127.0.0.1: models with commits, gated and missing ones, files by HTTP range."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Model:
    """A repository with one commit on ``main``; a gated one shows its files' names and no more."""

    files: dict[str, bytes]
    gated: bool = False
    commit: str = "c" * 40


@dataclass
class Hub:
    """``requests`` are the method and path of all that was asked."""

    url: str = ""
    models: dict[str, Model] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        return {line.split("/", 5)[5] for line in self.requests if line.startswith("GET /org/")}


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub at a port of the system's choice, until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.hub.requests.append(f"{self.command} /{'/'.join(path)}")
        api = path[:2] == ["api", "models"]
        name = "/".join(path[2:4] if api else path[:2])
        rest = path[4:] if api else path[2:]
        model = self.hub.models.get(name)
        if name == "org/bad-token":
            said = f"Invalid credentials: {self.headers['Authorization']}"
            return self.refuse(401, "X", said)
        if model is None:
            return self.refuse(401, "RepoNotFound", "Repository not found")
        if len(rest) > 1 and rest[1] not in {"main", model.commit}:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
        return self.describe(model, name, rest) if api else self.file(model, "/".join(rest[2:]))

    def describe(self, model: Model, name: str, rest: list[str]) -> None:
        if rest[:1] == ["tree"]:
            self.send(200, json.dumps([_entry(*item) for item in model.files.items()]).encode())
        else:
            siblings = [{"rfilename": file} for file in model.files]
            info = {"id": name, "sha": model.commit, "siblings": siblings}
            self.send(200, json.dumps(info).encode())

    def file(self, model: Model, name: str) -> None:
        if model.gated:
            return self.refuse(403, "GatedRepo", "Access to this model is restricted")
        if name not in model.files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data = model.files[name]
        etag = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": model.commit, "ETag": f'"{etag}"'}
        asked = self.headers.get("Range")
        if not asked:
            return self.send(200, data, headers)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        return self.send(206, part, headers)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(path: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
