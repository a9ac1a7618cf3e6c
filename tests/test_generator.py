"""The generator service on real vLLM replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import torch
from conftest import make_tiny_lm
from ray import serve

from actors.generator import MAX_TRANSFERS, GeneratorService
from actors.generator_replica import GenerateRequest
from actors.weight_sender import ReplicaClient
from actors.weights import PolicyRef
from genal_ray.config import GeneratorConfig
from genal_ray.errors import HandOverError, RunError, StalePolicyError, UserError
from genal_ray.llm import LLMError, Message, Reply, Request
from genal_ray.llm.replies import read_json
from genal_ray.llm.template import prompt_token_ids
from genal_ray.types import Completion, PolicyUpdate, Prompt

T = TypeVar("T")
MAX_TOKENS = 12


def make_config(model: Path, **changes: Any) -> GeneratorConfig:
    values: dict[str, Any] = {
        "model": str(model),
        "dtype": "float32",
        "kv_cache_gib": 0.1,
        "max_model_len": 512,
        "max_tokens": MAX_TOKENS,
        "max_num_seqs": 64,
        "temperature": 0.8,
        "timeout_s": 90,
        "start_timeout_s": 240,
    }
    return GeneratorConfig.model_validate(values | changes)


def make_prompts(lengths: list[int], model: Path) -> list[Prompt]:
    """Prompts of exactly so many tokens, all different."""
    tokenizer = load_tokenizer(model)
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    texts = ["".join(alphabet[(i * 7 + j * (j + i)) % 26] for j in range(n)) for i, n in enumerate(lengths)]
    exact = [tokenizer.decode(tokenizer(text)["input_ids"]) for text in texts]
    return [Prompt(id=f"p{i}", text=text, example_ids=(), seed=100 + i) for i, text in enumerate(exact)]


def load_tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def greedy_reference(model: Path, prompts: list[Prompt]) -> list[tuple[int, ...]]:
    """What Hugging Face's own greedy decoding writes."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(model)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    written = []
    for prompt in prompts:
        ids = tokenizer(prompt.text, return_tensors="pt")["input_ids"]
        out = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False, pad_token_id=0
        )
        written.append(tuple(out[0, ids.shape[1] :].tolist()))
    return written


def tokens(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


class Session:
    """A started service, the loop that it lives in, and the policies that tests hand over."""

    def __init__(self, service: GeneratorService, loop: asyncio.AbstractEventLoop, model: Path) -> None:
        self.service = service
        self.model = model
        self._loop = loop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def from_every_replica(self, request: GenerateRequest) -> list[list[Completion]]:
        handle = serve.get_app_handle(self.service.app_name)
        return self.run(handle.broadcast("generate", request).results_async(timeout_s=60))


@pytest.fixture(scope="module")
def session(ray_session: None, tiny_lm: Path) -> Iterator[Session]:
    """Two replicas of the tied model, in fp32. Tests below run in order and move the policy on."""
    loop = asyncio.new_event_loop()
    service = GeneratorService(make_config(tiny_lm, num_replicas=2, prompts_per_request=8), "test-generator")
    loop.run_until_complete(service.start())
    yield Session(service, loop, tiny_lm)
    loop.run_until_complete(service.stop())
    loop.close()


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[PolicyUpdate]:
    """Versions 1, 2 and 3 with weights of their own."""
    folder = tmp_path_factory.mktemp("policies")
    return [
        PolicyUpdate(version=v, path=str(make_tiny_lm(folder / str(v), tied=True, seed=v)), metrics={})
        for v in (1, 2, 3)
    ]


@pytest.mark.ray
def test_completions_are_in_order_and_complete(session: Session) -> None:
    prompts = make_prompts([10 + i for i in range(30)], session.model)
    seen: list[tuple[int, int]] = []
    completions = session.run(session.service.generate(prompts, lambda done, total: seen.append((done, total))))
    assert [c.prompt_id for c in completions] == [p.id for p in prompts]
    assert seen[-1] == (30, 30)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    tokenizer = load_tokenizer(session.model)
    for prompt, completion in zip(prompts, completions, strict=True):
        assert list(completion.prompt_token_ids) == tokenizer(prompt.text)["input_ids"]
        assert len(completion.logprobs) == len(completion.token_ids) <= MAX_TOKENS
        assert completion.finish_reason == ("stop" if completion.token_ids[-1] == 0 else "length")
        assert completion.policy_version == 0


@pytest.mark.ray
def test_no_prompts_no_completions(session: Session) -> None:
    assert session.run(session.service.generate([])) == []


@pytest.mark.ray
def test_same_seed_same_completions(session: Session) -> None:
    prompts = make_prompts([20 + i for i in range(24)], session.model)
    first = session.run(session.service.generate(prompts))
    again = session.run(session.service.generate(list(reversed(prompts))))
    assert tokens(first) == tokens(list(reversed(again)))
    assert len(set(tokens(first))) > 20


@pytest.mark.ray
def test_more_prompt_tokens_than_one_step_takes(session: Session) -> None:
    prompts = make_prompts([300] * 40, session.model)
    assert len(session.run(session.service.generate(prompts))) == 40


@pytest.mark.ray
def test_logprobs_are_those_of_hugging_face(session: Session) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(session.model, dtype=torch.float32).eval()
    for completion in session.run(session.service.generate(make_prompts([20, 60, 200], session.model))):
        prompt, written = completion.prompt_token_ids, completion.token_ids
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + written])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / 0.8, -1).gather(-1, torch.tensor(written)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=0)


