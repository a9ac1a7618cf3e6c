"""A simulated teacher: an OpenAI-protocol server that answers with real texts instead of a language model's.

    python benchmarks/simulated_teacher.py HIDDEN.jsonl [--error-rate 0.05] [--port 0]

It is NOT a language model, and what it shows is a best case: its texts are real ones, from a part of the data that the
run never sees, and its labels are the data's own but for a set rate of errors.

- analysis: one fixed sentence, which nothing depends on
- hard texts: for each label, or type of entity, that one is asked of, of 20 random hidden texts of it the one most
  like a text of it that the request shows as wrong; a random one where none is shown. Never one that is shown, as the
  request says
- easy texts: likewise those most like the ones shown as right
- texts of a label (direct generation): random ones of those that it labels so, errors included; with an entity of a
  type: random ones that have one
- rephrasing (AugGPT): the text itself with some words dropped and swapped, entities left alone
- labels: the true one, or, for the set share of texts, another; of entities, a share is overlooked or of another type

"Like" is by cosine of pretrained MiniLM encodings. An answer follows from the request alone, so that runs may ask side
by side, stop and go on. Prints its port.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from genal_ray.entities import OUTSIDE, words_of
from genal_ray.inference import StudentModel
from genal_ray.labels import EntityLabels
from genal_ray.paths import minilm_path
from genal_ray.seeds import derive_seed

MODEL = "simulated-teacher"
CONSIDERED = 20
"""Texts of a label that the most similar one is chosen from. More of them make the chosen ones more alike, and requests
about the same errors get the same texts."""

QUOTED = r'"(?:[^"\\]|\\.)*"'
CLASSIFIED = re.compile(
    rf"^- (?P<text>{QUOTED}) is (?P<label>{QUOTED})(?P<wrong>, the student says {QUOTED})? \(\d+% sure\)$", re.MULTILINE
)
TAGGED = re.compile(
    r'^- (?P<text>".*")\n  entities: (?P<entities>.*)(?P<wrong>\n  the student says: .*)?$', re.MULTILINE
)
TYPE = re.compile(rf"{QUOTED} \((?P<name>[^()]+)\)")
ASKED = re.compile(rf"^Write \d+ new .* (?:with the label|of the type) (?P<name>{QUOTED}), each ", re.MULTILINE)
OF_TAG = re.compile(r'^- "(?P<tag>hard|easy)": \d+ that .+?: (?P<shares>\d+ with .+)$', re.MULTILINE)
SHARE = re.compile(rf"(?P<count>\d+) with (?:the label|an entity of the type) (?P<name>{QUOTED})")
SOURCE = re.compile(r'^(?P<text>".*")$', re.MULTILINE)
KEPT = re.compile(r"^Keep these words exactly as they are: (?P<words>.*)\.$", re.MULTILINE)
LABELED = re.compile(r'^Text (?P<number>\d+): (?P<text>".*")$', re.MULTILINE)

Told = str | list[dict[str, str]]
"""A class, or entities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenText:
    text: str
    label: Told

    @property
    def kinds(self) -> set[str]:
        return {self.label} if isinstance(self.label, str) else {entity["type"] for entity in self.label}


@dataclass(frozen=True, slots=True)
class Sample:
    """A text that a request shows, with what the student made of it."""

    text: str
    kinds: set[str]
    right: bool


def read_samples(shown: str) -> list[Sample]:
    """Those in the prompts' two forms: of a class, with entities."""
    classified = [(found, {json.loads(found["label"])}) for found in CLASSIFIED.finditer(shown)]
    tagged = [(found, set(TYPE.findall(found["entities"]))) for found in TAGGED.finditer(shown)]
    return [Sample(json.loads(found["text"]), kinds, found["wrong"] is None) for found, kinds in classified + tagged]


def read_shares(said: str) -> dict[str, list[str]]:
    """The label, or type, of each hard and each easy text that a request asks for."""
    return {
        of["tag"]: [
            json.loads(found["name"]) for found in SHARE.finditer(of["shares"]) for _ in range(int(found["count"]))
        ]
        for of in OF_TAG.finditer(said)
    }


