"""Which completions reach the pool, and as what."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from fakes import PlainTask

from genal_ray.config import GuardsConfig, RewardConfig
from genal_ray.guards import (
    collapse_metrics,
    distinct,
    fate_metrics,
    judge,
    label_metrics,
    length_metrics,
    normalized_entropy,
)
from genal_ray.labels import Classes
from genal_ray.near_duplicates import ShingledTexts, _likely, _rarest_first
from genal_ray.pools import Pools
from genal_ray.rewards import build_rollouts
from genal_ray.stages import CandidateCodec
from genal_ray.tasks.single_text import SingleText
from genal_ray.text import normalized
from genal_ray.types import Completion, Fate, Instance, LabeledInstance, Repeat, Scores

TWO = Classes(("a", "b"))


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
    assert length_metrics([completion("new one"), completion("New")], seconds=0.5) == {
        "gen/num_tokens": 4, "gen/mean_tokens": 2.0, "gen/tokens_per_s": 8.0,
    }  # fmt: skip
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


TRAIN = "the plot is thin and the acting is worse than the plot"
CLOSE = "the plot is thin and the acting is worse than the plots"


def test_near_duplicates_are_found_in_the_pool_and_in_the_round() -> None:
    pools = Pools([Instance(id="r-0", text=TRAIN), Instance(id="r-1", text="dull")])
    texts = [CLOSE, "a wholly different remark about the music", "a wholly different remark about the musics", "dulls"]
    kept = judge([completion(text) for text in texts], PlainTask(), pools, round=1)
    assert [c.repeats for c in kept] == [Repeat.NEAR_DUPLICATE, None, Repeat.NEAR_DUPLICATE, None]
    assert {c.fate for c in kept} == {Fate.KEPT}
    assert not any(c.penalized for c in kept)
    strict = GuardsConfig(near_duplicate_threshold=0.99)
    assert not any(c.repeats for c in judge([completion(CLOSE)], PlainTask(), pools, round=1, guards=strict))


@pytest.mark.parametrize("treatment", ["drop", "penalize", "keep"])
def test_treatment_of_near_duplicates(treatment: Literal["drop", "penalize", "keep"]) -> None:
    guards = GuardsConfig(near_duplicates=treatment)
    pools = Pools([Instance(id="r-0", text=TRAIN)])
    first, second = judge([completion(CLOSE), completion("very new")], PlainTask(), pools, round=1, guards=guards)
    assert first.fate is (Fate.NEAR_DUPLICATE if treatment == "drop" else Fate.KEPT)
    scores = {c.instance.id: 5.0 for c in (first, second) if c.instance is not None}
    rollouts, _ = build_rollouts(
        [first, second],
        Scores(ids=tuple(scores), values=np.array(list(scores.values()), np.float32), student_version=0),
        RewardConfig(standardize=False),
    )
    assert [r.reward for r in rollouts] == [5.0 if treatment == "keep" else -2.0, 5.0]


def test_copies_and_duplicates_may_be_kept_and_are_counted(pools: Pools) -> None:
    texts = ["a fine film", "quite a ride", "new", "new", "new", "?"]
    guards = GuardsConfig(copies="keep", duplicates="keep")
    candidates = judge([completion(text) for text in texts], PlainTask(), pools, round=2, guards=guards)
    assert [c.fate for c in candidates] == [Fate.KEPT] * 5 + [Fate.UNPARSEABLE]
    metrics = collapse_metrics(candidates, PlainTask())
    assert metrics["gen/copy_rate"] == pytest.approx(1 / 6)
    assert metrics["gen/duplicate_rate"] == pytest.approx(3 / 6)
    assert metrics["gen/near_duplicate_rate"] == 0
    assert metrics["gen/unparseable_rate"] == pytest.approx(1 / 6)
    dropped = judge([completion(text) for text in texts], PlainTask(), pools, round=2)
    assert collapse_metrics(dropped, PlainTask()) == metrics


def shingles(text: str) -> set[str]:
    padded = text.ljust(4, "_")
    return {padded[i : i + 4] for i in range(len(padded) - 3)}


def near_by_hand(left: list[str], right: list[str], threshold: float) -> list[list[int]]:
    """Every pair compared."""
    sets = [shingles(text) for text in right]
    return [
        [n for n, b in enumerate(sets) if len(a & b) >= threshold * len(a | b)] for a in (shingles(t) for t in left)
    ]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.55, 2 / 3, 0.7, 0.8, 0.9, 1.0])
@pytest.mark.parametrize(("alphabet", "longest"), [("ab ", 9), ("abcdefgh ", 60), ("é𝒳\ud800\n", 30)])
def test_near_agrees_with_jaccard_by_hand(threshold: float, alphabet: str, longest: int) -> None:
    """Texts with misspelled copies, exact ones, short and empty ones."""
    rng = np.random.default_rng(0)
    drawn = ["".join(rng.choice(list(alphabet), size=rng.integers(longest))) for _ in range(60)]
    slips = [text[: (at := int(rng.integers(len(text) + 1)))] + "x" + text[at + 1 :] for text in drawn]
    left, right = ["", *drawn[:40]], [*drawn[20:], *slips, "", "x"]
    found = [rows.tolist() for rows in ShingledTexts(left).near(ShingledTexts(right), threshold)]
    assert found == near_by_hand(left, right, threshold)
    assert 20 < sum(map(len, found)) < len(left) * len(right)


def test_nothing_is_near_to_nothing() -> None:
    some, none = ShingledTexts(["a text", "another"]), ShingledTexts([])
    assert [rows.tolist() for rows in some.near(none, 0.5)] == [[], []]
    assert none.near(some, 0.5) == none.near(none, 0.5) == []


def test_few_of_the_pairs_are_compared() -> None:
    """Texts of the same 300 words, some of them frequent: nearly all pairs have successive characters in common."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("aeioulnrst"), size=rng.integers(2, 8))) for _ in range(300)]
    shares = 1 / np.arange(1, 301)
    texts = [" ".join(rng.choice(words, size=rng.integers(10, 30), p=shares / shares.sum())) for _ in range(400)]
    texts += [f"{text} too" for text in texts[:20]]
    left, right = ShingledTexts(texts[:150]), ShingledTexts(texts[150:])
    mine, theirs = _rarest_first(left._members, right._members)
    likely = [rows.tolist() for rows in _likely(mine, theirs, 0.8)]
    near = [rows.tolist() for rows in left.near(right, 0.8)]
    assert near == near_by_hand(texts[:150], texts[150:], 0.8)
    assert all(set(rows) <= set(more) for rows, more in zip(near, likely, strict=True))
    assert sum(map(len, near)) >= 20
    assert sum(map(len, likely)) < 0.01 * len(left) * len(right)


