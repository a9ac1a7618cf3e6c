"""From completions to candidates: parse, and keep out what must not reach the pool.

SIGnAL reports that early generations copy their examples; a copy of a labeled text has distance 0 to it and would
get an unbounded score, so copies never reach the scorer unless `guards.copies` says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from genal_ray.config import GuardsConfig
from genal_ray.labels import LabelSpace
from genal_ray.near_duplicates import ShingledTexts
from genal_ray.pools import Pools
from genal_ray.tasks import Task
from genal_ray.text import normalized
from genal_ray.types import Candidate, Completion, Fate, Instance, LabeledInstance, Repeat

if TYPE_CHECKING:
    from genal_ray.llm.replies import Fault

NEWEST_LABELS = 50
FEWEST_LABELS = 20
"""Below so many labels their entropy says little, and is no figure of the round."""

_DROPPED = {Repeat.COPY: Fate.COPIED, Repeat.DUPLICATE: Fate.DUPLICATE, Repeat.NEAR_DUPLICATE: Fate.NEAR_DUPLICATE}


def judge(
    completions: Sequence[Completion],
    task: Task,
    pools: Pools,
    *,
    round: int,
    guards: GuardsConfig | None = None,
    with_labels: bool = False,
) -> list[Candidate]:
    """A candidate per completion, in order; kept ones carry the instance `s-<round>-<position>`.

    `with_labels`: completions were to come with their labels, and are of no use without, since nobody else is asked.
    """
    guards = guards or GuardsConfig()
    parsed = [_parse(c, task, id=f"s-{round:04d}-{n:06d}", round=round) for n, c in enumerate(completions)]
    if with_labels:
        parsed = [
            Fate.UNLABELED if isinstance(made, Instance) and completion.label is None else made
            for completion, made in zip(completions, parsed, strict=True)
        ]
    texts = [normalized(p.student_input) for p in parsed if isinstance(p, Instance)]
    repeats = _Repeats(pools, texts, guards)
    candidates = []
    for completion, made in zip(completions, parsed, strict=True):
        if isinstance(made, Instance):
            candidates.append(_guarded(completion, made, repeats.next(), guards))
        else:
            candidates.append(Candidate(completion=completion, fate=made))
    return candidates


def _parse(completion: Completion, task: Task, *, id: str, round: int) -> Fate | Instance:
    """The instance that a completion holds, or what is wrong with it."""
    if not completion.text.strip():
        return Fate.EMPTY
    parsed = task.parse(completion.text)
    if completion.finish_reason == "length" and parsed != _parsed_if_it_went_on(completion, task):
        return Fate.TRUNCATED
    if parsed is None:
        return Fate.UNPARSEABLE
    text, text_pair = parsed
    instance = Instance(id=id, text=text, text_pair=text_pair, origin="synthetic", round=round)
    return instance if normalized(instance.student_input).strip() else Fate.EMPTY


def _parsed_if_it_went_on(completion: Completion, task: Task) -> tuple[str, str | None] | None:
    """A completion that was cut off after its instance was complete, in a line that is not read, is as good as any."""
    return task.parse(completion.text + " and so on")


def _guarded(
    completion: Completion, instance: Instance, repeats: Repeat | None, guards: GuardsConfig
) -> Candidate:
    treatment = "keep" if repeats is None else guards.treatment(repeats)
    if repeats is not None and treatment == "drop":
        return Candidate(completion=completion, fate=_DROPPED[repeats], repeats=repeats)
    return Candidate(
        completion=completion,
        fate=Fate.KEPT,
        instance=instance,
        repeats=repeats,
        penalized=treatment == "penalize",
    )


class _Repeats:
    """What each text of a round repeats: of the pool, or of the texts before it that were kept."""

    def __init__(self, pools: Pools, texts: Sequence[str], guards: GuardsConfig) -> None:
        """`texts` are normalised, in the order of the round."""
        self._guards = guards
        self._texts = texts
        self._real = pools.real_texts
        self._written = pools.synthetic_texts()
        round = ShingledTexts(texts)
        pool = ShingledTexts([*self._real, *self._written])
        self._near_pool = [len(rows) > 0 for rows in round.near(pool, guards.near_duplicate_threshold)]
        self._near_round = round.near(round, guards.near_duplicate_threshold)
        self._kept = np.zeros(len(texts), dtype=bool)
        self._next = 0

    def next(self) -> Repeat | None:
        """What the next text repeats."""
        position, self._next = self._next, self._next + 1
        repeats = self._of(position)
        if repeats is None or self._guards.treatment(repeats) != "drop":
            self._kept[position] = True
            self._written.add(self._texts[position])
        return repeats

    def _of(self, position: int) -> Repeat | None:
        text = self._texts[position]
        if text in self._real:
            return Repeat.COPY
        if text in self._written:
            return Repeat.DUPLICATE
        if self._near_pool[position] or self._kept[self._near_round[position]].any():
            return Repeat.NEAR_DUPLICATE
        return None


def unscorable(candidates: Sequence[Candidate], failed: Container[str]) -> list[Candidate]:
    """The candidates, those whose instances `failed` to be scored with the fate that this is."""
    return [
        replace(c, fate=Fate.UNSCORABLE, instance=None) if c.instance is not None and c.instance.id in failed else c
        for c in candidates
    ]


def fate_metrics(candidates: Sequence[Candidate]) -> dict[str, float]:
    """`gen/num_<fate>` for every fate."""
    counts = Counter(candidate.fate for candidate in candidates)
    return {"gen/num_completions": len(candidates), **{f"gen/num_{fate}": counts[fate] for fate in Fate}}


def length_metrics(completions: Sequence[Completion], seconds: float) -> dict[str, float]:
    """Lengths of a generator's completions in tokens, which took so many seconds."""
    num_tokens = sum(len(completion.token_ids) for completion in completions)
    return {
        "gen/num_tokens": num_tokens,
        "gen/mean_tokens": num_tokens / max(len(completions), 1),
        "gen/tokens_per_s": num_tokens / seconds,
    }


