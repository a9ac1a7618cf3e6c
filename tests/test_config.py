"""Configurations: every mistake is answered with its place, what was expected and what to do."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genal_ray.config import load_config, parse_config
from genal_ray.config_yaml import dump, read_document
from genal_ray.errors import UserError
from genal_ray.store import RunDirectory
from genal_ray.validation import InvalidValues, Problem

REPOSITORY = Path(__file__).resolve().parent.parent

MINIMAL = """\
task:
  domain: movie reviews
data:
  source: nyu-mll/glue
student:
  model: minilm
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> str:
        (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "run.yaml")

    return write


def message(source: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(source, overrides)
    return str(caught.value)


def test_minimal_configuration_is_complete(write: Any) -> None:
    config = load_config(write(MINIMAL))
    assert (config.student.epochs, config.acquisition.name, config.annotators.real.name) == (3, "signal", "hidden")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("student.learning_rat=1", "student.learning_rat: unknown key; did you mean 'learning_rate'?"),
        ("studnt.model=x", "studnt: unknown key; did you mean 'student'?"),
        ("max_tokens=3", "max_tokens: unknown key; did you mean 'generator.max_tokens'?"),
        ("learner.lora.rnk=3", "learner.lora.rnk: unknown key; did you mean 'rank'?"),
        ("learner.kl.coeficient=3", "learner.kl.coeficient: unknown key; did you mean 'coefficient'?"),
        ("acquisition.kk=3", "acquisition.kk: unknown key; did you mean 'k'?"),
        ("acquisition=signl", "unknown acquisition 'signl'; did you mean 'signal'?"),
        ("strategy=my.module:Thing", "cannot load 'my.module:Thing'"),
        ("annotators.real=collections:OrderedDict", "is not a Annotator: derive it from"),
        ("task.kind=text_pairs", "unknown task 'text_pairs'; did you mean 'text_pair'?"),
        ("task.options.first_nam=Q", "first_nam: unknown key"),
        ("student.epochs=true", "student.epochs: expected a number, got true"),
        ("student.epochs='3'", 'student.epochs: expected a number, got "3"'),
        ("student.min_steps=2.5", "student.min_steps: expected a whole number, got 2.5"),
        ("student.min_steps=0", "student.min_steps: must be at least 1, got 0"),
        ("student.learning_rate=.inf", "student.learning_rate: expected a finite number"),
        ("student.warm_start=yes", 'student.warm_start: expected true or false, got "yes"'),
        ("student.model=7", "student.model: expected text, got 7"),
        ("student=7", "student: expected a section of keys, got 7"),
        ("scorer.encoding=clss", "expected one of cls, mean, pooler, got \"clss\"; did you mean 'cls'?"),
        ("data.pool_size=1.5", "data.pool_size: a share is at most 1.0; write a count as a whole number"),
        ("data.pool_size=0", "data.pool_size: expected a share such as 0.1 or a count such as 67, got 0"),
        ("data.pool_size=true", "data.pool_size: expected a share such as 0.1 or a count such as 67, got True"),
        ("budget.per_round=-0.1", "budget.per_round: expected a share such as 0.1 or a count such as 67"),
        ("task.labels=[a, a]", "every name may stand there once"),
        ("task.labels=a", 'task.labels: expected a list, got "a"'),
        ("task.labels=[a]", 'task.labels: expected at least two classes, got a'),
        ("task.domain=''", "task.domain: expected at least 1 character"),
        ("name=a/b", "name: must match"),
        ("data.source=null", "data.source: missing (hub name or local folder)"),
        ("generator.max_tokens=9", "generator.model: missing (hub name or local folder of a causal language model)"),
        ("learner.lora.target_modules=7", "expected 'all-linear' or a list of module names, got 7"),
    ],
)
def test_wrong_setting_is_explained(write: Any, setting: str, expected: str) -> None:
    text = message(write(MINIMAL), setting)
    assert expected in text
    assert f"--set {setting}" in text
    assert not any(jargon in text for jargon in ("Input should", "pydantic", "Value error", "[type="))


def test_line_of_the_mistake_is_named(write: Any) -> None:
    path = write(MINIMAL + "  epoch: 3\nscorer:\n  num_actors: 0\n")
    text = message(path)
    assert f"{path}, line 7: student.epoch: unknown key; did you mean 'epochs'?" in text
    assert f"{path}, line 9: scorer.num_actors: must be at least 1, got 0" in text


def test_missing_value_says_how_to_give_it(write: Any) -> None:
    text = message(write(MINIMAL), "annotators.synthetic=classifier")
    assert "annotators.synthetic.path: missing" in text
    assert "--set annotators.synthetic.path=..." in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINIMAL + "seed: 1\nseed: 2\n", "line 8: this is not YAML: the key 'seed' is given twice"),
        (MINIMAL + "scorer: [1\n", "line 8: this is not YAML"),
        ("- a\n", "expected sections such as 'task:' and 'data:', found a list"),
        ("", "found nothing"),
    ],
)
def test_broken_yaml_is_named_by_line(write: Any, text: str, expected: str) -> None:
    assert expected in message(write(text))


