"""Chat models: a server over real sockets that speaks the OpenAI API, well or badly, and the local
model; and completers over both."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import tiny_models

from shammah.backends import openai_llm
from shammah.backends.openai_llm import OpenAILLM
from shammah.errors import DataError, InputError, LLMError, SamplingError
from shammah.generation.answer import Answer
from shammah.generation.completers import (
    LLMMessageCompleter,
    SamplingMessageCompleter,
    SamplingTokenCompleter,
    as_far_as,
)
from shammah.generation.engine import Engine
from shammah.generation.engine_llm import EngineLLM
from shammah.generation.params import GenerationParams
from shammah.messages import assistant, system, user
from shammah.models.load import BaseModel, load_base_model
from shammah.ports.completer import MessageCompleter, TokenCompleter
from shammah.ports.datum import ModelInput
from shammah.ports.llm_client import ChatParams, LLMClient
from shammah.ports.sampling_client import SamplingParams
from shammah.settings import ModelSettings

KEY = "sk-not-a-real-key-0123456789"
ASKED = (system("Be brief."), user("Who is there? ü"))
PARAMS = ChatParams(max_tokens=9, temperature=0.5, top_p=0.9, seed=4)


def completion(text: str | None = "It is me. é", reason: str = "stop") -> dict[str, Any]:
    return {
        "id": "1",
        "object": "chat.completion",
        "model": "served",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": reason,
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15},
    }


def chunks(*texts: str, reason: str | None = "stop") -> list[dict[str, Any]]:
    def one(delta: dict[str, str], why: str | None = None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": why}]}

    ending = [one({}, reason)] if reason else []
    usage = {"choices": [], "usage": {"prompt_tokens": 1}}
    return [one({"role": "assistant"}), *(one({"content": text}) for text in texts), *ending, usage]


class Server:
    """Answers each request with the next of `replies`: functions of the handler."""

    def __init__(self) -> None:
        self.replies: list[Callable[[Any], None]] = []
        self.requests: list[tuple[str, dict[str, str], dict[str, Any], float]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.requests.append((self.path, headers, body, time.monotonic()))
                server.replies.pop(0)(self)

            def log_message(self, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *args: object) -> None:
                pass  # a client that hangs up is what some tests do

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def says(self, body: Any, status: int = 200, **headers: str) -> None:
        """The next reply: JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()

        def reply(handler: Any) -> None:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("content-length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

        self.replies.append(reply)

    def streams(self, events: list[Any], *, ends: str = "done", pause: float = 0.0) -> None:
        """The next reply: server-sent events, which end with [DONE], without it, or with the
        connection cut in the middle of a chunk."""

        def reply(handler: Any) -> None:
            handler.send_response(200)
            handler.send_header("content-type", "text/event-stream")
            handler.send_header("transfer-encoding", "chunked")
            handler.end_headers()

            def send(text: str) -> None:
                data = text.encode()
                # In two writes, of which one ends in the middle of anything.
                half = len(data) // 2 + 1
                for part in (data[:half], data[half:]):
                    handler.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    handler.wfile.flush()

            try:
                send(": hello\n\n")
                for event in events:
                    text = event if isinstance(event, str) else json.dumps(event)
                    send(f"data: {text}\r\n\r\n")
                    time.sleep(pause)
                if ends == "cut":
                    handler.wfile.write(b"ff\r\ndata: {")
                    handler.wfile.flush()
                    handler.connection.shutdown(socket.SHUT_RDWR)
                    handler.close_connection = True
                    return
                if ends == "done":
                    send("data: [DONE]\n\n")
                handler.wfile.write(b"0\r\n\r\n")
            except OSError:
                server.hung_up = True
                handler.close_connection = True

        server = self
        self.replies.append(reply)

    hung_up = False

    def drops(self) -> None:
        """The next reply: none."""

        def reply(handler: Any) -> None:
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True

        self.replies.append(reply)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(openai_llm, "FIRST_WAIT", 0.02)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def client_of(server: Server, **options: Any) -> OpenAILLM:
    return OpenAILLM("tiny", base_url=server.url, **{"api_key_env": "SOME_KEY", **options})


async def pieces(client: LLMClient) -> list[str]:
    return [piece async for piece in client.stream(ASKED, PARAMS)]


async def test_a_question_and_its_answer(server: Server) -> None:
    server.says(completion())
    server.says(completion("cut", "length"))
    async with client_of(server) as client:
        answer = await client.chat(ASKED, PARAMS)
        second = await client.chat((user("x"),), ChatParams())
    assert answer.message == assistant("It is me. é") and answer.stop_reason == "stop"
    assert (answer.model, answer.prompt_tokens, answer.completion_tokens) == ("served", 11, 4)
    assert second.stop_reason == "length"
    (path, headers, body, _), (_, _, plain, _) = server.requests
    assert path == "/v1/chat/completions" and headers["authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who is there? ü"},
        ],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 4,
    }
    assert "seed" not in plain and plain["max_tokens"] == 512


