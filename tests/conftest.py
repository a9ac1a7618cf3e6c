"""Fixtures of the whole suite: one private Ray session, tiny models, and the optional folder of shared data."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray would have its workers give way to the other test process until they run into their time limits.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # as in cluster.session

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that test processes end together."""
    kinds: dict[Path, set[str]] = {}
    for item in items:
        kinds.setdefault(item.path, set()).update(mark.name for mark in item.iter_markers())
    items.sort(key=lambda item: ("slow" not in kinds[item.path], "ray" not in kinds[item.path]))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray cluster of this test process alone: 8 logical CPUs, gone afterwards."""
    import ray

    folder = tempfile.mkdtemp(prefix="gr-", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=8,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        _temp_dir=folder,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}},
    )
    yield
    from ray import serve

    serve.shutdown()
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def command_here(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`genal-ray` in this process, on the suite's Ray session: starting a private cluster and importing the libraries
    once more would take as long as a small run. `command_here("resume", directory, OPENAI_API_KEY=key)`, with what the
    driver finds in its environment, returns what it says, and fails unless it succeeds."""
    import ray

    from actors.driver import Driver
    from cluster.cli import main
    from cluster.session import Session

    session = Session(address=ray.get_runtime_context().gcs_address, logs=None)
    monkeypatch.setattr("cluster.launch._cluster", lambda *_: nullcontext(session))
    monkeypatch.setattr("cluster.compare._session", lambda *_: nullcontext(session))

    def command(*words: str, **environment: str) -> str:
        class DriverThere(Driver):
            def __init__(self, *arguments: str) -> None:
                os.environ.update(environment)
                super().__init__(*arguments)

        monkeypatch.setattr("actors.driver.Driver", DriverThere)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        code, said = main(words), capsys.readouterr()
        assert code == 0, said.out + said.err
        return said.out + said.err

    return command


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data sets and a small generator, where the checkout has them beside it."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared with real data sets")
    return SHARED


@pytest.fixture(scope="session")
def minilm() -> Path:
    from genal_ray.paths import minilm_path

    return minilm_path()


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of 0.5M parameters with tied embeddings, and a byte-level tokenizer."""
    return make_tiny_lm(tmp_path_factory.mktemp("lm") / "tied", tied=True)


@pytest.fixture(scope="session")
def tiny_lm_untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_lm(tmp_path_factory.mktemp("lm") / "untied", tied=False)


def make_tiny_lm(folder: Path, *, tied: bool, seed: int = 0, context: int = 1024) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    corpus = ["Based on the following examples of movie reviews, come up with a new example:\nExample 1: a good film"]
    tokenizer.train_from_iterator(corpus * 4, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder
