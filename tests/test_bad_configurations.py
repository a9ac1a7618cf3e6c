"""Bad configurations, overrides, resources and addresses through the command line: exit code 2, the place, the remedy.

Nothing here starts Ray.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_inputs import CONFIG, PLAN, PWNED, Case, Make, case, check, config


def added(text: str) -> Make:
    """The eighth line, and those after it."""
    return config(CONFIG + text)


def bomb(depth: int, *, name: str) -> str:
    """YAML in which the section `name` stands for 10**depth words ("billion laughs")."""
    levels = ["l0: &l0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    levels += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, depth)]
    return "\n".join([*levels, f"{name}: *l{depth - 1}"]) + "\n"


AT_8 = "reviews.yaml, line 8: "
NO_YAML = AT_8 + "this is not YAML: "
COMMAND = f"!!python/object/apply:os.system [touch {PWNED}]"

FILES = [
    case("unknown key", PLAN, AT_8 + "sed: unknown key; did you mean 'seed'?", make=added("sed: 1\n")),
    case("wrong type", PLAN, AT_8 + 'seed: expected a whole number, got "two"', make=added("seed: two\n")),
    case("not a number", PLAN, AT_8 + "keep_last: expected a whole number, got NaN", make=added("keep_last: .nan\n")),
    case("out of range", PLAN, AT_8 + "seed: must be at least 0, got -1", make=added("seed: -1\n")),
    case("a section missing", PLAN, "reviews.yaml: student: missing", "with --set student=",
         make=config(CONFIG.replace("student", "#"))),
    case("parts that contradict", PLAN, AT_8 + "selection.mix: must be score with badge, got fixed",
         make=config(CONFIG.replace("entropy", "badge") + "selection: {mix: fixed}\ngenerator: {model: g}\n")),
    case("a best of n of batches", PLAN, "reviews.yaml, line 6: acquisition: badge chooses whole batches",
         make=config(CONFIG.replace("entropy", "badge") + "strategy: best_of_n\ngenerator: {model: g}\n")),
    case("an offload that DeepSpeed ignores", PLAN, AT_8 + "learner.offload_parameters: needs learner.zero_stage 3",
         make=added("learner: {offload_parameters: true, zero_stage: 2}\n")),
    case("a penalty that cannot adapt", PLAN, AT_8 + "learner.kl.coefficient: must be above 0 with adaptive",
         make=added("learner: {kl: {adaptive: true, coefficient: 0}}\n")),
    case("a warm-up of a generator that converses", PLAN + " --set warmup.epochs=1", "--set warmup.epochs=1",
         "warmup: must be null: warmup is for strategies that prompt the generator, and evokd converses",
         make=added("strategy: evokd\nannotators: {synthetic: llm}\nllm: {backend: generator}\ngenerator: {model: g}")),
    case("a name that leads elsewhere", PLAN, AT_8 + "name: must match", make=added("name: ../../etc\n")),
    case("an empty label", PLAN, "task.labels: a name is one line of text and not empty, got ' '",
         make=config(CONFIG.replace("reviews}", "reviews, labels: [good, ' ']}"))),
    case("a label of two lines", PLAN, "a name is one line of text", r"good\nbad",
         make=config(CONFIG.replace("reviews}", r'reviews, labels: ["good\nbad", bad]}'))),
    case("an open bracket", PLAN, "reviews.yaml, line 9: this is not YAML: expected", make=added("seed: [1\n")),
    case("a tab", PLAN, "reviews.yaml, line 9: this is not YAML: found character", make=added("llm:\n\tmodel: m\n")),
    case("not UTF-8", PLAN, AT_8 + "this is not UTF-8 text: save the file as UTF-8",
         make=config(CONFIG.encode() + b"name: caf\xe9\n")),
    case("UTF-16", PLAN, "reviews.yaml, line 1: this is not UTF-8 text", make=config(CONFIG.encode("utf-16"))),
    case("a NUL", PLAN, NO_YAML + "it holds 0x00", make=added("name: \0\n")),
    case("half of a character", PLAN, NO_YAML + r"'\ud800' is not a valid str", make=added('output_dir: "\\ud800"\n')),
    case("a folder", "plan data", "configuration 'data' is a folder: give a YAML file in it"),
    case("a name that no file can have", "plan " + "x" * 300, "cannot be read: File name too long"),
    case("no such file", "plan review.yaml", "neither a file nor a preset; did you mean 'reviews.yaml'?"),
    case("a key twice", PLAN, NO_YAML + "the key 'budget' is given twice", make=added("budget: {total: 9}\n")),
    case("a list as a key", PLAN, NO_YAML + "a key is not a word", make=added("[a, b]: 1\n")),
    case("billion laughs", PLAN, "reviews.yaml, line 5: this is not YAML",
         "its aliases come to more than 100,000 values",
         make=config(bomb(9, name="laughs") + CONFIG)),
    case("billion laughs in a key that there is", PLAN, "its aliases come to more than 100,000 values",
         make=config(bomb(9, name="llm") + CONFIG)),
    case("an alias of itself", PLAN, NO_YAML + "an alias stands within what it stands for",
         make=added("llm: &a {model: *a}\n")),
    case("a merge of nothing", PLAN, NO_YAML + "expected a mapping", make=added("<<: 3\n")),
    case("a Python object", PLAN, NO_YAML + "could not determine a constructor for the tag", "os.system",
         make=added(f"name: {COMMAND}\n")),
    case("a Python name", PLAN, NO_YAML, "python/name:os.system", make=added("name: !!python/name:os.system ''\n")),
    case("a tag of one's own", PLAN, NO_YAML, "'!include'", make=added("name: !include other.yaml\n")),
    case("a tag and a wrong value", PLAN, NO_YAML + "'x' is not a valid int", make=added("seed: !!int x\n")),
    case("a date", PLAN, NO_YAML, "timestamp", make=added("name: !!timestamp 2020-01-01\n")),
    case("two documents", PLAN, NO_YAML + "but found another document", make=added("---\nseed: 1\n")),
    case("nested too deeply", PLAN, "reviews.yaml", "nested too deeply",
         make=added("name: " + "[" * 2000 + "]" * 2000)),
    case("a number of 5000 digits", PLAN, NO_YAML + "'9999", "is not a valid int", make=added(f"seed: {'9' * 5000}\n")),
    case("a list, not sections", PLAN, "expected sections such as 'task:' and 'data:', found a list",
         make=config("- task\n")),
    case("an empty file", PLAN, "reviews.yaml: expected sections", "found nothing", make=config("")),
]  # fmt: skip

OVERRIDES = [
    case("no value", PLAN + " --set seed", "--set 'seed': expected key=value, such as generator.max_tokens=48"),
    case("an open bracket", PLAN + " --set 'seed=[1'", "--set 'seed=[1': '[1' is not a YAML value",
         "is quoted: '\"[1\"'"),
    case("unknown key", PLAN + " --set student.epoch=1", "--set student.epoch=1", "did you mean 'epochs'?"),
    case("through a plain value", PLAN + " --set seed=1 --set seed.y=1", "'seed' is the value 1, not a section"),
    case("into a list", PLAN + " --set task.labels.0=x", 'task.labels: expected a list, got {"0": "x"}'),
    case("a Python object", PLAN + f" --set 'name={COMMAND}'",
         "is not a YAML value (could not determine a constructor"),
    case("two documents", PLAN + " --set 'seed=1\n---\n2'", "is not a YAML value"),
    case("an alias of itself", PLAN + " --set 'llm=&a {model: *a}'", "an alias stands within what it stands for"),
    case("billion laughs", PLAN + " --set 'seed=" + "[" * 2000 + "'", "is not a YAML value", "nested too deeply"),
    case("a plug-in that is none", PLAN + " --set strategy=os:system", "'os:system' is not a Strategy: derive it from"),
    case("a module that there is not", PLAN + " --set strategy=no.such:Thing", "cannot load 'no.such:Thing'"),
    case("the key itself", PLAN + " --set llm='{model: m, api_key_env: sk-1234567890abcdefgh}'",
         "llm.api_key_env: expected the name of an environment variable", "api_key_env: ***"),
    case("a key in an address", PLAN + " --set llm='{model: m, base_url: \"https://me:hushhush@host/v1\"}'",
         "llm.base_url: must not hold a key", "https://***@host"),
    case("a port out of range", PLAN + " --set llm='{model: m, base_url: \"http://127.0.0.1:99999/v1\"}'",
         "llm.base_url: not a URL: Port out of range"),
]  # fmt: skip

LM = "--set generator.model=minilm --set annotators.synthetic=hidden"
FIT = "the run does not fit on this machine:\n- "
ASKS = PLAN + " --set acquisition=random --set strategy=evokd --set annotators.synthetic=llm --set llm.model=m"

PLACES = [
    case("too few CPUs", PLAN + " --set cluster.num_cpus=1 --set scorer.num_cpus=4",
         FIT + "5 logical CPUs are needed but cluster.num_cpus is 1: raise it"),
    case(
        "GPUs",
        PLAN + " --set scorer.num_gpus=1 --set scorer.num_actors=64",
        "64 GPUs are asked for, this machine has",
        "join a cluster with",
    ),
    case("memory", PLAN + " --set scorer.num_actors=100000", "of memory are needed", "fewer actors"),
    case("shared memory", PLAN + " --set cluster.object_store_gib=100000", "of memory are needed", "object_store_gib"),
    case("disk", PLAN + " --set keep_last=10000000", "the run directory needs about", "lower keep_last"),
    case("a long folder for Ray", PLAN + " --set cluster.temp_dir=/tmp/" + "x" * 80,
         "cluster.temp_dir has 85 characters"),
    case("a file for Ray's folder", PLAN + " --set cluster.temp_dir=reviews.yaml",
         FIT + "cluster.temp_dir: reviews.yaml cannot be a folder: reviews.yaml is a file"),
    case("no free memory", "run reviews.yaml --output-dir out", "of memory are needed", "0.0 GiB are free"),
    case("no cluster there", "run reviews.yaml --address 127.0.0.1:1",
         "nothing answers at 127.0.0.1:1: is the cluster up"),
    case("no port", "run reviews.yaml --address head", "--address 'head': expected host:port, or auto"),
    case("a port that is none", "run reviews.yaml --address head:http", "--address 'head:http': expected host:port"),
    case("an empty address", "run reviews.yaml --address ''", "--address '': expected host:port", "leave it out"),
    case("Ray Client", "run reviews.yaml --address ray://head:10001",
         "--address 'ray://head:10001': a run cannot work through Ray Client: start it on a machine of the cluster",
         "host:port of its control store"),
    case("no address in the configuration", PLAN + " --set cluster.address=head", "cluster.address 'head': expected"),
    case("a comparison on no cluster", "compare reviews.yaml --methods random --address head --out out",
         "--address 'head': expected host:port"),
    case("no key", ASKS + " --set llm.api_key_env=NO_SUCH_KEY",
         "the environment variable NO_SUCH_KEY is not set: export"),
    case("a key with a line break", ASKS + " --set llm.api_key_env=BROKEN_KEY", "what BROKEN_KEY holds is no key"),
    case("nothing at the endpoint", ASKS + " --set llm.api_key_env=GOOD_KEY --set llm.base_url=http://127.0.0.1:1/v1",
         "nothing answers at http://127.0.0.1:1/v1/: is it up? set llm.base_url or OPENAI_BASE_URL"),
    case("no address of the endpoint", ASKS + " --set llm.api_key_env=GOOD_KEY",
         "OPENAI_BASE_URL: expected http://HOST/v1 or https://HOST/v1, got 'me:hushhush@host'"),
]  # fmt: skip

USAGE = [
    case("no command", "rnu", "'rnu'", "See: genal-ray --help"),
    case("no configuration", "run", "CONFIG|PRESET"),
    case("an unknown option", PLAN + " --sett seed=1", "--sett", "--set"),
    case("doctor of something", "doctor reviews.yaml", "unexpected extra argument"),
    case("no seeds", "compare reviews.yaml --methods random --seeds 0", "'--seeds'", "greater than or equal to 1"),
    case("seeds in words", "compare reviews.yaml --methods random --seeds two", "'--seeds'", "a valid integer"),
    case("no method", "compare reviews.yaml --out out", "no methods: name some with --methods"),
    case("an unknown method", "compare reviews.yaml --methods randm --out out",
         "unknown method 'randm'; did you mean 'random'?"),
    case("a method that leads elsewhere", "compare reviews.yaml --method ../../x:seed=1 --out out",
         "expected NAME:key=value"),
    case("a method's unknown key", "compare reviews.yaml --method mine:acquisition.kk=1 --out out", "method mine",
         "unknown key"),
    case("a comparison of no configuration", "compare nothing.yaml --methods random --out out",
         "neither a file nor a preset"),
]  # fmt: skip


@pytest.mark.parametrize("spoiled", [*FILES, *OVERRIDES, *PLACES, *USAGE])
def test_it_is_told(
    spoiled: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BROKEN_KEY", "hushhush\n")
    monkeypatch.setenv("GOOD_KEY", "x")
    monkeypatch.setenv("OPENAI_BASE_URL", "me:hushhush@host")
    if spoiled.name == "no free memory":
        monkeypatch.setattr("cluster.machine.available_memory", lambda: 0)
    check(spoiled, tmp_path, monkeypatch, capsys)
