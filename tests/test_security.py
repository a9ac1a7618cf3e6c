"""What docs/security.md promises: files are data, texts are data, secrets stay where they are, ports stay at home."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from bad_inputs import PWNED, prepare, reviews, run_here, write_rows
from fakes import make_config
from rich.console import Console
from test_bad_models import causal, encoder, own_code, pickled

import genal_ray
from cluster.cli import main
from cluster.console import PlainView, TerminalView
from genal_ray import methods
from genal_ray.comparison.curves import COLUMNS, Point, write_curves
from genal_ray.comparison.readme import _cell
from genal_ray.config import GeneratorConfig
from genal_ray.errors import UserError
from genal_ray.inference import StudentModel
from genal_ray.redaction import printable
from genal_ray.report import write_report
from genal_ray.stages import Round
from genal_ray.status import RunStatus, State
from genal_ray.store import RunDirectory
from genal_ray.tasks import build_task, numbered_prompt
from genal_ray.types import RoundReport

ROOT = Path(genal_ray.__file__).parents[1]
SOURCES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
    for package in ("genal_ray", "actors", "cluster")
    for path in sorted((ROOT / package).rglob("*.py"))
}

# -- nothing is unpickled, and no code of an input is run --------------------------------------------------------------

UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "_pickle"}
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load", "yaml.unsafe_load", "yaml.full_load",
    "yaml.safe_load", "yaml.load_all", "pd.read_pickle", "os.system", "os.popen", "save_checkpoint", "load_checkpoint",
    "np.load", "numpy.load",
}  # fmt: skip


@cache
def calls() -> tuple[tuple[str, str, ast.Call], ...]:
    """File, dotted name and node of every call in the packages."""
    found = [(file, node) for file, tree in SOURCES.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return tuple((file, ast.unparse(node.func), node) for file, node in found)


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def test_no_module_unpickles_or_evaluates() -> None:
    found = [
        f"{file}: {alias.name}"
        for file, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if {alias.name.partition(".")[0], getattr(node, "module", None) or ""} & UNPICKLERS
    ]
    found += [f"{file}: {name}" for file, name, _ in calls() if name in FORBIDDEN or name.split(".")[-1] in {
        "load_checkpoint", "save_checkpoint", "load_pickle"}]  # fmt: skip
    found += [f"{file}: allow_pickle" for file, _, call in calls() if keywords(call).get("allow_pickle") == "True"]
    found += [f"{file}: shell" for file, _, call in calls() if "shell" in keywords(call)]
    assert found == []
    assert any(name == "yaml.load" for _, name, _ in calls()), "the walk sees what it looks for"


def test_yaml_is_read_by_the_plain_loader_alone() -> None:
    assert {(file, keywords(call).get("Loader")) for file, name, call in calls() if name == "yaml.load"} == {
        ("genal_ray/config_yaml.py", "_Loader")
    }


def test_every_model_is_loaded_from_safetensors() -> None:
    small = ("AutoTokenizer.", "AutoConfig.")
    loads = [(f, n, c) for f, n, c in calls() if n.endswith(".from_pretrained") and not n.startswith(small)]
    assert len(loads) == 4
    assert {(file, keywords(call).get("use_safetensors")) for file, _, call in loads} == {
        (file, "True") for file, _, _ in loads
    }
    from actors.generator_engine import engine_args

    assert engine_args(GeneratorConfig(model="x"), "x")["load_format"] == "safetensors"


def test_a_pickle_beside_a_model_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genal_ray.policy_model import load_lm
    from genal_ray.pretrained import Pretrained

    monkeypatch.chdir(tmp_path)
    encoder(pickled)(tmp_path)
    config = make_config(student={"model": str(tmp_path / "model")})
    with pytest.raises(UserError, match="cannot load a student"):
        StudentModel.load(str(tmp_path / "model"))
    with pytest.raises(UserError, match="cannot be loaded"):
        Pretrained.load(config.student, make_labels(), device())
    (tmp_path / "lm").mkdir()
    causal(pickled)(tmp_path / "lm")
    with pytest.raises(UserError, match="can't be loaded"):
        load_lm(GeneratorConfig(model=str(tmp_path / "lm" / "model")))
    assert not (tmp_path / PWNED).exists()


def make_labels() -> Any:
    from genal_ray.labels import Classes

    return Classes(("bad", "good"))


def device() -> Any:
    import torch

    return torch.device("cpu")


@pytest.mark.parametrize("kind", ["AutoModelForSequenceClassification", "AutoTokenizer"])
def test_code_of_a_model_is_not_run_unasked(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its architecture is a known one, and the preflight has nothing to say."""
    monkeypatch.chdir(tmp_path)

    def spoil(folder: Path) -> None:
        own_code(kind, model_type=None)(folder)
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        tokenizer["auto_map"] = {"AutoTokenizer": ["code.Own", "code.Own"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))

    encoder(spoil)(tmp_path)
    StudentModel.load(str(tmp_path / "model"))
    assert not (tmp_path / PWNED).exists()