def test_many_pairs_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text number {n % 5} of some" for n in range(20)]
    whole = [rows.tolist() for rows in ShingledTexts(texts).near(ShingledTexts(texts), 0.9)]
    assert whole[7] == [2, 7, 12, 17]
    monkeypatch.setattr("genal_ray.near_duplicates.MAX_PAIRS", 60)
    monkeypatch.setattr("genal_ray.near_duplicates.HASHED_AT_ONCE", 3)
    assert [rows.tolist() for rows in ShingledTexts(texts).near(ShingledTexts(texts), 0.9)] == whole


def test_distinct_n_counts_different_n_grams_over_all() -> None:
    texts = [["a", "b", "a", "b"], ["a", "b"], []]
    assert distinct(texts, 1) == pytest.approx(2 / 6)
    assert distinct(texts, 2) == pytest.approx(2 / 4)
    assert distinct([["a"]], 2) is None


def test_entropy_of_labels_and_of_the_newest_synthetic_ones() -> None:
    def labeled(origin: Literal["real", "synthetic"], label: int, number: int) -> LabeledInstance:
        instance = Instance(id=f"{origin}-{number}", text="x", origin=origin)
        return LabeledInstance(instance=instance, label=label, annotator="a", round=0)

    real = [labeled("real", n % 2, n) for n in range(10)]
    assert label_metrics(real, TWO) == {"al/label_entropy": pytest.approx(1.0)}
    assert label_metrics(real, Classes(("a", "b", "c", "d"))) == {"al/label_entropy": pytest.approx(0.5)}
    early = [labeled("synthetic", 0, n) for n in range(30)]
    late = [labeled("synthetic", n % 2, 100 + n) for n in range(50)]
    assert label_metrics([*real, *early[:19]], TWO).keys() == {"al/label_entropy"}
    assert label_metrics([*real, *early], TWO)["al/synthetic_label_entropy"] == 0
    assert label_metrics([*real, *early, *late], TWO)["al/synthetic_label_entropy"] == pytest.approx(1.0)
    assert normalized_entropy([0, 0, 0, 1], 2) == pytest.approx(0.8113, abs=1e-4)


def test_candidates_are_read_back_as_they_were(pools: Pools, tmp_path: Path) -> None:
    texts = ["a fine film", "quite a rides", "?", "new"]
    guards = GuardsConfig(near_duplicates="penalize", near_duplicate_threshold=0.5)
    candidates = judge([completion(text) for text in texts], PlainTask(), pools, round=2, guards=guards)
    assert [c.penalized for c in candidates] == [False, True, False, False]
    codec = CandidateCodec()
    assert codec.load(codec.save(candidates, tmp_path / "t.parquet"), tmp_path / "t.parquet") == candidates