def read_hidden(path: Path) -> list[HiddenText]:
    """Rows of text and label, or of tokens and ner_tags."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    if "tokens" not in rows[0]:
        return [HiddenText(text=" ".join(row["text"].split()), label=row["label"]) for row in rows]
    space = EntityLabels(tuple(sorted({tag[2:] for row in rows for tag in row["ner_tags"] if tag != OUTSIDE})))
    texts = [" ".join(row["tokens"]) for row in rows]
    return [
        HiddenText(text=text, label=space.told(space.decode(row["ner_tags"], text), text))
        for text, row in zip(texts, rows, strict=True)
    ]


@dataclass
class Teacher:
    """The hidden texts, their labels and encodings."""

    hidden: Sequence[HiddenText]
    error_rate: float
    model: StudentModel
    encodings: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.encodings = self._encode([item.text for item in self.hidden])
        # Without spaces: a run may split words anew.
        self._rows = {"".join(item.text.split()): row for row, item in enumerate(self.hidden)}
        self._names = sorted({kind for item in self.hidden for kind in item.kinds})
        self._taken_for = [
            {str(self.label(item.text))} if isinstance(item.label, str) else item.kinds for item in self.hidden
        ]

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON value of the reply to a chat request."""
        asked = body["response_format"]["json_schema"]["schema"]["properties"]
        said, rng = body["messages"][-1]["content"], np.random.default_rng(body["seed"])
        if "analysis" in asked:
            return {"analysis": "It misreads texts like those that it got wrong."}
        if "hard" in asked or "easy" in asked:
            # With an analysis the samples are in the question before it.
            shown = "\n".join(m["content"] for m in body["messages"] if m["role"] == "user")
            return self._lesson(asked, shown, read_shares(said), rng)
        if "texts" in asked:
            return {"texts": self._texts(asked["texts"], said, rng)}
        return {found["number"]: self.label(json.loads(found["text"])) for found in LABELED.finditer(said)}

    def label(self, text: str) -> Told:
        """The label of a text, the same each time it is asked, errors included."""
        row = self._row(text)
        known = self.hidden[int(self._similarity([text])[0].argmax()) if row is None else row]
        rng = np.random.default_rng(derive_seed("label", known.text))
        if isinstance(known.label, str):
            return known.label if rng.random() >= self.error_rate else self._other(known.label, rng)
        told = []
        for entity in known.label:
            if rng.random() >= self.error_rate:
                told.append(entity)
            elif len(self._names) > 1 and rng.random() < 0.5:
                told.append({**entity, "type": self._other(entity["type"], rng)})
        return told

    def _row(self, text: str) -> int | None:
        return self._rows.get("".join(text.split()))

    def _other(self, name: str, rng: np.random.Generator) -> str:
        return str(rng.choice([other for other in self._names if other != name]))

    def _lesson(
        self, asked: dict[str, Any], shown: str, shares: dict[str, list[str]], rng: np.random.Generator
    ) -> dict[str, Any]:
        samples = read_samples(shown)
        taken = {self._row(sample.text) for sample in samples}
        written: dict[str, list[Any]] = {}
        for tag, items in asked.items():
            models = [sample for sample in samples if sample.right == (tag == "easy")]
            rows = self._like(models, shares[tag], taken, rng)
            written[tag] = [self._written(self.hidden[row], items) for row in rows]
            taken |= {*rows}
        return written

    def _texts(self, asked: dict[str, Any], said: str, rng: np.random.Generator) -> list[Any]:
        count, of = asked["maxItems"], ASKED.search(said)
        if of is not None:
            name = json.loads(of["name"])
            rows = [row for row, taken_for in enumerate(self._taken_for) if name in taken_for]
            return [self._written(self.hidden[row], asked) for row in rng.permutation(rows)[:count]]
        source, kept = SOURCE.search(said), KEPT.search(said)
        assert source is not None, "a rephrasing shows its text"
        entities = [] if kept is None else json.loads(f"[{kept['words']}]")
        return [shuffled(json.loads(source["text"]), entities, rng) for _ in range(count)]

    def _written(self, item: HiddenText, asked: dict[str, Any]) -> Any:
        """The text, or with its label where that is asked for."""
        fields = asked["items"].get("properties", {})
        keys = [key for key in fields if key != "text"]
        return item.text if not keys else {"text": item.text, keys[0]: self.label(item.text)}

    def _like(
        self, models: Sequence[Sample], names: Iterable[str], taken: Set[int | None], rng: np.random.Generator
    ) -> list[int]:
        """Of each name the row most like a random model of that name; any where there is no such model."""
        scores = self._similarity([model.text for model in models]) if models else np.empty((0, len(self.hidden)))
        chosen: list[int] = []
        for name in names:
            free = [row for row in range(len(self.hidden)) if row not in taken and row not in chosen]
            rows = rng.permutation([row for row in free if name in self.hidden[row].kinds] or free)
            considered = rows[:CONSIDERED]
            like = [row for row, model in enumerate(models) if name in model.kinds]
            chosen.append(int(considered[scores[rng.choice(like), considered].argmax()] if like else considered[0]))
        return chosen

    def _similarity(self, texts: list[str]) -> np.ndarray:
        """Cosines [texts, hidden texts]."""
        return self._encode(texts) @ self.encodings.T

    def _encode(self, texts: list[str]) -> np.ndarray:
        encodings = self.model.predict(texts).encodings
        return encodings / np.linalg.norm(encodings, axis=1, keepdims=True)


def shuffled(text: str, entities: Sequence[str], rng: np.random.Generator) -> str:
    """A fifth of the words dropped and three pairs of neighbours swapped (random deletion and swap of Wei and Zou
    2019), none of them a word of an entity."""
    fixed = {word for entity in entities for word in entity.split()}
    words = words_of(" ".join(text.split()))
    kept = [word for word in words if word in fixed or len(words) < 4 or rng.random() > 0.2] or words
    for _ in range(3):
        places = [i for i in range(len(kept) - 1) if not fixed & {kept[i], kept[i + 1]}]
        if places:
            i = int(rng.choice(places))
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
    parser.add_argument("hidden", type=Path, help="JSON lines that the run never sees")
    parser.add_argument("--error-rate", type=float, default=0.05, help="share of wrong labels, or entities")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    options = parser.parse_args()
    teacher = Teacher(
        hidden=read_hidden(options.hidden),
        error_rate=options.error_rate,
        model=StudentModel.load(str(minilm_path()), encoding="mean", max_length=64),
    )
    asyncio.run(serve(teacher, options.port))


if __name__ == "__main__":
    main()