def test_file_that_is_not_utf8_is_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"name: a\ntask: {domain: caf\xe9}\n")
    assert "line 2: this is not UTF-8" in message(str(tmp_path / "run.yaml"))


def test_unknown_preset_gets_a_suggestion() -> None:
    assert "did you mean 'sst2-cpu'?" in message("sst2_cpu")


@pytest.mark.parametrize(
    ("raw", "value"),
    [("1e-6", 1e-6), ("5e-5", 5e-5), ("2", 2.0), (".5", 0.5)],
)
def test_overrides_read_numbers(write: Any, raw: str, value: float) -> None:
    assert load_config(write(MINIMAL), [f"student.learning_rate={raw}"]).student.learning_rate == value


def test_overrides_read_lists_null_and_words(write: Any) -> None:
    config = load_config(
        write(MINIMAL),
        ["task.labels=[yes, no]", "learner.lora.rank=4", "acquisition.k=3", "student.warm_start=true", "data.subset="],
    )
    assert config.task.labels == ("yes", "no")
    assert config.learner.lora is not None
    assert config.learner.lora.rank == 4
    assert config.acquisition.model_dump()["k"] == 3
    assert config.student.warm_start
    assert config.data.subset is None
    assert load_config(write(MINIMAL), ["learner.lora.rank=4", "learner.lora=null"]).learner.lora is None


@pytest.mark.parametrize("setting", ["student.epochs", "=3", "student..epochs=3", "student.epochs=[1", "seed.x=1"])
def test_unreadable_override_is_refused(write: Any, setting: str) -> None:
    assert "--set" in message(write(MINIMAL + "seed: 3\n"), setting)


def test_integer_keys_may_name_labels(write: Any) -> None:
    config = load_config(write(MINIMAL), ["data.label_names={0: negative, 1: positive}"])
    assert config.data.label_names == {"0": "negative", "1": "positive"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], "annotators.synthetic: missing: texts are written"),
        (
            ["annotators.synthetic=hidden", "generator.max_tokens=64", "generator.max_model_len=64"],
            "generator.max_tokens: must be below generator.max_model_len",
        ),
        (
            ["annotators.synthetic=hidden", "generator.top_p=0.9"],
            "generator.top_p: must be 1 while learner.name is ppo",
        ),
        (["generator.num_gpus=1.5"], "generator.num_gpus: expected 0, a share below 1, or a whole number of GPUs"),
        (["scorer.num_gpus=2"], "scorer.num_gpus: must be at most 1"),
        (["student.num_gpus=0.5", "student.num_workers=2"], "student.num_gpus: must be 0 or 1 with 2 workers"),
        (["learner.num_gpus=0.5", "learner.num_workers=2"], "learner.num_gpus: must be 0 or 1 with 2 workers"),
        (
            [
                *("annotators.synthetic=hidden", "generator.weight_transfer=ipc", "learner.num_gpus=0.4"),
                *("generator.num_gpus=0.4", "generator.num_replicas=2"),
            ],
            "generator.weight_transfer: ipc needs shares of one GPU for all of them, got 2 replicas",
        ),
    ],
)
def test_parts_have_to_fit_together(write: Any, settings: list[str], expected: str) -> None:
    assert expected in message(write(MINIMAL), "generator.model=x", *settings)


