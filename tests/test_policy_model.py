"""The policy model against Hugging Face, its adapters, and what of it goes to the generator."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_ppo import VOCABULARY, TorchEngine, _one_thread, make_policy, make_rollouts
from torch import nn

from genal_ray.config import LearnerConfig
from genal_ray.errors import UserError
from genal_ray.policy_model import as_reference, causal_lm, policy_tensors, trainable
from genal_ray.ppo_batch import micro_batches, pack
from genal_ray.ppo_update import Workers, collect_experience

__all__ = ["_one_thread"]


@pytest.mark.parametrize("chunked", [False, True])
def test_scores_equal_hugging_face_one_sequence_at_a_time(tiny_lm_untied: Path, chunked: bool) -> None:
    policy = make_policy(tiny_lm_untied, LearnerConfig(), temperature=0.7)
    if chunked:
        policy.logits_at_once = 5 * VOCABULARY
    nn.init.normal_(policy.value_head.weight)
    rollouts = make_rollouts(5)
    batch = pack(rollouts)
    (micro,) = micro_batches(batch, np.arange(5), size=5, rank=0, world_size=1)
    logprobs, values, entropy = policy(micro.tokens, micro.row, micro.column, micro.most_tokens, True, True)
    exact = copy.deepcopy(causal_lm(policy.lm)).double()
    for i, rollout in enumerate(rollouts):
        prompt, response = rollout.completion.prompt_token_ids, torch.tensor(rollout.completion.token_ids)
        out = exact(input_ids=torch.tensor([[*prompt, *response.tolist()]]), output_hidden_states=True)
        log_p = torch.log_softmax(out.logits[0, len(prompt) - 1 : -1] / 0.7, -1)
        own = micro.sequence == i
        torch.testing.assert_close(logprobs[own].double(), log_p[range(len(response)), response], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(entropy[own].double(), -(log_p.exp() * log_p).sum(-1), rtol=1e-4, atol=1e-4)
        state = out.hidden_states[-1][0, len(prompt) - 1 : -1]
        expected = policy.value_head.double()(state)[:, 0]
        policy.value_head.float()
        torch.testing.assert_close(values[own].double(), expected, rtol=1e-4, atol=1e-4)


def test_chunks_change_no_gradient(tiny_lm: Path) -> None:
    batch = pack(make_rollouts(5))
    (micro,) = micro_batches(batch, np.arange(5), size=5, rank=0, world_size=1)
    gradients = []
    for logits_at_once in (2**26, 3 * VOCABULARY):
        policy = make_policy(tiny_lm, LearnerConfig())
        policy.logits_at_once = logits_at_once
        policy(micro.tokens, micro.row, micro.column, micro.most_tokens, False, True)[0].sum().backward()
        gradients.append(causal_lm(policy.lm).get_input_embeddings().weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_bf16_policy_and_reference_agree_bit_for_bit(tiny_lm: Path, lora: Any) -> None:
    config = LearnerConfig.model_validate({"lora": lora})
    engine = TorchEngine(make_policy(tiny_lm, config, torch.bfloat16), config)
    batch = pack(make_rollouts(6))
    experience, metrics = collect_experience(engine, batch, config, 0.1, Workers())
    assert metrics["rl/kl"] == 0.0
    exact = TorchEngine(make_policy(tiny_lm, config), config)
    precise, _ = collect_experience(exact, batch, config, 0.1, Workers())
    torch.testing.assert_close(experience.logprobs, precise.logprobs, rtol=0.02, atol=0.1)
    stored = {m.weight.dtype for m in (engine._reference or engine.module).modules() if isinstance(m, nn.Linear)}
    assert torch.bfloat16 in stored


def test_lora_weights_are_merged_for_the_generator(tiny_lm: Path) -> None:
    config = LearnerConfig.model_validate({"lora": {"rank": 4, "alpha": 8}})
    policy = make_policy(tiny_lm, config).eval()
    for name, parameter in trainable(policy).items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    plain = make_policy(tiny_lm, LearnerConfig())
    merged = dict(policy_tensors(policy, torch.float32, lambda _: contextmanager(lambda: iter([None]))()))
    missing, unexpected = plain.lm.load_state_dict(merged, strict=False)
    assert missing == ["lm_head.weight"]  # tied
    assert not unexpected
    tokens = torch.arange(1, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain.lm(tokens).logits, policy.lm(tokens).logits, rtol=1e-4, atol=1e-4)
        with as_reference(policy):
            assert not torch.allclose(plain.lm(tokens).logits, policy.lm(tokens).logits, atol=1e-2)


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True")  # PEFT goes on
@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens"], ["q_proj", "lm_head"]])
def test_adapters_of_tied_weights_are_refused(tiny_lm: Path, tiny_lm_untied: Path, modules: list[str]) -> None:
    config = LearnerConfig.model_validate({"lora": {"rank": 4, "target_modules": modules}})
    with pytest.raises(UserError, match=r"learner\.lora\.target_modules names .* which share their weights"):
        make_policy(tiny_lm, config)
    make_policy(tiny_lm_untied, config)


def test_a_folder_without_a_language_model_is_refused(minilm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="causal language model"):
        make_policy(tmp_path, LearnerConfig())
