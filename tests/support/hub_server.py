"""A local endpoint that serves datasets as the Hugging Face hub does: their file lists and their files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_INFO = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/revision/([^/?]+))?(?:\?.*)?")
_FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the folders owner/name below a root; gives the endpoint's address and the requests made so far."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            requests.append(f"{self.command} {self.path}")
            if info := _INFO.fullmatch(self.path):
                self._info(*info.groups())
            elif file := _FILE.fullmatch(self.path):
                self._file(root / file[1] / file[3], file[2], body=body)
            else:
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

        def _info(self, name: str, revision: str | None) -> None:
            folder = root / name
            if not folder.is_dir():
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif revision not in (None, "main", COMMIT):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
                held = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
                self._send(200, json.dumps(held).encode(), {"Content-Type": "application/json"})

        def _file(self, path: Path, revision: str, *, body: bool) -> None:
            if revision not in ("main", COMMIT) or not path.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            held = path.read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(held).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(200, held, headers, body=body)

        def _send(self, code: int, held: bytes, headers: dict[str, str], *, body: bool = True) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(held)))
            self.end_headers()
            if body and self.command == "GET":
                self.wfile.write(held)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fill_cache(home: Path, name: str, folder: Path, *, ref: str = "main") -> None:
    """A cache directory that already holds a dataset, as downloads of the hub leave it."""
    cached = home / "hub" / f"datasets--{name.replace('/', '--')}"
    snapshot = cached / "snapshots" / COMMIT
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / ref).write_text(COMMIT)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        target = snapshot / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
