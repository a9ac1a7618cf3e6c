"""A simulated teacher: an OpenAI-protocol server that answers with real texts instead of a language model's.

    python benchmarks/simulated_teacher.py HIDDEN.jsonl [--error-rate 0.05] [--port 0]

It is NOT a language model, and what it shows is a best case: its texts are real ones, from a part of the data that the
run never sees, and its labels are the data's own but for a set rate of errors.

- analysis: one fixed sentence, which nothing depends on
- hard texts: the hidden texts most like those that the request shows as wrong
- easy texts: those most like the ones shown as right, of the same labels
- texts of a label (direct generation): random ones of that label
- rephrasing (AugGPT): the text itself with a few words dropped and swapped
- labels: the true one, or, for the set share of texts, another

"Like" is by cosine of pretrained MiniLM encodings. A hidden text is handed out once per server. Prints its port.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from genal_ray.inference import StudentModel
from genal_ray.paths import minilm_path
from genal_ray.seeds import derive_seed

MODEL = "simulated-teacher"
SAMPLE = re.compile(
    r'^- (?P<text>".*") is (?P<label>.+?)(?:, the student says (?P<said>.+?))? \(\d+% sure\)$', re.MULTILINE
)
LABEL_ASKED = re.compile(r"^Write \d+ new .* with the label (?P<label>.+?), each different", re.MULTILINE)
SOURCE = re.compile(r'^(?P<text>".*")$', re.MULTILINE)
LABELED = re.compile(r'^Text (?P<number>\d+): (?P<text>".*")$', re.MULTILINE)


@dataclass
class Teacher:
    """The hidden texts, their labels and encodings, and which were handed out."""

    texts: list[str]
    labels: list[str]
    error_rate: float
    model: StudentModel
    encodings: np.ndarray = field(init=False)
    free: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.encodings = self._encode(self.texts)
        self.free = np.ones(len(self.texts), dtype=bool)
        self._label_of = dict(zip(self.texts, self.labels, strict=True))
        self._names = sorted(set(self.labels))

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON value of the reply to a chat request."""
        asked = body["response_format"]["json_schema"]["schema"]["properties"]
        said, rng = body["messages"][-1]["content"], np.random.default_rng(body["seed"])
        if "analysis" in asked:
            return {"analysis": "It misreads texts like those that it got wrong."}
        if "hard" in asked or "easy" in asked:
            # With an analysis the samples are in the question before it.
            shown = said if SAMPLE.search(said) else body["messages"][1]["content"]
            return self._lesson(asked, shown, rng)
        if "texts" in asked:
            return {"texts": self._texts(asked["texts"]["maxItems"], said, rng)}
        return {found["number"]: self.label(json.loads(found["text"])) for found in LABELED.finditer(said)}

    def label(self, text: str) -> str:
        """The label of a text, the same each time it is asked."""
        true = self._label_of.get(text) or self._nearest_label(text)
        draw = np.random.default_rng(derive_seed("label", text))
        if draw.random() >= self.error_rate:
            return true
        return str(draw.choice([name for name in self._names if name != true]))

    def _lesson(self, asked: dict[str, Any], shown: str, rng: np.random.Generator) -> dict[str, Any]:
        samples = [(json.loads(m["text"]), m["said"] is None) for m in SAMPLE.finditer(shown)]
        written: dict[str, list[str]] = {}
        for tag, items in asked.items():
            models = [text for text, right in samples if right == (tag == "easy")] or [text for text, _ in samples]
            written[tag] = self._like(models, items["maxItems"], rng)
        return written

    def _texts(self, count: int, said: str, rng: np.random.Generator) -> list[str]:
        label = LABEL_ASKED.search(said)
        if label is not None:
            of_label = np.array([name == label["label"] for name in self.labels])
            return self._take(rng.permutation(np.flatnonzero(self.free & of_label))[:count])
        source = SOURCE.search(said)
        assert source is not None, "a rephrasing shows its text"
        return [_shuffled(json.loads(source["text"]), rng) for _ in range(count)]

    def _like(self, models: list[str], count: int, rng: np.random.Generator) -> list[str]:
        """In turns over `models`, the most similar text that is free; random ones where there is no model."""
        chosen: list[str] = []
        similar = self._encode(models) @ self.encodings.T if models else np.zeros((1, len(self.texts)))
        for i in range(count):
            scores = np.where(self.free, similar[i % len(similar)] + 1e-6 * rng.random(len(self.texts)), -np.inf)
            chosen += self._take([int(scores.argmax())])
        return chosen

    def _take(self, rows: Any) -> list[str]:
        self.free[rows] = False
        return [self.texts[row] for row in rows]

    def _nearest_label(self, text: str) -> str:
        return self.labels[int((self.encodings @ self._encode([text])[0]).argmax())]

    def _encode(self, texts: list[str]) -> np.ndarray:
        encodings = self.model.predict(texts).encodings
        return encodings / np.linalg.norm(encodings, axis=1, keepdims=True)


def _shuffled(text: str, rng: np.random.Generator) -> str:
    """A tenth of the words dropped and two neighbours swapped (random deletion and swap of Wei and Zou 2019)."""
    words = text.split()
    kept = [word for word in words if len(words) < 4 or rng.random() > 0.1] or words
    if len(kept) > 2:
        i = int(rng.integers(len(kept) - 1))
        kept[i], kept[i + 1] = kept[i + 1], kept[i]
    return " ".join(kept)


async def serve(teacher: Teacher, port: int) -> None:
    from aiohttp import web

    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        text = json.dumps(teacher.answer(body), ensure_ascii=False)  # one after the other
        tokens = sum(len(message["content"]) for message in body["messages"]) // 4, len(text) // 4  # 4 characters each
        completion = {
            "id": "s",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
        }
        return web.json_response(completion)

    async def models(request: web.Request) -> web.Response:
        listed = [{"id": MODEL, "object": "model", "created": 0, "owned_by": "benchmarks"}]
        return web.json_response({"object": "list", "data": listed})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hidden", type=Path, help="JSON lines with text and label that the run never sees")
    parser.add_argument("--error-rate", type=float, default=0.05, help="share of wrong labels")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.hidden.read_text(encoding="utf-8").splitlines()]
    teacher = Teacher(
        texts=[" ".join(row["text"].split()) for row in rows],
        labels=[row["label"] for row in rows],
        error_rate=options.error_rate,
        model=StudentModel.load(str(minilm_path()), encoding="mean", max_length=64),
    )
    asyncio.run(serve(teacher, options.port))


if __name__ == "__main__":
    main()
