"""Whether PPO raises what it is rewarded for: rounds of learning while the student stays the same.

    python benchmarks/ppo_fixed_student.py RUN_DIRECTORY [--rounds 20] [--prompts 512] [--set key=value]

In a run the student changes every round, and with it what is rewarded. Here generator, scorer and learner are those of
the product and work as in a run, but nothing is labeled and nobody retrains the student: it is the run's last, with the
run's labeled set. Before the first and after the last round the generator answers the same prompts with the same
seeds. Prints one JSON object, as `ppo_teaches.py` does, and the mean score of every round on standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ppo_teaches import draw_prompts, figures

from actors.generator import GeneratorService
from actors.learner import LearnerGroup
from actors.scorer import ScorerPool
from actors.weights import resolve_backend
from cluster.resources import private_cpus, requirements
from cluster.session import private_cluster
from genal_ray.config import RunConfig, load_config
from genal_ray.corpus import Corpus, load_corpus
from genal_ray.guards import judge
from genal_ray.ledger import Ledger
from genal_ray.pools import Pools
from genal_ray.resume import restore_pools
from genal_ray.rewards import build_rollouts
from genal_ray.seeds import derive_seed
from genal_ray.stages import student_codec
from genal_ray.store import RunDirectory
from genal_ray.tasks import build_task
from genal_ray.types import Candidate, Completion, LabeledInstance, Scores, StudentFit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a run with a generator")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--texts", type=int, default=56, help="completions of a round")
    parser.add_argument("--prompts", type=int, default=512, help="for the comparison before and after")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    store = RunDirectory(args.run)
    config = load_config(str(store.config_file), args.set)
    with private_cluster(config, private_cpus(config, requirements(config))):
        report = asyncio.run(teach(config, store, args))
    print(json.dumps({"benchmark": "ppo_fixed_student", "rounds": args.rounds, "set": args.set, **report}, indent=1))


async def teach(config: RunConfig, store: RunDirectory, args: argparse.Namespace) -> dict[str, float | int]:
    assert config.generator is not None
    corpus, last = load_corpus(config), store.committed_rounds()[-1]
    student = store.round(last).load("student", student_codec(store.path))
    labeled = restore_pools(config, store, corpus, Ledger(store.ledger_file, corpus.labels).open()).labeled
    generator = GeneratorService(config.generator, "ppo-fixed-student", backend=resolve_backend(config))
    learner = LearnerGroup(config, generator.load_policy, generator.app_name)
    world = World(config, corpus, student, labeled, ScorerPool(config))
    try:
        await asyncio.gather(generator.start(), learner.start(), world.scorer.start())
        prompts = draw_prompts(config, corpus, args.prompts)
        before = await generator.generate(prompts)
        with tempfile.TemporaryDirectory() as folder:
            for number in range(1, args.rounds + 1):
                rng = np.random.default_rng(derive_seed(config.seed, "fixed student", number))
                completions = await generator.generate(draw_prompts(config, corpus, args.texts, rng))
                candidates, scores = await world.score(completions)
                rollouts, rewards = build_rollouts(candidates, scores, config.reward)
                policy = await learner.update(rollouts, number, Path(folder) / str(number))
                await learner.hand_over(policy)
                row = {"round": number, "mean": rewards.get("rl/reward_mean"), "kl": policy.metrics["rl/kl"]}
                print(json.dumps(row), file=sys.stderr, flush=True)
        after = await generator.generate(prompts)
        values = {"before": await world.values(before), "after": await world.values(after)}
    finally:
        await asyncio.gather(generator.stop(), learner.stop(), world.scorer.stop())
    return figures(values, before, after)


class World:
    """A student that does not change, and what it says of completions."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        student: StudentFit,
        labeled: Sequence[LabeledInstance],
        scorer: ScorerPool,
    ) -> None:
        self._config, self._student, self._labeled = config, student, labeled
        self._task, self._pools = build_task(config.task), Pools(corpus.pool)
        self.scorer = scorer

    async def score(self, completions: Sequence[Completion]) -> tuple[list[Candidate], Scores]:
        """As in a round: duplicates and copies get no score."""
        candidates = judge(completions, self._task, self._pools, round=1, guards=self._config.guards)
        instances = [c.instance for c in candidates if c.instance is not None]
        function = self._config.reward_function
        return candidates, await self.scorer.score(instances, self._labeled, self._student, function, budget=0)

    async def values(self, completions: Sequence[Completion]) -> np.ndarray:
        """Scores [n], NaN for completions that would not have reached the pool."""
        candidates, scores = await self.score(completions)
        known = dict(zip(scores.ids, scores.values.tolist(), strict=True))
        return np.array([np.nan if c.instance is None else known[c.instance.id] for c in candidates])


if __name__ == "__main__":
    main()