@pytest.mark.ray
def test_too_long_prompt_is_named(session: Session) -> None:
    prompts = [*make_prompts([20], session.model), Prompt(id="too-long", text="z" * 600, example_ids=(), seed=1)]
    with pytest.raises(UserError, match=r"too-long.*max_model_len"):
        session.run(session.service.generate(prompts))


def make_request(seed: int, text: str = "say something") -> Request:
    return Request(
        purpose="test",
        model="generator",
        messages=(Message(role="system", content="be brief"), Message(role="user", content=text)),
        schema={
            "type": "object",
            "properties": {"label": {"enum": ["no", "yes"]}, "text": {"type": "string", "maxLength": 8}},
            "required": ["label", "text"],
            "additionalProperties": False,
        },
        temperature=1.0,
        max_tokens=100,
        seed=seed,
    )


@pytest.mark.ray
def test_conversations_are_answered_in_the_asked_form(session: Session) -> None:
    async def ask(requests: list[Request]) -> list[Reply]:
        return await asyncio.gather(*(session.service.chat(request) for request in requests))

    replies = session.run(ask([make_request(seed) for seed in (1, 2, 3, 1)]))
    values = [read_json(reply, make_request(0).schema) for reply in replies]
    assert all(value["label"] in ("no", "yes") and len(value["text"]) <= 8 for value in values)
    assert values[0] == values[3], "the same seed, the same reply"
    assert len({reply.text for reply in replies}) > 1
    expected = len(prompt_token_ids(load_tokenizer(session.model), make_request(1).messages))
    assert {reply.prompt_tokens for reply in replies} == {expected}
    assert all(0 < reply.completion_tokens <= 100 for reply in replies)
    with pytest.raises(LLMError, match=r"generator\.max_model_len is 512 tokens"):
        session.run(session.service.chat(make_request(1, "word " * 600)))


@pytest.mark.ray
def test_hand_over_reaches_every_replica(session: Session, policies: list[PolicyUpdate]) -> None:
    new = policies[0]
    prompts = make_prompts([20, 40, 64, 100, 128, 150, 180, 200], session.model)
    before = greedy_reference(session.model, prompts)
    old = GenerateRequest(prompts=tuple(prompts), policy=session.service.policy, greedy=True)
    for completions in session.from_every_replica(old):  # which also fills the prefix caches
        assert tokens(completions) == before

    figures = session.run(session.service.load_policy(new))
    assert figures["timing/hand_over_s"] > 0
    expected = greedy_reference(Path(new.path), prompts)
    assert expected != before
    request = GenerateRequest(prompts=tuple(prompts), policy=session.service.policy, greedy=True)
    answers = session.from_every_replica(request)
    assert len(answers) == 2
    for completions in answers:
        assert tokens(completions) == expected
        assert {c.policy_version for c in completions} == {1}


@pytest.mark.ray
def test_stale_policy_is_refused(session: Session) -> None:
    request = GenerateRequest(
        prompts=tuple(make_prompts([20], session.model)), policy=PolicyRef(version=0, path=str(session.model))
    )
    with pytest.raises(StalePolicyError, match=r"policy 0.*holds 1"):
        session.from_every_replica(request)


@pytest.mark.ray
def test_replica_that_missed_the_hand_over_catches_up(session: Session, policies: list[PolicyUpdate]) -> None:
    newer = PolicyRef(version=2, path=policies[1].path)
    prompts = make_prompts([30, 150], session.model)
    request = GenerateRequest(prompts=tuple(prompts), policy=newer, greedy=True)
    for completions in session.from_every_replica(request):
        assert tokens(completions) == greedy_reference(Path(newer.path), prompts)
        assert {c.policy_version for c in completions} == {2}


@pytest.mark.ray
def test_learner_drives_a_hand_over_step_by_step(session: Session, policies: list[PolicyUpdate]) -> None:
    """The control plane of the GPU backends, with the file backend's payload."""
    newest = policies[2]
    client = ReplicaClient(session.service.app_name, 60)
    client.target(PolicyRef(version=3, path=newest.path))
    client.start_weight_update()
    client.update_weights({"path": newest.path})
    client.finish_weight_update()
    assert {report.version for report in client.replicas()} == {3}

    async def already_sent() -> None: ...

    session.run(session.service.load_policy(newest, already_sent))
    newest = replace(newest, version=4)

    async def fails() -> None:
        raise HandOverError("a transfer broke")

    session.run(session.service.load_policy(newest, fails))
    assert {report.version for report in client.replicas()} == {4}, "read from the folder"
    tried: list[None] = []

    async def tries() -> None:
        tried.append(None)
        await fails()

    for _ in range(3):
        session.run(session.service.load_policy(newest, tries))
    assert len(tried) == MAX_TRANSFERS - 1, "one that failed time and again is not waited for any more"
    session.service._failed_transfers = 0
    prompts = make_prompts([25, 140], session.model)
    request = GenerateRequest(prompts=tuple(prompts), policy=session.service.policy, greedy=True)
    for completions in session.from_every_replica(request):
        assert tokens(completions) == greedy_reference(Path(newest.path), prompts)