def collapse_metrics(candidates: Sequence[Candidate], task: Task) -> dict[str, float]:
    """Figures that tell a collapsing generator: shares of the completions, and the diversity of the texts.

    `gen/copy_rate`, `gen/duplicate_rate` and `gen/near_duplicate_rate` count repeats whether dropped or kept,
    `gen/unparseable_rate` completions without a whole text in them. `gen/distinct_1` and `gen/distinct_2` (Li et al.
    2016) are different words, and pairs of successive words, over all of them, in all texts that could be read, repeats
    included, and left out where there are none; they fall with the number of texts, so only rounds of one size compare.
    """
    total = max(len(candidates), 1)
    repeats = Counter(c.repeats for c in candidates)
    without_text = sum(c.fate in (Fate.EMPTY, Fate.TRUNCATED, Fate.UNPARSEABLE) for c in candidates)
    texts = [parsed for c in candidates if (parsed := task.parse(c.completion.text)) is not None]
    words = [normalized(part).split() for text in texts for part in text if part is not None]
    diversity = {f"gen/distinct_{n}": distinct(words, n) for n in (1, 2)}
    return {
        **{f"gen/{repeat}_rate": repeats[repeat] / total for repeat in Repeat},
        "gen/unparseable_rate": without_text / total,
        **{name: value for name, value in diversity.items() if value is not None},
    }


def distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """distinct-n of Li et al. 2016: different n-grams of words over all n-grams; None when there are none."""
    grams = [tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def label_metrics(labeled: Sequence[LabeledInstance], labels: LabelSpace) -> dict[str, float]:
    """`al/label_entropy` of the labeled set, oldest label first, and `al/synthetic_label_entropy` of its newest 50
    synthetic instances, left out below 20: 1 when all classes, or entity types, are equally frequent, 0 when there is
    only one. Neither where there is nothing to choose between."""
    newest = [item.label for item in labeled if item.instance.origin == "synthetic"][-NEWEST_LABELS:]
    groups = {"al/label_entropy": [item.label for item in labeled]}
    if len(newest) >= FEWEST_LABELS:
        groups["al/synthetic_label_entropy"] = newest
    kinds = {name: [kind for label in given for kind in labels.kinds(label)] for name, given in groups.items()}
    if len(labels.names) < 2:
        return {}
    return {name: normalized_entropy(found, len(labels.names)) for name, found in kinds.items() if found}


def normalized_entropy(labels: Sequence[int], num_labels: int) -> float:
    """Entropy of the frequencies of at least one label, over that of `num_labels` equally frequent ones."""
    counts = np.bincount(labels)
    shares = counts[counts > 0] / len(labels)
    return float(max(-(shares * np.log(shares)).sum() / np.log(num_labels), 0.0))


def nothing_to_label(number: int, candidates: Sequence[Candidate], faults: Mapping[Fault, int] | None = None) -> str:
    """What to tell when nothing is left to be labeled in a round that wrote `candidates`; `faults` are those of a chat
    model's replies, if one wrote them."""
    fates = ", ".join(f"{name.removeprefix('gen/num_')} {n:g}" for name, n in fate_metrics(candidates).items())
    causes = "task.domain and generator.max_tokens"
    if faults is not None:
        fates += "".join(f", replies {fault} {n}" for fault, n in faults.items())
        causes = "task.domain, and, where replies are truncated, strategy.texts_per_call and llm.max_reply_tokens"
    return (
        f"round {number}: nothing can be labeled, and no completion was usable ({fates}). The labels bought so far are "
        f"kept; look at generate.parquet of the last rounds, and at {causes}"
    )
