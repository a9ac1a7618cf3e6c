"""Which completions reach the pool, and as what."""

from __future__ import annotations

import pytest
from fakes import PlainTask

from genal_ray.guards import fate_metrics, judge
from genal_ray.pools import Pools
from genal_ray.tasks.single_text import SingleText
from genal_ray.text import normalized
from genal_ray.types import Completion, Fate, Instance, LabeledInstance


def completion(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(
        prompt_id="p",
        text=text,
        prompt_token_ids=(1,),
        token_ids=(2, 3),
        logprobs=(-1.0, -1.0),
        finish_reason=finish_reason,
        policy_version=0,
    )


@pytest.fixture
def pools() -> Pools:
    pools = Pools([Instance(id="r-0", text="A fine film."), Instance(id="r-1", text="Dull, sadly")])
    old = Instance(id="s-0", text="Quite a ride", origin="synthetic", round=1)
    pools.add([old])
    pools.label([LabeledInstance(instance=old, label=0, annotator="hidden", round=1)])
    return pools


@pytest.mark.parametrize(
    ("text", "finish_reason", "fate"),
    [
        ("something new", "stop", Fate.KEPT),
        ("a FINE  film!", "stop", Fate.COPIED),
        ("quite a ride...", "stop", Fate.DUPLICATE),
        ("   ", "stop", Fate.EMPTY),
        ("...!", "stop", Fate.EMPTY),
        ("something new that never", "length", Fate.TRUNCATED),
        ("? not of the asked form", "stop", Fate.UNPARSEABLE),
    ],
)
def test_fate(pools: Pools, text: str, finish_reason: str, fate: Fate) -> None:
    (candidate,) = judge([completion(text, finish_reason)], PlainTask(), pools, round=2)
    assert candidate.fate is fate
    assert (candidate.instance is not None) == (fate is Fate.KEPT)


def test_cut_off_after_the_instance_was_complete_is_kept(pools: Pools) -> None:
    task = SingleText(domain="films")
    whole, part = judge(
        [completion("a whole line\nand a second one that", "length"), completion("a line that never", "length")],
        task,
        pools,
        round=2,
    )
    assert (whole.fate, part.fate) == (Fate.KEPT, Fate.TRUNCATED)
    assert whole.instance is not None
    assert whole.instance.text == "a whole line"


def test_repeats_within_a_batch_are_duplicates(pools: Pools) -> None:
    candidates = judge([completion("new one"), completion("New one!")], PlainTask(), pools, round=2)
    assert [c.fate for c in candidates] == [Fate.KEPT, Fate.DUPLICATE]
    metrics = fate_metrics(candidates)
    assert metrics["gen/num_kept"] == metrics["gen/num_duplicate"] == 1
    assert metrics["gen/num_tokens"] == 4
    assert sum(metrics[f"gen/num_{fate}"] for fate in Fate) == metrics["gen/num_completions"]


def test_instance_ids_name_round_and_position(pools: Pools) -> None:
    candidates = judge([completion("first new"), completion("second new")], PlainTask(), pools, round=3)
    assert [c.instance.id for c in candidates if c.instance] == ["s-0003-000000", "s-0003-000001"]


def test_normalized_sees_through_case_spacing_and_unicode_forms() -> None:
    assert normalized("Caf\u00e9,  NOIR!") == normalized("cafe\u0301 noir")
    assert normalized(("a b", "c")) != normalized(("a", "b c"))


def test_unselected_synthetic_instances_expire() -> None:
    pools = Pools([Instance(id="r-0", text="real")])
    pools.add(Instance(id=f"s-{n}", text=f"text {n}", origin="synthetic", round=n) for n in (1, 2, 3))
    pools.expire(born_before=3)
    assert [i.id for i in pools.unlabeled] == ["r-0", "s-3"]