async def test_a_server_without_keys_and_with_other_names(server: Server) -> None:
    server.says({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]})
    fields = {"api_key_env": None, "max_tokens_field": "max_completion_tokens"}
    async with client_of(server, **fields) as client:
        answer = await client.chat(ASKED, PARAMS)
    assert answer.message == assistant("") and answer.model == "tiny"
    assert answer.prompt_tokens is None and answer.completion_tokens is None
    (_, headers, body, _) = server.requests[0]
    assert "authorization" not in headers
    assert body["max_completion_tokens"] == 9 and "max_tokens" not in body


@pytest.mark.parametrize("ends", ["done", "end"])
async def test_a_stream(server: Server, ends: str) -> None:
    server.streams(chunks("It", " is", " mé", "\n\ndata: x"), ends=ends)
    async with client_of(server) as client:
        assert await pieces(client) == ["It", " is", " mé", "\n\ndata: x"]
    assert server.requests[0][2]["stream"] is True


async def test_a_stream_comes_piece_by_piece_and_can_be_dropped(server: Server) -> None:
    server.streams(chunks(*["word "] * 300), pause=0.02)
    async with client_of(server) as client:
        began = time.monotonic()
        stream = client.stream(ASKED, PARAMS)
        assert await anext(stream) == "word "
        assert time.monotonic() - began < 2.0
        await stream.aclose()  # type: ignore[attr-defined]
    for _ in range(100):
        if server.hung_up:
            break
        await asyncio.sleep(0.02)
    assert server.hung_up


async def test_what_may_pass_is_asked_again(server: Server) -> None:
    server.says({"error": {"message": "slow down"}}, 429, retry_after="0.3")
    server.says({"error": "overloaded"}, 503)
    server.drops()
    server.says({"error": {}}, 500, retry_after=formatdate(time.time() - 5, usegmt=True))
    server.says(completion())
    async with client_of(server) as client:
        answer = await client.chat(ASKED, PARAMS)
    assert answer.message == assistant("It is me. é") and len(server.requests) == 5
    times = [when for *_, when in server.requests]
    assert times[1] - times[0] >= 0.3 and times[4] - times[3] < 0.3
    server.says({"error": "overloaded"}, 503)
    server.streams(chunks("yes"))
    async with client_of(server) as client:
        assert await pieces(client) == ["yes"]


@pytest.mark.parametrize("stream", [False, True])
async def test_patience_ends(server: Server, stream: bool) -> None:
    for _ in range(3):
        server.says({"error": {"message": "slow down"}}, 429)
    async with client_of(server, retries=2) as client:
        with pytest.raises(LLMError, match="HTTP 429: slow down") as caught:
            await (pieces(client) if stream else client.chat(ASKED, PARAMS))
    assert len(server.requests) == 3 and caught.value.hint is not None
    assert caught.value.port == "LLMClient" and caught.value.backend == f"tiny at {_url(server)}"
    server.says({"error": {"message": "tomorrow"}}, 429, retry_after="86400")
    async with client_of(server) as client:
        with pytest.raises(LLMError, match="tomorrow"):
            await client.chat(ASKED, PARAMS)
    assert len(server.requests) == 4


