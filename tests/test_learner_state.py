"""The learner's state on disk, and its parameters' names: without actors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from test_learner import LORA, assert_equal, make_config
from test_ppo import make_policy

from actors.learner_state import SavedState, ShardWriter
from genal_ray.errors import UserError
from genal_ray.policy_model import policy_parameters


def test_a_state_is_sharded_and_refused_under_another_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.learner_state.SHARD_BYTES", 100)
    writer, tensors = ShardWriter(tmp_path / "s"), {f"t{i}": torch.rand(i + 1, 9) for i in range(5)}
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.finish({"model": "a", "lora": None})
    assert len(list((tmp_path / "s").glob("*.safetensors"))) > 1
    state = SavedState(tmp_path / "s")
    assert_equal(dict(state), tensors)
    state.check({"model": "a"})
    with pytest.raises(UserError, match="lora was None, now 'x'"):
        state.check({"lora": "x"})
    (tmp_path / "s" / "state-00001.safetensors").write_bytes(b"cut off")
    with pytest.raises(SafetensorError):
        SavedState(tmp_path / "s")


def test_hugging_face_names_of_a_lora_policy_are_the_base_models(tiny_lm: Path) -> None:
    names = [
        [name for name, *_ in policy_parameters(make_policy(tiny_lm, make_config(tiny_lm, lora=lora).learner))]
        for lora in (None, LORA)
    ]
    assert names[0] == names[1]
