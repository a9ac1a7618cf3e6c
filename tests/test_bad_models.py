"""Bad models, annotators and templates through the command line: exit code 2, the place, and what to do.

No weights are loaded here, none of the models' code is run, and nothing starts Ray.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import PLAN, PWNED, Case, Make, all_of, case, check, file

from genal_ray.paths import minilm_path

Spoil = Callable[[Path], object]
"""Changes a model's folder."""

SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def encoder(*spoils: Spoil, to: str = "model") -> Make:
    """The folder of an encoder, its weights a few bytes: nobody loads them before they are found to be whole."""

    def make(folder: Path) -> None:
        (folder / to).mkdir()
        for name in SMALL:
            shutil.copy(minilm_path() / name, folder / to / name)
        weights(WHOLE)(folder / to)
        for spoil in spoils:
            spoil(folder / to)

    return make


def causal(*spoils: Spoil) -> Make:
    """The folder `model` of a language model."""
    changes = configured(model_type="qwen2", architectures=["Qwen2ForCausalLM"], max_position_embeddings=1024)
    return encoder(changes, *spoils)


def classifier(*spoils: Spoil, **changes: Any) -> Make:
    names = {"0": "bad", "1": "good"}
    values = {"architectures": ["BertForSequenceClassification"], "id2label": names, **changes}
    return all_of(causal(), encoder(configured(**values), *spoils, to="annotator"))


def linear(content: str) -> Make:
    return all_of(causal(), file("annotator/config.json", content), file("annotator/model.safetensors", WHOLE[:-1]))


WHOLE = b"\x40" + 7 * b"\0" + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(64) + 4 * b"\0"


