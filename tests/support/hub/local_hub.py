"""A hub on this machine, with the part of the protocol that downloads need (huggingface.co/docs/hub/api)."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".gguf")


@dataclass
class LocalHub:
    """Serves the folder `root`/<owner>/<name> of each repository.

    The next download of a file in `cut_after` ends after so many bytes. Files in `damaged` have another sha256 than is said.
    """

    root: Path
    url: str = ""
    cut_after: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """The path of each download, and its Range."""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def local_hub(root: Path) -> Iterator[LocalHub]:
    hub = LocalHub(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"] and (root / "/".join(parts[2:4])).is_dir():
                self._send_info("/".join(parts[2:4]), tree="tree" in parts[4:])
            elif parts[2:3] == ["resolve"] and (root / parts[0] / parts[1] / "/".join(parts[4:])).is_file():
                self._send_file(root / parts[0] / parts[1] / "/".join(parts[4:]), body)
            else:
                self._send_json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

        def _send_info(self, repository: str, tree: bool) -> None:
            folder = root / repository
            files = []
            for path in sorted(each for each in folder.rglob("*") if each.is_file()):
                name = path.relative_to(folder).as_posix()
                lfs = {"sha256": hub_hash(path), "oid": hub_hash(path), "size": path.stat().st_size, "pointerSize": 134}
                entry = {"rfilename": name, "path": name, "type": "file", "size": path.stat().st_size, "oid": sha256(path)[:40]}
                files.append({**entry, **({"lfs": lfs} if path.suffix in LARGE else {})})
            self._send_json(files if tree else {"id": repository, "sha": COMMIT, "siblings": files})

        def _send_json(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Type": "application/json", "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def _send_file(self, path: Path, body: bool) -> None:
            data, wanted = path.read_bytes(), self.headers.get("Range", "")
            start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
            if body:
                hub.requests.append((path.name, wanted))
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{hub_hash(path)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if not body:
                return
            cut = hub.cut_after.pop(path.name, None)
            self.wfile.write(data[start:] if cut is None else data[start : start + cut])
            if cut is not None:
                self.close_connection = True

    def hub_hash(path: Path) -> str:
        return hashlib.sha256(path.name.encode()).hexdigest() if path.name in hub.damaged else sha256(path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
