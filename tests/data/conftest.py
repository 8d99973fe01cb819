"""A machine without data: no $BPTOOLKIT_DATA, an empty user cache; and a web server on loopback to download from."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, made empty for one test; $BPTOOLKIT_DATA is unset."""
    monkeypatch.delenv("BPTOOLKIT_DATA", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "bptoolkit"


class Answer(NamedTuple):
    """What the server sends, once or for good."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    promised: int | None = None  # a Content-Length other than the true one


class Server(NamedTuple):
    """`answers[path]` is a list that is used up to its last entry, which stays; what is not there is a 404."""

    url: str
    answers: dict[str, list[Answer]]
    asked: list[str]


class _Handler(http.server.BaseHTTPRequestHandler):
    answers: dict[str, list[Answer]]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        queue = self.answers.get(self.path, [Answer(status=404)])
        answer = queue.pop(0) if len(queue) > 1 else queue[0]
        self.send_response(answer.status)
        for header in answer.headers:
            self.send_header(*header)
        self.send_header("Content-Length", str(len(answer.body) if answer.promised is None else answer.promised))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr: the tests read the progress bar there."""


@contextlib.contextmanager
def _serving() -> Iterator[Server]:
    answers, asked = {}, []
    handler = type("Handler", (_Handler,), {"answers": answers, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Server(f"http://127.0.0.1:{server.server_address[1]}/", answers, asked)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with _serving() as serving:
        yield serving


@pytest.fixture
def answer() -> type[Answer]:
    return Answer