def configured(**changes: Any) -> Spoil:
    """config.json has these values; None takes a key away."""

    def change(folder: Path) -> None:
        values = {**json.loads((folder / "config.json").read_text()), **changes}
        (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    return change


def without(pattern: str) -> Spoil:
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def wrote(name: str, content: str | bytes) -> Spoil:
    return file(name, content)


def weights(content: bytes) -> Spoil:
    return file("model.safetensors", content)


class _Command:
    """Unpickled, it writes a file."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path(PWNED),)  # type: ignore[return-value]


def pickled(folder: Path) -> None:
    import torch

    without("*.safetensors")(folder)
    torch.save({"weight": _Command()}, folder / "pytorch_model.bin")


def own_code(kind: str, *, model_type: str | None = "homemade") -> Spoil:
    """The model comes with Python code, which leaves a trace when it is run."""
    code = f"from pathlib import Path\nPath({PWNED!r}).touch()\nclass Own: pass\n"
    values = {"auto_map": {kind: "code.Own"}, **({} if model_type is None else {"model_type": model_type})}

    def spoil(folder: Path) -> None:
        configured(**values)(folder)
        wrote("code.py", code)(folder)

    return spoil


STUDENT = PLAN + " --set student.model=./model"
WRITES = (
    PLAN + " --set generator.model=./model --set strategy.name=asal --set annotators.synthetic=hidden"
    " --set generator.max_model_len=512"
)
LABELED = WRITES.replace("synthetic=hidden", "synthetic='{name: classifier, path: ./annotator}'")
LINEAR = LABELED.replace("classifier", "linear")
PICKLE = "its weights are a pickle (pytorch_model.bin), which can run code when it is loaded: save the model as"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 90000000\n"
INDEX = json.dumps({"weight_map": {"w": "model-00002-of-00002.safetensors"}})

MODELS = [
    case("no folder", STUDENT, "model: no such folder; did you mean 'modul'?", make=encoder(to="modul")),
    case("a file", PLAN + " --set student.model=./reviews.yaml", "reviews.yaml: no such folder (in"),
    case("no hub", PLAN + " --set student.model=nobody/nothing", "neither a local folder nor a model",
         "Set student.model"),
    case("no config.json", STUDENT, "no config.json in it, so it is not the folder",
         make=encoder(without("config.json"))),
    case("config.json cut off", STUDENT, "config.json is not JSON", make=encoder(wrote("config.json", '{"a":'))),
    case("config.json of a list", STUDENT, "config.json should hold one JSON object",
         make=encoder(wrote("config.json", "[]"))),
    case("config.json too deep", STUDENT, "config.json is not JSON", make=encoder(wrote("config.json", "[" * 99_999))),
    case("config.json of wrong types", STUDENT, "config.json cannot be used", "'hidden_size' expected int, got str",
         make=encoder(configured(hidden_size="many"))),
    case("no tokenizer", STUDENT, "no tokenizer in it: expected tokenizer.json",
         make=encoder(without("tokenizer*"), without("vocab*"))),
    case("tokenizer cut off", STUDENT, "its tokenizer cannot be loaded (expected tokenizer.json",
         make=encoder(wrote("tokenizer.json", '{"version": "1.0"'))),
    case("no weights", STUDENT, "no weights in it: expected model.safetensors", make=encoder(without("*.safetensors"))),
    case("pickled student", STUDENT, "student.model", PICKLE, make=encoder(pickled)),
    case("pickled generator", WRITES, "generator.model", PICKLE, make=causal(pickled)),
    case("pickled annotator", LABELED, "annotator classifier", PICKLE, make=classifier(pickled)),
    case("weights cut off", STUDENT, "model.safetensors was cut off or damaged", "get it again",
         make=encoder(weights(WHOLE[:-1]))),
    case("weights of the generator cut off", WRITES, "generator.model", "model.safetensors was cut off or damaged",
         make=causal(weights(WHOLE[:40]))),
    case("weights of one byte", STUDENT, "model.safetensors was cut off or damaged", make=encoder(weights(b"\x10"))),
    case("a header of petabytes", STUDENT, "model.safetensors was cut off or damaged",
         make=encoder(weights(b"\xff" * 7 + b"\0{}"))),
    case("a pointer of Git LFS", STUDENT, "model.safetensors is a pointer of Git LFS", "`git lfs pull`",
         make=encoder(weights(POINTER.encode()))),
    case("a part of the weights missing", STUDENT,
         "model-00002-of-00002.safetensors, which model.safetensors.index.json",
         make=encoder(wrote("model.safetensors.index.json", INDEX))),
    case("a student's own code", STUDENT, "needs Python code that comes with it", "set student.trust_remote_code=true",
         make=encoder(own_code("AutoConfig"))),
    case("a generator's own code", WRITES, "set generator.trust_remote_code=true", make=causal(own_code("AutoConfig"))),
    case("own code under a known name", WRITES + " --set generator.max_model_len=99999", "has a context of 1024 tokens",
         make=causal(own_code("AutoModelForCausalLM", model_type=None))),
    case("a student that writes", STUDENT,
         "is no encoder or sequence classifier (its config.json says Qwen2ForCausalLM)",
         make=causal()),
    case("a generator that does not", WRITES, "is not a causal language model (its config.json says BertModel)",
         make=encoder()),
    case("an unknown architecture", STUDENT, "config.json cannot be used", "`homemade`",
         make=encoder(configured(model_type="homemade"))),
    case("a context too short", WRITES + " --set generator.max_model_len=4096", "has a context of 1024 tokens: set",
         make=causal()),
    case("texts too long", STUDENT + " --set student.max_length=9999",
         "reads at most 512 tokens: set student.max_length",
         make=encoder()),
    case("an unknown engine argument", WRITES + " --set generator.engine.max_num_batched_tokns=64",
         "did you mean 'max_num_batched_tokens'?", make=causal()),
    case("an engine argument of ours", WRITES + " --set generator.engine.trust_remote_code=true",
         "generator.engine.trust_remote_code is decided by generator.trust_remote_code", make=causal()),
    case("an annotator to be trained from nothing", "train-annotator reviews.yaml --output-dir out --model ./model",
         "student.model model: no such folder"),
    case("an annotator to be trained from a pickle", "train-annotator reviews.yaml --output-dir out --model ./model",
         PICKLE, make=encoder(pickled)),
    case("an annotator into a file", "train-annotator reviews.yaml --output-dir reviews.yaml/out",
         "reviews.yaml is a file; give another one"),
    case("an annotator into other files", "train-annotator reviews.yaml --output-dir data",
         "data is not an empty directory: give another --output-dir"),
    *(
        case(f"an annotator trained for {epochs} epochs",
             f"train-annotator reviews.yaml --output-dir out --model ./model --epochs {epochs}",
             f"student.epochs: {told}")
        for epochs, told in (("0", "must be greater than 0"), ("-5", "must be greater than 0"),
                             ("nan", "expected a number"), ("inf", "expected a number"))
    ),
    case("an annotator of no configuration", "train-annotator nothing.yaml --output-dir out",
         "neither a file nor a preset"),
]  # fmt: skip

ANNOTATORS = [
    case("no folder", LABELED, "annotator classifier: no folder", "genal-ray train-annotator", make=causal()),
    case("an unknown one", WRITES.replace("hidden", "hiden"), "unknown annotator 'hiden'; did you mean 'hidden'?"),
    case("a class too many", LABELED, "knows the labels bad, good, fair, the data has bad, good", "data.label_names",
         make=classifier(id2label={"0": "bad", "1": "good", "2": "fair"})),
    case("no classifier", LABELED, "is not a sequence classifier (config.json says BertModel)",
         make=classifier(architectures=["BertModel"])),
    case("outputs without numbers", LABELED, "id2label of its config.json should give names to the outputs 0, 1, ...",
         make=classifier(id2label={"a": "bad", "b": "good"})),
    case("weights cut off", LABELED, "annotator classifier", "model.safetensors was cut off or damaged",
         make=classifier(weights(WHOLE[:-1]))),
    case("no tokenizer", LABELED, "annotator classifier", "no tokenizer in it",
         make=classifier(without("tokenizer*"), without("vocab*"))),
    case("accuracy in words", LABELED, "annotator.json should hold a number 'accuracy', found 'high'",
         make=classifier(wrote("annotator.json", '{"accuracy": "high"}'))),
    case("a damaged record", LABELED, "annotator.json is not JSON", make=classifier(wrote("annotator.json", b"\xff{"))),
    case("a linear one without files", LINEAR, "annotator 'linear': cannot read", "config.json", make=causal()),
    case("a linear one's configuration", LINEAR, "hashing.buckets: missing", "scripts/train_example_annotator.py",
         make=linear('{"label_names": ["bad", "good"], "hashing": {}}')),
    case("a linear one's weights", LINEAR, "annotator 'linear'", "model.safetensors was cut off or damaged",
         make=linear('{"label_names": ["bad", "good"], "hashing": '
                     '{"buckets": 8, "word_ngrams": 1, "char_ngrams": [3]}}')),
]  # fmt: skip

ASKS = "--set acquisition=random --set strategy=evokd --set llm.model=m --set annotators.synthetic=llm"
PROMPTS = f"prompts show reviews.yaml {ASKS} --set llm.prompts=own"
PLACE = "own/classification/labeling.jinja, line 1: "


def template(text: str | bytes) -> Make:
    """One template of the user's own."""
    return file("own/classification/labeling.jinja", text)


def says(expression: str) -> Make:
    return template(f"{{% block user %}}{expression}{{% endblock %}}")


TEMPLATES = [
    case("no folder", PROMPTS, "llm.prompts: no folder own", "prompts copy DIR"),
    case("broken", PROMPTS, "labeling.jinja, line 3: expected token",
         make=template("{% block user %}\n{{ texts\n{% x %}")),
    case("an unknown variable", PROMPTS, PLACE + "'text' is undefined", "prompts copy DIR", make=says("{{ text }}")),
    case("an unknown variable, before a run", PROMPTS.replace("prompts show reviews", "run reviews"),
         PLACE + "'text' is undef",
         make=says("{{ text }}")),
    case("no blocks", PROMPTS, "labeling.jinja: neither a block system nor a block user", make=template("hello")),
    case("not UTF-8", PROMPTS, "labeling.jinja: UnicodeDecodeError: 'utf-8'", make=template(b"caf\xe9")),
    case("out of the sandbox", PROMPTS, PLACE + "access to attribute '__class__'", "is unsafe",
         make=says("{{ texts.__class__.__mro__ }}")),
    case("another file", PROMPTS, PLACE + "there is no template ../../data/train.jsonl",
         make=says("{% include '../../data/train.jsonl' %}")),
    case("a division by zero", PROMPTS, PLACE + "ZeroDivisionError", make=says("{{ 1 / 0 }}")),
    case("an endless loop", PROMPTS, PLACE + "OverflowError: Range too big",
         make=says("{% for i in range(99999999) %}a{% endfor %}")),
    case("a wrong type", PROMPTS, PLACE + "TypeError", make=says("{{ texts + 1 }}")),
    case("copied onto a file", "prompts copy reviews.yaml",
         "cannot write the templates to reviews.yaml"),
    case("copied twice", "prompts copy own", "exists already: give a new folder", make=says("")),
    case("of no configuration", "prompts show nothing.yaml", "no configuration 'nothing.yaml'"),
]  # fmt: skip


@pytest.mark.parametrize("spoiled", [*MODELS, *ANNOTATORS, *TEMPLATES])
def test_it_is_told(
    spoiled: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check(spoiled, tmp_path, monkeypatch, capsys)
