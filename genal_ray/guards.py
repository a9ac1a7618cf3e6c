"""From completions to candidates: parse, and keep out what must not reach the pool.

SIGnAL reports that early generations copy their examples; a copy of a labeled text has distance 0 to it and would
get an unbounded score, so copies never reach the scorer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from genal_ray.pools import Pools
from genal_ray.tasks import Task
from genal_ray.text import normalized
from genal_ray.types import Candidate, Completion, Fate, Instance


def judge(completions: Sequence[Completion], task: Task, pools: Pools, *, round: int) -> list[Candidate]:
    """A candidate per completion, in order; kept ones carry the instance `s-<round>-<position>`."""
    seen = pools.synthetic_texts()
    candidates = []
    for position, completion in enumerate(completions):
        fate, instance = _judge(completion, task, pools, seen, id=f"s-{round:04d}-{position:06d}", round=round)
        if instance is not None:
            seen.add(normalized(instance.student_input))
        candidates.append(Candidate(completion=completion, fate=fate, instance=instance))
    return candidates


def _judge(
    completion: Completion, task: Task, pools: Pools, seen: set[str], *, id: str, round: int
) -> tuple[Fate, Instance | None]:
    if not completion.text.strip():
        return Fate.EMPTY, None
    parsed = task.parse(completion.text)
    if completion.finish_reason == "length" and parsed != _parsed_if_it_went_on(completion, task):
        return Fate.TRUNCATED, None
    if parsed is None:
        return Fate.UNPARSEABLE, None
    text, text_pair = parsed
    instance = Instance(id=id, text=text, text_pair=text_pair, origin="synthetic", round=round)
    key = normalized(instance.student_input)
    if not key.strip():
        return Fate.EMPTY, None
    if pools.is_copy(key):
        return Fate.COPIED, None
    if key in seen:
        return Fate.DUPLICATE, None
    return Fate.KEPT, instance


def _parsed_if_it_went_on(completion: Completion, task: Task) -> tuple[str, str | None] | None:
    """A completion that was cut off after its instance was complete, in a line that is not read, is as good as any."""
    return task.parse(completion.text + " and so on")


def fate_metrics(candidates: Sequence[Candidate]) -> dict[str, float]:
    """`gen/num_<fate>` for every fate, and the mean length of completions in tokens."""
    counts = Counter(candidate.fate for candidate in candidates)
    num_tokens = sum(len(candidate.completion.token_ids) for candidate in candidates)
    return {
        "gen/num_completions": len(candidates),
        "gen/num_tokens": num_tokens,
        "gen/mean_tokens": num_tokens / max(len(candidates), 1),
        **{f"gen/num_{fate}": counts[fate] for fate in Fate},
    }