def test_the_learners_state_names_files_of_its_own_folder(tmp_path: Path) -> None:
    import torch

    from actors.learner_state import SavedState, ShardWriter

    writer = ShardWriter(tmp_path / "state")
    writer.add("parameter/w", torch.ones(2))
    writer.finish({"num_updates": 1})
    assert sorted(path.suffix for path in (tmp_path / "state").iterdir()) == [".json", ".safetensors"]
    assert list(SavedState(tmp_path / "state")) == ["parameter/w"]
    state = json.loads((tmp_path / "state" / "state.json").read_text())
    (tmp_path / "state" / "state.json").write_text(json.dumps({**state, "files": ["../other.safetensors"]}))
    with pytest.raises(UserError, match="is not a file of this folder"):
        SavedState(tmp_path / "state")


def test_arrow_is_one_that_unpickles_no_extension_types() -> None:
    assert tuple(map(int, pyarrow.__version__.split(".")[:3])) >= (14, 0, 1), "CVE-2023-47248"


def test_serve_starts_without_its_proxy() -> None:
    starts = [(file, keywords(call)) for file, name, call in calls() if name == "serve.start"]
    assert starts
    assert {options.get("proxy_location") for _, options in starts} == {"'Disabled'"}


def test_nothing_else_listens_everywhere() -> None:
    anywhere = re.compile(r"0\.0\.0\.0|\[?::\]?$")
    found = [
        f"{file}: {node.value!r}"
        for file, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and anywhere.fullmatch(node.value)
    ]
    assert found == []


# -- texts are data ----------------------------------------------------------------------------------------------------

HOSTILE = "[bold]x[/bold][link=http://evil.example]y[/link]\x1b]8;;http://evil.example\x07z\x1b[2J\r\u202e\u009b31m"


@pytest.mark.parametrize("terminal", [False, True])
def test_notes_are_neither_markup_nor_escapes(terminal: bool) -> None:
    to = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    view = TerminalView(to) if terminal else PlainView(to)
    status = RunStatus(state=State.RUNNING, round=1, num_rounds=2, num_labels=1, budget=2, notes=(HOSTILE,))
    view.say(HOSTILE)
    view.update(status)
    view.close()
    assert isinstance(to.file, io.StringIO)
    drawn = to.file.getvalue()
    assert "[bold]x[/bold][link=http://evil.example]" in drawn
    assert r"\u001b]8;;http://evil.example\u0007z\u001b[2J\u000d\u202e\u009b31m" in drawn
    assert not re.search("\x1b]|\x07|\u202e|\u009b|\x1b\\[2J", drawn)


def test_printable_text_is_the_same_json() -> None:
    value = {"text": HOSTILE + "\ud800é\n\t"}
    dumped = json.dumps(value, ensure_ascii=False, indent=1)
    assert json.loads(printable(dumped)) == value
    assert printable("zwölf\n\tTexte 👩‍🚀") == "zwölf\n\tTexte 👩‍🚀"


