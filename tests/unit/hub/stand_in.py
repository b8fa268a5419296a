"""A server on this machine that speaks the part of the Hugging Face hub's API that is used."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40


class StandIn(ThreadingHTTPServer):
    """Keeps what is pushed; tests change it to what a stranger might serve."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.listed: list[dict[str, Any]] | None = None
        self.asked: list[str] = []
        self.created: dict[str, Any] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def siblings(self) -> list[dict[str, Any]]:
        """What the repository is said to hold, with git's hashes; shards by SHA-256."""
        if self.listed is not None:
            return self.listed
        return [entry(name, content) for name, content in self.files.items()]


def entry(name: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    result: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith((".tar", ".safetensors")):
        digest = hashlib.sha256(content).hexdigest()
        result["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
    return result


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.path)
        if self.path.startswith("/api/repos/create"):
            self.server.created = json.loads(body)
            self._say({"url": f"{self.server.endpoint}/robot/square"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            self._say({"files": [{"path": name, **plain} for name in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            url = f"{self.server.endpoint}/robot/square/commit/{COMMIT}"
            self._say({"success": True, "commitOid": COMMIT, "commitUrl": url})
        else:
            self._say({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        name = self.path.partition(f"/resolve/{COMMIT}/")[2]
        if name in self.server.files:
            self._send(self.server.files[name])
        elif self.path.startswith("/api/"):
            more = {"siblings": self.server.siblings(), "tags": [], "private": False}
            self._say({"id": "robot/square", "sha": COMMIT, "downloads": 0, "likes": 0, **more})
        else:
            self._say({"error": "not found"}, 404)

    do_HEAD = do_GET

    def _say(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status)

    def _send(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
