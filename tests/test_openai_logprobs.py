"""A server that says how likely it finds a prompt, by the completions endpoint's echo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
import pytest

from shammah.backends.openai_logprobs import OpenAILogprobs
from shammah.errors import SamplingError
from shammah.ports.datum import ModelInput

PROMPT = ModelInput.of((5, 6, 7))


class Server:
    """Answers with `logprobs`, or with a status."""

    def __init__(self) -> None:
        self.logprobs: Any = None
        self.status = 200
        self.asked: list[tuple[str, dict[str, Any]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.asked.append((self.path, body))
                data = json.dumps(
                    {"choices": [{"text": "abc", "logprobs": server.logprobs}]}
                    if server.status == 200
                    else {"error": {"message": "echo is not supported"}}
                ).encode()
                self.send_response(server.status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def client(server: Server) -> OpenAILogprobs:
    url = f"http://user:word@127.0.0.1:{server.http.server_address[1]}/v1/"
    return OpenAILogprobs("teacher", base_url=url, api_key_env=None, retries=0)


async def test_the_prompt_is_scored(server: Server) -> None:
    server.logprobs = {"token_logprobs": [None, -0.5, -1.25, -3.0]}
    async with client(server) as teacher:
        found = await teacher.compute_logprobs(PROMPT)
    assert found.dtype == np.float32 and np.isnan(found[0])
    assert found[1:].tolist() == [-0.5, -1.25]
    ((path, body),) = server.asked
    assert path == "/v1/completions" and body["prompt"] == [5, 6, 7] and body["echo"] is True


@pytest.mark.parametrize(
    ("logprobs", "said"),
    [
        (None, "does not tell how likely"),
        ({"token_logprobs": [-1.0]}, "1 of 3"),  # of what it drew alone
        ({"token_logprobs": [None, None, -1.0]}, "left log-probabilities out"),
        ({"token_logprobs": [None, *[-1.0] * 9]}, "3 tokens as 10"),
    ],
)
async def test_a_server_that_does_not_tell_is_refused(
    logprobs: Any, said: str, server: Server
) -> None:
    server.logprobs = logprobs
    async with client(server) as teacher:
        with pytest.raises(SamplingError, match=said) as caught:
            await teacher.compute_logprobs(PROMPT)
    assert caught.value.hint and "word" not in str(caught.value)


async def test_what_it_says_itself_is_passed_on(server: Server) -> None:
    server.status = 400
    async with client(server) as teacher:
        with pytest.raises(SamplingError, match="HTTP 400: echo is not supported"):
            await teacher.compute_logprobs(PROMPT)
