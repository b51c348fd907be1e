"""A stand-in for a remote model: an OpenAI-compatible server whose answers a function of the request's text makes."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class JudgeServer:
    """Serves at `url`; answer: the user's message -> the text, or a status. seen: the bodies of all requests."""

    def __init__(self, answer: Callable[[str], str | int]) -> None:
        self.answer = answer
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": "judge"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                served.seen.append(body)
                served.keys.append(self.headers.get("Authorization"))
                said = served.answer(body["messages"][-1]["content"])
                if isinstance(said, int):
                    self._send(said, {"error": {"message": "as told"}})
                    return
                choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
                self._send(200, {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}})

            def _send(self, status: int, content: Any) -> None:
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        return Handler


def texts_of(asked: str) -> dict[str, str]:
    """The fenced texts of a request to a judge, by name."""
    return dict(re.findall(r"The (.*?):\nDATA [0-9a-f]{16}\n(.*?)\nEND [0-9a-f]{16}", asked, re.DOTALL))


def decide(asked: str, verdict: str) -> str:
    """A judge's answer that ends in this verdict."""
    nonce = re.findall(r"^VERDICT ([0-9a-f]{16}): ", asked, re.MULTILINE)[-1]
    return f"It seems to me that it is so.\nVERDICT {nonce}: {verdict}"
