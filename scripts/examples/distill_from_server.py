"""Distillation from a server with the OpenAI API: the student learns to answer as it does.

    python scripts/examples/distill_from_server.py

The teacher here is a few lines of Python behind HTTP, so that the example needs no second model.
Any server that answers POST /v1/chat/completions can take its place; from the shell:

    shammah train distill --data questions.jsonl --teacher http://localhost:8000/v1 \
        --teacher-model NAME --api-key-env MY_KEY
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from shammah import Assistant, Distillation, Paths, Settings

HOURS = {
    "monday": "On Monday the library is closed.",
    "tuesday": "On Tuesday the library is open from 9 to 18.",
    "wednesday": "On Wednesday the library is open from 9 to 13.",
    "thursday": "On Thursday the library is open from 9 to 20.",
    "saturday": "On Saturday the library is open from 10 to 14.",
}


class Teacher(BaseHTTPRequestHandler):
    """Knows when a library is open."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question = request["messages"][-1]["content"].lower()
        said = next((HOURS[day] for day in HOURS if day in question), "I only know the library.")
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = json.dumps({"model": request["model"], "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: what is printed is the result."""


@contextmanager
def served() -> Iterator[str]:
    """The teacher at work, and its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Teacher)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


async def main(home: Path, data: str, steps: int) -> None:
    questions = [f"when is the library open on {day}?" for day in HOURS]
    if not data:
        file = home / "questions.jsonl"
        file.write_text("\n".join(json.dumps({"prompt": each}) for each in questions))
        data = str(file)
    with served() as address:
        recipe = Distillation(
            data=data,
            teacher=address,
            teacher_model="librarian",
            how="answers",
            max_steps=steps,
            evaluate_every=steps,
            learning_rate=4e-3,
            activate=True,
        )
        result = await recipe.run(paths=Paths(home, home))
    print(f"the teacher was asked {result.context.state['asked']} questions")
    print(f"loss {result.metrics['before/loss']:.2f} -> {result.metrics['after/loss']:.3f}")
    student = Assistant(Settings(), Paths(home, home), train=False)
    try:
        for question in [*questions, "is the library open on thursday?"]:
            print(f"> {question}\n  {await student.ask(question).text()}")
            student.clear()
    finally:
        await student.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="", help="rows with a column `prompt`")
    parser.add_argument("--home", type=Path, help="where to work; else a folder that is deleted")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = options.home or Path(temporary)
        asyncio.run(main(Paths(home, home).ensure().data, options.data, options.steps))
