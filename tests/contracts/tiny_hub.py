"""A small server of the hub's HTTP interface, on loopback, and a command line that knows no other hub."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

TOKEN = "hf_of_a_test"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: {(kind, name): {path: bytes}}, each with one commit."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.forget()

    def forget(self) -> None:
        self.repos: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: dict[tuple[str, str], bool] = {}
        self.tags: list[str] = []
        self.branches: list[str] = []
        self.fetched: list[str] = []
        self.breaks_at: str | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, body: bytes = b"", code: int = 200, send: bool = True, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if send:
            self.wfile.write(body)

    def answer(self, value: object) -> None:
        self.reply(json.dumps(value).encode(), Content_Type="application/json")

    def repo(self, match: re.Match[str]) -> tuple[str, str]:
        return ("dataset" if match["kind"] == "datasets" else "model"), match["name"]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if match := re.fullmatch(r"/api/(?P<kind>datasets|models)/(?P<name>[^/]+/[^/]+)(/revision/.+)?", path):
            files = self.server.repos.get(self.repo(match))
            if files is None:
                return self.reply(code=404, X_Error_Code="RepoNotFound")
            return self.answer({"id": match["name"], "sha": sha(files), "siblings": [{"rfilename": name} for name in files]})
        if match := re.fullmatch(r"/api/(?P<kind>datasets|models)/(?P<name>[^/]+/[^/]+)/tree/.+", path):
            files = self.server.repos[self.repo(match)]
            return self.answer(
                [{"type": "file", "path": name, "size": len(data), "oid": oid(data)} for name, data in files.items()]
            )
        if match := re.fullmatch(r"/(?P<kind>datasets/|)(?P<name>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)", path):
            files = self.server.repos[("dataset" if match["kind"] else "model", match["name"])]
            data = files[match["file"]]
            if self.command == "GET":
                if match["file"] == self.server.breaks_at:
                    return self.reply(code=403)
                self.server.fetched.append(match["file"])
            return self.reply(data, send=self.command == "GET", ETag=f'"{oid(data)}"', X_Repo_Commit=sha(files))
        return self.reply(code=404)

    def do_DELETE(self) -> None:
        self.reply(code=404, X_Error_Code="RevisionNotFound")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        path = unquote(urlparse(self.path).path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(b"{}", code=401)
        if path == "/api/repos/create":
            value = json.loads(body)
            key = (value.get("type", "model"), f"{value['organization']}/{value['name']}")
            self.server.repos.setdefault(key, {})
            self.server.private[key] = value.get("visibility") == "private" or value.get("private", False)
            return self.answer({"url": f"{self.server.address}/{key[1]}"})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        match = re.fullmatch(r"/api/(?P<kind>datasets|models)/(?P<name>[^/]+/[^/]+)/(?P<verb>\w+)/(?P<rev>.+)", path)
        assert match, path
        files = self.server.repos[self.repo(match)]
        if match["verb"] == "preupload":
            wanted = json.loads(body)["files"]
            return self.answer(
                {"files": [{"path": it["path"], "uploadMode": "regular", "shouldIgnore": False} for it in wanted]}
            )
        if match["verb"] == "commit":
            for line in body.decode().splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                elif item["key"] == "deletedFile":
                    del files[item["value"]["path"]]
            url = f"{self.server.address}/{match['name']}/commit/{sha(files)}"
            return self.answer({"success": True, "commitOid": sha(files), "commitUrl": url, "hookOutput": ""})
        if match["verb"] == "tag":
            self.server.tags.append(json.loads(body)["tag"])
        elif match["verb"] == "branch":
            self.server.branches.append(match["rev"])
        return self.answer({})

    def chunk(self) -> bytes:
        size = int(self.rfile.readline(), 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data


def oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Done(NamedTuple):
    code: int
    out: str
    err: str


SIDE = """
import contextlib, io, json, sys
from kinoise.cli import main
answers = sys.stdout
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


class Side:
    """The command line in a process whose huggingface_hub knows no hub but the test's: it reads HF_ENDPOINT when imported."""

    def __init__(self, address: str, home: Path, token: str | None = TOKEN) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
        env = {**kept, "HF_ENDPOINT": address, "HF_HOME": str(home)} | ({"HF_TOKEN": token} if token else {})
        self._process = subprocess.Popen(
            [sys.executable, "-c", SIDE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def __call__(self, *arguments: str | Path) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(item) for item in arguments]) + "\n")
        self._process.stdin.flush()
        return Done(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate(timeout=60)
