"""Whether learning taught the generator anything: what it writes before and after a run, scored by one fixed student.

    python benchmarks/ppo_teaches.py RUN_DIRECTORY [--prompts 512]

During a run the student changes every round, so its scores of successive rounds cannot be compared. Here the pretrained
policy and the run's last one answer the same prompts with the same seeds, and one student, the run's last, scores both
against the run's labeled set. A prompt whose completion is unusable under either policy (unparseable, cut off, a copy
of the real pool) leaves the pairs and is counted. Prints one JSON object; `p_value` is the paired t-test's, one-sided.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from genal_ray.acquisition import Pointwise
from genal_ray.config import RunConfig
from genal_ray.corpus import Corpus, load_corpus
from genal_ray.guards import judge
from genal_ray.inference import StudentModel
from genal_ray.knn import LabeledIndex
from genal_ray.ledger import Ledger
from genal_ray.paths import resolve_model
from genal_ray.pools import Pools
from genal_ray.resume import last_policies, restore_pools
from genal_ray.stages import student_codec
from genal_ray.store import RunDirectory
from genal_ray.tasks import build_task
from genal_ray.types import Completion, Prompt, StudentFit, Text

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a run with a learner")
    parser.add_argument("--prompts", type=int, default=512)
    args = parser.parse_args()
    store = RunDirectory(args.run)
    config, rounds = store.load_config(), store.committed_rounds()
    policy = last_policies(store).served
    if config.generator is None or policy is None:
        raise SystemExit(f"{args.run}: no policy was learned")
    corpus = load_corpus(config)
    prompts = draw_prompts(config, corpus, args.prompts)
    before = answers(resolve_model(config.generator.model), prompts, config)
    after = answers(policy.path, prompts, config)
    student = store.round(rounds[-1]).load("student", student_codec(store.path))
    labeled = restore_pools(config, store, corpus, Ledger(store.ledger_file, corpus.labels).open()).labeled
    judge_by = FixedStudent(config, student, [item.instance.student_input for item in labeled])
    scores = {name: judge_by.score(texts, config, corpus) for name, texts in (("before", before), ("after", after))}
    report = {"benchmark": "ppo_teaches", "rounds": len(rounds) - 1, **figures(scores, before, after)}
    print(json.dumps(report, indent=1))


def draw_prompts(
    config: RunConfig, corpus: Corpus, count: int, rng: np.random.Generator | None = None
) -> list[Prompt]:
    """The strategy's own prompts, of a round that the run did not have."""
    pools = Pools(corpus.pool)
    rng = rng or np.random.default_rng(0)
    task = build_task(config.task)
    prompts: list[Prompt] = []
    while len(prompts) < count:
        prompts += config.strategy.build_prompts(
            pools, task, round=0, budget=count, label_names=corpus.label_names, rng=rng
        )
    return prompts[:count]


@torch.inference_mode()
def answers(model: str, prompts: Sequence[Prompt], config: RunConfig) -> list[Completion]:
    """A completion of each prompt, sampled as in the run; the same noise for every policy."""
    assert config.generator is not None
    tokenizer = AutoTokenizer.from_pretrained(model)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    end = lm.generation_config.eos_token_id if lm.generation_config.eos_token_id is not None else tokenizer.eos_token_id
    completions = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        inputs = tokenizer([p.text for p in batch], padding=True, padding_side="left", return_tensors="pt")
        torch.manual_seed(start)
        written = lm.generate(
            **inputs,
            do_sample=True,
            temperature=config.generator.temperature,
            top_p=1.0,
            top_k=0,
            max_new_tokens=config.generator.max_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end,
            eos_token_id=end,
        )[:, inputs["input_ids"].shape[1] :].tolist()
        ends = set(end) if isinstance(end, list) else {end}
        completions += [_completion(p, row, ends, tokenizer) for p, row in zip(batch, written, strict=True)]
    return completions


def _completion(prompt: Prompt, row: list[int], ends: set[int], tokenizer: Any) -> Completion:
    stop = next((i for i, token in enumerate(row) if token in ends), None)
    tokens = row if stop is None else row[: stop + 1]
    return Completion(
        prompt_id=prompt.id,
        text=tokenizer.decode(tokens, skip_special_tokens=True),
        prompt_token_ids=(),
        token_ids=tuple(tokens),
        logprobs=(),
        finish_reason="length" if stop is None else "stop",
        policy_version=0,
    )


class FixedStudent:
    """The student of one round, and the labeled set as it sees it."""

    def __init__(self, config: RunConfig, student: StudentFit, labeled: Sequence[Any]) -> None:
        scorer = config.scorer
        self._model = StudentModel.load(
            student.path, encoding=scorer.encoding, normalize=scorer.normalize, max_length=config.student.max_length
        )
        self._index = LabeledIndex(self._model.predict(labeled))

    def score(self, completions: Sequence[Completion], config: RunConfig, corpus: Corpus) -> np.ndarray:
        """Acquisition scores [n], NaN for completions that would not have reached the pool."""
        function = config.reward_function
        assert isinstance(function, Pointwise)
        task, pools = build_task(config.task), Pools(corpus.pool)
        texts: dict[int, Text] = {}
        for row, completion in enumerate(completions):  # each by itself: a duplicate of another one is usable here
            (candidate,) = judge([completion], task, pools, round=0, guards=config.guards)
            if candidate.instance is not None:
                texts[row] = candidate.instance.student_input
        scores = np.full(len(completions), np.nan)
        features = self._model.predict(list(texts.values()))
        scores[list(texts)] = function.score(features, self._index, np.zeros(len(texts), np.uint64))
        return scores


def figures(
    scores: dict[str, np.ndarray], before: Sequence[Completion], after: Sequence[Completion]
) -> dict[str, float | int]:
    pairs = ~np.isnan(scores["before"]) & ~np.isnan(scores["after"])
    first, last = scores["before"][pairs], scores["after"][pairs]
    test = stats.ttest_rel(last, first, alternative="greater")
    interval = test.confidence_interval  # one-sided
    return {
        "prompts": len(before),
        "pairs": int(pairs.sum()),
        "usable_before": round(float((~np.isnan(scores["before"])).mean()), 4),
        "usable_after": round(float((~np.isnan(scores["after"])).mean()), 4),
        "distinct_before": len({c.text for c in before}),
        "distinct_after": len({c.text for c in after}),
        "mean_before": float(first.mean()),
        "mean_after": float(last.mean()),
        "median_before": float(np.median(first)),
        "median_after": float(np.median(last)),
        "difference_at_least": float(interval(0.95).low),
        "p_value": float(test.pvalue),
        "p_value_wilcoxon": float(stats.wilcoxon(last, first, alternative="greater").pvalue),
        "mean_tokens_before": float(np.mean([len(c.token_ids) for c in before])),
        "mean_tokens_after": float(np.mean([len(c.token_ids) for c in after])),
    }


if __name__ == "__main__":
    main()