def test_what_a_data_file_holds_is_printed_without_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    rows = [{**row, "text": f"{HOSTILE} {{{{ 7 * 7 }}}} {{domain}} {n}"} for n, row in enumerate(reviews("train", 24))]
    write_rows(tmp_path / "data" / "train.jsonl", rows)
    asks = "llm={model: m}", "annotators.real=llm", "annotators.synthetic=llm", "strategy=evokd"
    capsys.readouterr()
    for form in ([], ["--json"]):
        options = [part for setting in asks for part in ("--set", setting)]
        assert main(["prompts", "show", "reviews.yaml", "--set", "acquisition=random", *options, *form]) == 0
        out = capsys.readouterr().out
        assert "{{ 7 * 7 }} {domain}" in out, "a text is no template"
        assert not re.search("[\x1b\x07\r\u202e\u009b]", out)
    with (tmp_path / "data" / "train.jsonl").open("a") as file:
        file.write(f"{HOSTILE}\n")
    assert main(["plan", "reviews.yaml"]) == 2
    assert not re.search("[\x1b\x07\u202e\u009b]", capsys.readouterr().err)


def test_braces_in_labels_and_texts_stay_as_they_are() -> None:
    task = build_task(make_config(task={"domain": "{label} of {domain}"}).task)
    lines = numbered_prompt(task, ["a {domain} and a {label}\nExample 9: b"], "the {domain}").splitlines()
    assert lines[0].startswith("Based on the following examples of {label} of {domain} with the label the {domain},")
    assert lines[1:] == ["Example 1: a {domain} and a {label} Example 9: b", "New Example:"]


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_labels_names_and_errors_are_text_in_the_report(tmp_path: Path) -> None:
    script = "</script></style><script>alert(1)</script>"
    prepare(tmp_path)
    for split in ("train", "test"):
        rows = [{**row, "label": f"{row['label']} {script}"} for row in reviews(split, 24)]
        write_rows(tmp_path / "data" / f"{split}.jsonl", rows)
    run = run_here(tmp_path, f"data.source={tmp_path / 'data'}", f"task.domain='{script}'", crash_at="student:3")
    (run / "error.log").write_text(f"Traceback\nRunError: {script}\n")
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.text.count(script) >= 3


def test_no_cell_of_a_comparison_is_a_formula(tmp_path: Path) -> None:
    for name in ("=1+1", "+1", "-1", "@SUM(1)"):
        with pytest.raises(UserError):
            methods.parse_method(f"{name}:seed=1")
    point = Point(method="m", seed=0, round=0, num_labels=1, fraction=-0.5, accuracy=1, macro_f1=0, seconds=1)
    write_curves(tmp_path / "curves.csv", [point])
    head, row = (tmp_path / "curves.csv").read_text().splitlines()
    assert head == ",".join(COLUMNS)
    assert all(re.fullmatch(r"m|-?[\d.]*", cell) for cell in row.split(","))
    assert _cell("a | b\nc\x1b[2J") == r"a \| b c\u001b[2J"


# -- paths stay in the run directory -----------------------------------------------------------------------------------


def test_pruning_removes_links_and_follows_none(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path / "run")
    store.create(make_config())
    for number in range(4):
        store.commit(RoundReport(round=number, metrics={"al/num_labels": 1.0}))
    for name in ("a", "b/student", "c"):
        (tmp_path / "others" / name).mkdir(parents=True)
        (tmp_path / "others" / name / "kept").touch()
    rounds = store.path / "rounds"
    (rounds / "0000" / "student").symlink_to(tmp_path / "others" / "a")
    (rounds / "0001").rename(tmp_path / "moved")
    (tmp_path / "moved" / "student").mkdir()
    (rounds / "0001").symlink_to(tmp_path / "moved")
    (rounds / "0002" / "student").mkdir()
    store.prune(keep_last=1)
    assert (tmp_path / "others" / "a" / "kept").exists()
    assert not (rounds / "0000" / "student").is_symlink()
    assert (tmp_path / "moved" / "student").is_dir(), "it does not lie in the run directory"
    assert not (rounds / "0002" / "student").exists()


def test_a_stage_does_not_write_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "kept").touch()
    (tmp_path / "0001").mkdir()
    (tmp_path / "0001" / "student").symlink_to(tmp_path / "others")
    fresh = asyncio.run(Round(tmp_path / "0001").fresh("student"))
    fresh.mkdir()
    assert (tmp_path / "others" / "kept").exists()
    assert not list(fresh.iterdir())