def test_relative_local_paths_become_absolute(write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    config = load_config(write(MINIMAL), ["data.source=./data"])
    assert config.data.source == str(tmp_path / "data")
    assert load_config(write(MINIMAL)).data.source == "nyu-mll/glue"
    files = load_config(write(MINIMAL), ["data.source=null", "data.train=./a.csv", "data.evaluation=/b.csv.gz"]).data
    assert (files.train, files.evaluation) == (str(tmp_path / "a.csv"), "/b.csv.gz")


def test_written_configuration_reads_back_the_same(write: Any, tmp_path: Path) -> None:
    config = load_config(write(MINIMAL), ["task.labels=[yes, '1e5', '0']", "student.learning_rate=1e-6"])
    (tmp_path / "copy.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(str(tmp_path / "copy.yaml")) == config
    store = RunDirectory(tmp_path / "run")
    store.create(config)
    assert store.load_config() == config


def test_dumped_yaml_is_what_it_was() -> None:
    values = {"a": "1e5", "b": "no", "c": 1e-6, "d": "12", "e": 1.0, "f": None, "g": "true", "h": [1, "x: y", "~"]}
    assert read_document(dump(values), "x").values == values


GENERATIVE = ("generator.model=x", "annotators.synthetic=hidden", "warmup.epochs=1")

OPERATION = {
    "generator": "num_replicas=2 tensor_parallel_size=2 max_num_seqs=8 prompts_per_request=8 kv_cache_gib=0.5 "
    "gpu_memory_utilization=0.5 weight_transfer=file num_cpus=2 num_gpus=1 threads=2 timeout_s=9 start_timeout_s=9",
    "student": "num_workers=2 num_cpus=2 num_gpus=1 threads=2 max_failures=9 timeout_s=9",
    "scorer": "num_actors=2 piece_size=64 max_batch_tokens=64 num_cpus=2 num_gpus=1 threads=2 timeout_s=9",
    "learner": "num_workers=2 zero_stage=3 offload_optimizer=true offload_parameters=true micro_batch_size=2 "
    "gradient_checkpointing=true num_cpus=2 num_gpus=1 threads=2 timeout_s=9 max_failures=9",
    "warmup": "micro_batch_size=2 gradient_checkpointing=true num_cpus=2 num_gpus=1 threads=2 timeout_s=9",
}
"""Section -> what may change while a run is stopped, with other values than the defaults."""

REMEDIES = (
    *("learner.timeout_s", "learner.micro_batch_size", "learner.gradient_checkpointing", "learner.zero_stage"),
    *("learner.max_failures", "learner.num_workers", "learner.num_cpus", "learner.num_gpus"),
    *("learner.offload_optimizer", "learner.offload_parameters"),
    *("student.timeout_s", "student.max_failures", "student.num_workers", "student.num_cpus", "student.num_gpus"),
    *("generator.timeout_s", "generator.start_timeout_s", "generator.tensor_parallel_size", "generator.num_gpus"),
    *("generator.kv_cache_gib", "generator.gpu_memory_utilization", "generator.weight_transfer"),
    *("generator.num_cpus", "generator.num_replicas"),
    *("scorer.timeout_s", "scorer.num_actors", "scorer.num_cpus", "scorer.num_gpus"),
    *("warmup.timeout_s", "warmup.micro_batch_size", "warmup.gradient_checkpointing"),
    *("warmup.num_cpus", "warmup.num_gpus"),
)
"""Resources, portions and timeouts that errors of a run tell the user to change."""


@pytest.fixture
def begun(write: Any, tmp_path: Path) -> Path:
    """The config.yaml of a run."""
    store = RunDirectory(tmp_path / "run")
    store.create(load_config(write(MINIMAL), GENERATIVE))
    return store.config_file


def edit(file: Path, *settings: str) -> None:
    """As by hand: the first line, which has the fingerprint, stays."""
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    file.write_text(f"{first}\n{load_config(str(file), settings).to_yaml()}", encoding="utf-8")


@pytest.mark.parametrize("section", OPERATION)
def test_a_stopped_run_goes_on_with_other_resources_portions_and_timeouts(begun: Path, section: str) -> None:
    settings = [f"{section}.{setting}" for setting in OPERATION[section].split()]
    before = RunDirectory(begun.parent).load_config()
    edit(begun, *settings)
    after = RunDirectory(begun.parent).load_config()
    part = getattr(after, section)
    changed = {key for key, value in part if value != getattr(getattr(before, section), key)}
    assert changed == type(part).operation == {setting.partition("=")[0] for setting in OPERATION[section].split()}


@pytest.mark.parametrize("key", REMEDIES)
def test_a_remedy_that_an_error_names_may_be_taken(write: Any, key: str) -> None:
    section, _, name = key.partition(".")
    assert name in type(getattr(load_config(write(MINIMAL), GENERATIVE), section)).operation


@pytest.mark.parametrize(
    "setting",
    [
        *("seed=1", "acquisition.k=3", "task.domain=books", "budget.total=9", "reward.floor=-1.0"),
        *("student.batch_size=8", "student.dtype=float32", "scorer.dtype=float32", "scorer.encoding=mean"),
        *("generator.dtype=float32", "generator.max_tokens=8", "generator.engine={enforce_eager: true}"),
        *("learner.batch_size=8", "learner.lora.rank=4", "learner.kl.coefficient=0.1", "warmup.batch_size=32"),
    ],
)
def test_a_stopped_run_does_not_go_on_with_what_changes_its_results(begun: Path, setting: str) -> None:
    edit(begun, setting)
    with pytest.raises(UserError, match=r"was changed after the run began.* timeouts and limits may change"):
        RunDirectory(begun.parent).load_config()


def test_fingerprint_ignores_names_and_places(write: Any) -> None:
    base = load_config(write(MINIMAL)).fingerprint()
    same = load_config(write(MINIMAL), ["name=other", "output_dir=x", "cluster.num_cpus=3"])
    assert same.fingerprint() == base


def test_errors_survive_pickling() -> None:
    error = InvalidValues(Problem(("a", "b"), "wrong"), Problem((), "missing", missing=True))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.problems) == ("a.b: wrong\nmissing", error.problems)


def test_checking_a_configuration_loads_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "datasets", "pyarrow", "pandas", "ray", "vllm")
    code = (
        "import sys; from genal_ray.config import load_config; load_config('demo'); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_values_are_checked_too() -> None:
    with pytest.raises(UserError, match="notebook: student: missing"):
        parse_config({"task": {"domain": "x"}, "data": {"source": "a"}}, "notebook")
