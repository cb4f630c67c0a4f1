"""A stand-in for the model hub: its HTTP interface as far as the library huggingface_hub asks, on the loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants as constants
import pytest

TOKEN = "hf_test"


@dataclass
class Repository:
    """Files of a model: of the one branch, main."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False

    @property
    def commit(self) -> str:
        state = b"".join(name.encode() + content for name, content in sorted(self.files.items()))
        return hashlib.sha1(state).hexdigest()


@dataclass
class Hub:
    """The state of the stand-in, and the requests to it."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # method and path
    uploads: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256, before their commit
    refuse_uploads: bool = False


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def _answer(self, status: int, content: bytes | Any = b"", **headers: str) -> None:
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self._body()
        parts = path.strip("/").split("/")
        if self.command in ("GET", "HEAD"):
            self._read(parts)
        elif self.command != "PUT" and not self._known():  # an address for an upload is signed, and needs no token
            self._answer(401, {"error": "Invalid username or password."})
        else:
            self._write(parts, body)

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _read(self, parts: list[str]) -> None:
        of_api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if of_api else parts[:2])
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._known()):
            self._answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif of_api:
            if parts[-1] not in ("main", repository.commit) and "revision" in parts:
                self._answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            elif "tree" in parts:
                rows = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in sorted(repository.files.items())
                ]
                self._answer(200, rows)
            else:
                siblings = [{"rfilename": file} for file in repository.files]
                self._answer(200, {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings})
        else:  # user/name/resolve/revision/file
            content = repository.files.get("/".join(parts[4:]))
            if content is None:
                self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            else:
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                self._answer(200, content, ETag=etag, X_Repo_Commit=repository.commit)

    def _write(self, parts: list[str], body: bytes) -> None:
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.repositories.setdefault(name, Repository(private=private))
            self._answer(200, {"url": f"{self.hub.url}/{name}", "id": name})
        elif parts[:1] == ["upload"]:
            self.hub.uploads[parts[1]] = body
            self._answer(403 if self.hub.refuse_uploads else 200)
        elif parts[-3:] == ["lfs", "objects", "batch"]:
            objects = json.loads(body)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}"}}
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif "preupload" in parts:
            names = [one["path"] for one in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            rows = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self._answer(200, {"files": rows})
        elif "commit" in parts:
            repository = self.hub.repositories["/".join(parts[2:4])]
            for kind, value in (json.loads(line).values() for line in body.splitlines()):
                if kind == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                elif kind == "lfsFile":
                    repository.files[value["path"]] = self.hub.uploads[value["oid"]]
            url = f"{self.hub.url}/{'/'.join(parts[2:4])}/commit/{repository.commit}"
            self._answer(200, {"commitUrl": url, "commitOid": repository.commit, "success": True})
        elif parts == ["api", "validate-yaml"]:
            self._answer(200, {"errors": [], "warnings": []})
        else:
            self._answer(404, {"error": f"not known here: {self.path}"})


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in that listens, which huggingface_hub asks instead of the real one."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub})) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_to(hub.url, monkeypatch)
        try:
            yield hub
        finally:
            server.shutdown()


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make huggingface_hub ask that address."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own for large files
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
