"""A server on this machine that speaks what huggingface_hub asks of the Hub's HTTP interface."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 100_000
"""Bytes from which a file goes by way of LFS."""


@dataclass
class HubServer:
    """Repositories by kind and name (`models/me/tiny`); each has commits, the newest last.

    `me/gated` exists behind terms, and what `read_only` names refuses commits.
    """

    commits: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    made: list[dict[str, Any]] = field(default_factory=list)
    lfs: dict[str, bytes] = field(default_factory=dict)
    read_only: set[str] = field(default_factory=set)

    def __enter__(self) -> HubServer:
        handler = type("Bound", (_Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No longer answer."""
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Put files into a repository; the commit's revision."""
        history = self.commits.setdefault(repo, [])
        history.append({**(history[-1] if history else {}), **files})
        return f"{len(history):040d}"

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """What a repository holds at a revision."""
        history = self.commits.get(repo, [])
        if revision == "main":
            return history[-1] if history else {}
        number = int(revision) if revision.isdecimal() else 0
        return history[number - 1] if 0 < number <= len(history) else None


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: HubServer

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(path)
        self._content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = path.strip("/").split("/")
        if parts[0] == "lfs":
            self.hub.lfs[parts[1]] = self._content
            self._json({})
        elif parts[:3] == ["api", "repos", "create"]:
            self._create()
        elif parts[:2] == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif parts[0] == "api" and len(parts) < 4:
            self._refuse(404, "RepoNotFound")
        elif parts[0] == "api":
            self._api(f"{parts[1]}/{parts[2]}/{parts[3]}", parts[4:])
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch()
        else:
            kind = "datasets" if parts[0] == "datasets" else "models"
            owner, name, _, revision, *rest = parts[1:] if kind == "datasets" else parts
            self._file(f"{kind}/{owner}/{name}", revision, "/".join(rest))

    def _api(self, repo: str, rest: list[str]) -> None:
        if repo == "models/me/gated":
            self._refuse(403, "GatedRepo")
            return
        if repo not in self.hub.commits:
            self._refuse(404, "RepoNotFound")
            return
        what, revision = [*rest, "", ""][:2] if rest else ("revision", "main")
        files = self.hub.files(repo, revision)
        if files is None:
            self._refuse(404, "RevisionNotFound")
        elif what == "tree":
            self._json([
                {"type": "file", "path": path, "size": len(data), "oid": _digest(data)[:40]}
                for path, data in files.items()
            ])  # fmt: skip
        elif what == "preupload":
            asked = json.loads(self._content)["files"]
            self._json({"files": [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["size"] >= LARGE else "regular"}
                for f in asked
            ]})  # fmt: skip
        elif what == "commit":
            self._commit(repo)
        else:
            sha = revision if revision.isdecimal() else f"{len(self.hub.commits[repo]):040d}"
            siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
            self._json({"id": repo.partition("/")[2], "sha": sha, "siblings": siblings})

    def _create(self) -> None:
        asked = json.loads(self._content)
        owner = asked.get("organization") or "me"
        repo = f"{asked.get('type') or 'model'}s/{owner}/{asked['name']}"
        url = f"{self.hub.endpoint}/{owner}/{asked['name']}"
        there = repo in self.hub.commits
        if not there:
            self.hub.made.append(asked)
            self.hub.commits[repo] = []
        self._send(409 if there else 200, json.dumps({"url": url}).encode(), {})

    def _commit(self, repo: str) -> None:
        if repo in self.hub.read_only:
            self._refuse(403, "")
            return
        files: dict[str, bytes] = {}
        for line in self._content.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
        sha = self.hub.commit(repo, files)
        name = repo.partition("/")[2]
        url = f"{self.hub.endpoint}/{name}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": url})

    def _batch(self) -> None:
        objects = [
            {"oid": o["oid"], "size": o["size"],
             "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{o['oid']}"}}}
            for o in json.loads(self._content)["objects"]
        ]  # fmt: skip
        self._json({"transfer": "basic", "objects": objects})

    def _file(self, repo: str, revision: str, path: str) -> None:
        files = self.hub.files(repo, revision) if repo in self.hub.commits else None
        if repo not in self.hub.commits:
            self._refuse(404, "RepoNotFound")
        elif files is None:
            self._refuse(404, "RevisionNotFound")
        elif path not in files:
            self._refuse(404, "EntryNotFound")
        else:
            sha = revision if revision.isdecimal() else f"{len(self.hub.commits[repo]):040d}"
            etag = f'"{_digest(files[path])}"'
            self._send(200, files[path], {"ETag": etag, "X-Repo-Commit": sha})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