def _url(server: Server) -> str:
    return f"{server.url}/chat/completions"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, {"error": {"message": f"Incorrect API key: {KEY}"}}, "Incorrect API key: \\*\\*\\*"),
        (403, {"error": "no"}, "HTTP 403: no"),
        (404, b"<html>nothing here</html>", "HTTP 404: <html>nothing here"),
        (400, {"error": {"message": "no such parameter"}}, "HTTP 400: no such parameter"),
        (302, b"", "HTTP 302: no reason given"),
        (200, b'{"choices": [', "no chat completion"),
        (200, b"\xff\xfe", "no chat completion"),
        (200, {"choices": [{"message": {"content": 5}}]}, "choices.0.message.content"),
        (200, {"choices": []}, "no choices"),
        (200, completion("", "content_filter"), "another reason: content_filter"),
    ],
)
async def test_what_will_not_pass_is_said_at_once(
    server: Server, status: int, body: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.says(body, status, location=f"{server.url}/elsewhere")
    async with client_of(server) as client:
        with pytest.raises(LLMError, match=words) as caught:
            await client.chat(ASKED, PARAMS)
    assert len(server.requests) == 1
    assert KEY not in str(caught.value) and KEY not in caplog.text and KEY not in repr(client)
    if status == 401:
        assert "SOME_KEY" in str(caught.value)


@pytest.mark.parametrize(
    ("events", "ends", "words"),
    [
        (chunks("It", " is"), "cut", "broke off: "),
        (chunks("It", " is", reason=None), "end", "broke off before its end"),
        (chunks("It", " is", reason=None), "done", "broke off before its end"),
        ([*chunks("It", reason=None), '{"choices'], "done", "no chat completion"),
        ([*chunks("It", reason=None), {"error": {"message": "full"}}], "done", "broke off.*full"),
        (chunks("It", reason="content_filter"), "done", "content_filter"),
    ],
)
async def test_a_stream_that_breaks_off_says_so(
    server: Server, events: list[Any], ends: str, words: str
) -> None:
    """After what had come; and it is not asked for a second time."""
    server.streams(events, ends=ends)
    heard = []
    async with client_of(server) as client:
        with pytest.raises(LLMError, match=words):
            async for piece in client.stream(ASKED, PARAMS):
                heard.append(piece)
    assert heard[0] == "It" and len(server.requests) == 1


async def test_a_cut_answer_and_a_silent_server(server: Server) -> None:
    def half(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices"')
        handler.close_connection = True

    server.replies.append(half)
    async with client_of(server) as client:
        with pytest.raises(LLMError, match="broke off") as caught:
            await client.chat(ASKED, PARAMS)
    assert caught.value.__cause__ is not None
    server.replies += [lambda handler: time.sleep(1.0)] * 2
    async with client_of(server, timeout=0.1, retries=1) as client:
        began = time.monotonic()
        with pytest.raises(LLMError, match="ReadTimeout"):
            await client.chat(ASKED, PARAMS)
    assert time.monotonic() - began < 1.0


async def test_nobody_there_no_key_no_question(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    async with OpenAILLM("m", base_url=nobody, api_key_env=None, retries=1) as client:
        with pytest.raises(LLMError, match="could not be reached"):
            await client.chat(ASKED, PARAMS)
    for wrong in ("ftp://x/v1", "http://[::"):
        async with OpenAILLM("m", base_url=wrong, api_key_env=None) as client:
            with pytest.raises(LLMError, match="no address"):
                await client.chat(ASKED, PARAMS)
    hidden = nobody.replace("//", "//someone:secret@")
    async with OpenAILLM("m", base_url=hidden, api_key_env=None, retries=0) as client:
        with pytest.raises(LLMError, match="could not be reached") as caught:
            await client.chat(ASKED, PARAMS)
    assert "secret" not in str(caught.value)
    async with client_of(server) as client:
        with pytest.raises(LLMError, match="nothing to answer"):
            await client.chat((), PARAMS)
        monkeypatch.setenv("SOME_KEY", " \n")
        with pytest.raises(LLMError, match="no key in the environment variable SOME_KEY"):
            await client.chat(ASKED, PARAMS)
        monkeypatch.setenv("SOME_KEY", "a\nb")
        with pytest.raises(LLMError, match="cannot be a key"):
            await client.chat(ASKED, PARAMS)
    assert not server.requests
    for wrong_params in ({"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 2.0}, {"seed": -1}):
        with pytest.raises(DataError):
            ChatParams(**wrong_params)  # type: ignore[arg-type]


def test_one_client_in_one_event_loop_after_another(server: Server) -> None:
    client = client_of(server)
    for _ in range(2):
        server.says(completion())
        assert asyncio.run(client.chat(ASKED, PARAMS)).stop_reason == "stop"


async def test_many_questions_at_once(server: Server) -> None:
    def echo(handler: Any) -> None:
        text = server.requests[-1][2]["messages"][0]["content"]
        data = json.dumps(completion(text)).encode()
        handler.send_response(200)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    server.replies += [echo] * 8
    async with client_of(server) as client:
        answers = await asyncio.gather(
            *(client.chat((user(str(number)),), PARAMS) for number in range(8))
        )
    assert len(answers) == 8 and len(server.requests) == 8


# The local model.


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    path = tiny_models.build("qwen2", tmp_path / "model")
    engine = tiny_models.engine_for(load_base_model(ModelSettings(name=str(path))))
    yield engine
    engine.close()


async def test_the_local_model_answers_through_the_port(engine: Engine) -> None:
    client: LLMClient = EngineLLM(engine)
    params = ChatParams(max_tokens=12, temperature=1.2, top_p=0.9, seed=5)
    drawn = GenerationParams(max_tokens=12, temperature=1.2, top_p=0.9, seed=5)
    wanted: Answer = await asyncio.to_thread(engine.generate, ASKED, drawn)
    answer = await client.chat(ASKED, params)
    assert answer.message == assistant(wanted.text) and answer.stop_reason == "length"
    assert (answer.prompt_tokens, answer.completion_tokens) == (wanted.prompt_tokens, 12)
    assert answer.model == client.model == engine.base.name
    assert "".join([piece async for piece in client.stream(ASKED, params)]) == wanted.text
    engine.activate(tiny_models.random_adapter(engine.base, 1), "one")
    pinned = EngineLLM(engine, engine.prepare_aside(None, None))
    assert (await pinned.chat(ASKED, params)).message == answer.message
    assert (await client.chat(ASKED, params)).message != answer.message
    with pytest.raises(LLMError, match="no question") as caught:
        await client.chat((system("x"),), params)
    assert isinstance(caught.value.__cause__, InputError)
    stream = client.stream(ASKED, ChatParams(max_tokens=400))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    engine.close()
    with pytest.raises(LLMError, match="closed"):
        await client.chat(ASKED, params)


# Completers.


async def test_completers_over_the_local_model(engine: Engine) -> None:
    sampler = engine.sampling_client()
    params = SamplingParams(max_tokens=12, temperature=1.2, seed=5)
    tokens: TokenCompleter = SamplingTokenCompleter(sampler, params)
    prompt = ModelInput.of(engine.renderer.generation_prompt(ASKED))
    sample = await tokens.complete(prompt)
    assert sample == (await sampler.sample(prompt, params))[0]
    messages: MessageCompleter = SamplingMessageCompleter(sampler, engine.renderer, params)
    drawn = GenerationParams(max_tokens=12, temperature=1.2, seed=5)
    wanted = await asyncio.to_thread(engine.generate, ASKED, drawn)
    assert await messages.complete(ASKED) == assistant(wanted.text)
    over: MessageCompleter = LLMMessageCompleter(
        EngineLLM(engine), ChatParams(max_tokens=12, temperature=1.2, seed=5)
    )
    assert await over.complete(ASKED) == assistant(wanted.text)
    with pytest.raises(InputError):
        await messages.complete((system("x"),))
    with pytest.raises(SamplingError):
        await tokens.complete(ModelInput.of(()))


async def test_a_completed_message_ends_at_the_renderers_stop_text(tmp_path: Path) -> None:
    path = tiny_models.build("qwen2", tmp_path / "model", chat_template=None)
    engine = tiny_models.engine_for(load_base_model(ModelSettings(name=str(path))))
    try:
        renderer = engine.renderer
        assert renderer.stop_texts
        ids = engine.base.tokenizer(" Me.\nUser: And you?")["input_ids"]
        assert renderer.parse(ids).message == assistant("Me.")
        assert as_far_as("One. Two. Three.", (" Two", "Three")) == "One."
        completer = SamplingMessageCompleter(
            engine.sampling_client(), renderer, SamplingParams(max_tokens=8)
        )
        wanted = await asyncio.to_thread(engine.generate, ASKED, GenerationParams(max_tokens=8))
        assert await completer.complete(ASKED) == assistant(wanted.text)
    finally:
        engine.close()


async def test_a_message_completer_over_a_server(server: Server) -> None:
    server.says(completion())
    async with client_of(server) as client:
        completer: MessageCompleter = LLMMessageCompleter(client, PARAMS)
        assert await completer.complete(ASKED) == assistant("It is me. é")


def test_the_embedded_model_completes(embedded_model: BaseModel) -> None:
    engine = tiny_models.engine_for(embedded_model)
    try:
        completer = SamplingMessageCompleter(
            engine.sampling_client(), engine.renderer, SamplingParams(max_tokens=60)
        )
        question = (user("What is the capital of France?"),)
        message = asyncio.run(completer.complete(question))
        assert message == assistant(engine.generate(question, GenerationParams(max_tokens=60)).text)
        assert "Paris" in message.content
    finally:
        engine.close()