@pytest.mark.ray
def test_killed_replica_and_killed_engine_are_replaced_by_ones_that_have_the_policy_handed_over_meanwhile(
    session: Session, policies: list[PolicyUpdate]
) -> None:
    before = {report.replica for report in session.run(session.service.describe())}
    (replica, orphan), (_, engine) = replica_processes()
    replica.kill()
    psutil.wait_procs([orphan], timeout=10)
    assert not orphan.is_running(), "the engine outlived its replica"
    engine.kill()
    session.run(session.service.load_policy(PolicyUpdate(version=5, path=policies[0].path, metrics={})))
    prompts = make_prompts([40] * 32, session.model)
    completions = session.run(session.service.generate(prompts, greedy=True))  # by whoever comes back first
    policy = session.service.policy
    assert {c.policy_version for c in completions} == {policy.version}

    reports = wait_for_replicas(session, 2)
    assert {report.version for report in reports} == {policy.version}
    assert not {report.replica for report in reports} & before
    request = GenerateRequest(prompts=tuple(prompts[:2]), policy=policy, greedy=True)
    for answer in session.from_every_replica(request):
        assert tokens(answer) == greedy_reference(Path(policy.path), prompts[:2])


@pytest.mark.ray
def test_hand_over_that_takes_too_long_ends_in_an_error(session: Session, policies: list[PolicyUpdate]) -> None:
    _, engine = replica_processes()[0]
    impatient = make_config(session.model, timeout_s=2)
    patient, session.service._config = session.service._config, impatient
    newer = PolicyUpdate(version=6, path=policies[1].path, metrics={})
    engine.suspend()
    begun = time.perf_counter()
    try:
        with pytest.raises(HandOverError, match=r"policy 6.*replica \w+: no answer within 2 s"):
            session.run(session.service.load_policy(newer))
        assert time.perf_counter() - begun < 10
    finally:
        engine.resume()
        session.service._config = patient
    completions = session.run(session.service.generate(make_prompts([20] * 16, session.model)))
    assert {c.policy_version for c in completions} == {6}


@pytest.mark.ray
def test_incomplete_policy_breaks_the_replica_and_is_reported(session: Session, tmp_path: Path) -> None:
    """The last test of this session: no replica can serve such a policy."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(session.model / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(HandOverError, match=r"replica \w+: .*layers\.1\.mlp\.down_proj"):
        session.run(session.service.load_policy(PolicyUpdate(version=7, path=str(tmp_path), metrics={})))
    session.run(session.service.stop())


@pytest.mark.ray
def test_untied_head_receives_new_weights(ray_session: None, tiny_lm_untied: Path, tmp_path: Path) -> None:
    async def before_and_after() -> tuple[list[Completion], list[Completion]]:
        service = GeneratorService(make_config(tiny_lm_untied), "test-untied")
        await service.start()
        try:
            before = await service.generate(prompts, greedy=True)
            await service.load_policy(PolicyUpdate(version=1, path=str(new), metrics={}))
            return before, await service.generate(prompts, greedy=True)
        finally:
            await service.stop()

    new = make_tiny_lm(tmp_path / "new", tied=False, seed=5)
    prompts = make_prompts([20, 40, 64, 100, 128, 150, 180, 200], tiny_lm_untied)
    before, after = asyncio.run(before_and_after())
    assert tokens(before) == greedy_reference(tiny_lm_untied, prompts)
    assert tokens(after) == greedy_reference(new, prompts)
    assert {c.policy_version for c in after} == {1}


@pytest.mark.ray
def test_start_failure_tells_the_engines_own_error(ray_session: None, tiny_lm: Path) -> None:
    service = GeneratorService(make_config(tiny_lm, max_model_len=4096), "test-fails")
    with pytest.raises(RunError, match=r"(?s)did not start: .*max_model_len.*4096"):
        asyncio.run(service.start())


@pytest.mark.ray
def test_start_without_resources_ends_in_an_error(ray_session: None, tiny_lm: Path) -> None:
    service = GeneratorService(make_config(tiny_lm, num_cpus=1000, start_timeout_s=3), "test-waits")
    with pytest.raises(RunError, match="start_timeout_s = 3 s"):
        asyncio.run(service.start())


def replica_processes() -> list[tuple[psutil.Process, psutil.Process]]:
    """(replica, engine) processes of the session's service."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("ray::ServeReplica:test-generator"):
            engines = [c for c in process.children(recursive=True) if "EngineCore" in " ".join(c.cmdline())]
            found.append((process, engines[0]))
    return found


def wait_for_replicas(session: Session, count: int) -> list[Any]:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        reports = session.run(session.service.describe())
        if len(reports) == count:
            return reports
        time.sleep(0.5)
    pytest.fail(f"no {count} replicas within 90 s")
