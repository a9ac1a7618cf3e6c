"""PPO update: tokens/s of the learner against TRL 1.10's PPOTrainer on the same model, rollouts, passes and threads.

    python -m venv /tmp/trl110 && /tmp/trl110/bin/pip install -r benchmarks/requirements-trl110.txt
    python benchmarks/ppo.py --model FOLDER --peer-python /tmp/trl110/bin/python

Generation and reward model are left out on both sides. TRL takes the old log-probabilities from generation for free,
the learner recomputes them within the time that is measured; both compute reference log-probabilities and values.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

LIMIT = 2.5
EPOCHS, MINIBATCHES = 4, 4
WORKLOADS = {
    "uniform": {"prompt": (64, 64), "response": (32, 32)},
    "ragged": {"prompt": (40, 110), "response": (8, 48)},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a causal language model")
    parser.add_argument(
        "--peer-python", help="interpreter of an environment with TRL 1.10; without it only our figures"
    )
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--updates", type=int, default=4, help="timed updates; the median counts, after one to warm up")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    if arguments.job:
        side, file = arguments.job
        run = {"learner": run_learner, "trl": run_peer}[side]
        print(json.dumps(run(json.loads(Path(file).read_text()))))
        return 0
    report = compare(arguments)
    print(json.dumps(report, indent=2))
    return 0 if report["passed"] else 1


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    from genal_ray.precision import cpu_has_bf16

    figures: dict[str, float] = {}
    dtypes = ["float32", "bfloat16"] if cpu_has_bf16() else ["float32"]
    for name, lengths in WORKLOADS.items():
        rows = make_rows(arguments.sequences, vocabulary(arguments.model), **lengths)
        for dtype in dtypes:
            job = {
                "model": str(Path(arguments.model).resolve()),
                "rows": rows,
                "dtype": dtype,
                "updates": arguments.updates,
                "threads": arguments.threads,
            }
            if arguments.peer_python:
                figures[f"{name}/trl_{dtype}_tokens_per_s"] = start("trl", arguments.peer_python, job)
            figures[f"{name}/learner_{dtype}_tokens_per_s"] = start("learner", sys.executable, job)
        if arguments.peer_python:
            for dtype in dtypes:
                ours, peers = (
                    figures[f"{name}/learner_{dtype}_tokens_per_s"],
                    f"{name}/trl_float32_tokens_per_s",
                )
                figures[f"{name}/speedup_{dtype}"] = ours / figures[peers]
            figures[f"{name}/speedup_{dtypes[-1]}_both"] = ours / figures[f"{name}/trl_{dtypes[-1]}_tokens_per_s"]
    limits = {f"{name}/speedup_{dtypes[-1]}": LIMIT for name in WORKLOADS}
    return {
        "benchmark": "ppo_update",
        "figures": {key: round(value, 3) for key, value in figures.items()},
        "limits": limits,
        "passed": all(figures.get(key, 0.0) >= limit for key, limit in limits.items()),
        "sequences": arguments.sequences,
        "passes": f"{EPOCHS} epochs of {MINIBATCHES} minibatches",
        "threads": arguments.threads,
        "machine": platform.processor() or platform.machine(),
    }


def vocabulary(model: str) -> int:
    return int(json.loads((Path(model) / "config.json").read_text())["vocab_size"])


def make_rows(
    count: int, vocab_size: int, *, prompt: tuple[int, int], response: tuple[int, int]
) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) token ids, drawn by a fixed seed; token 0 is left to padding."""
    import random

    rng = random.Random(0)

    def draw(low: int, high: int) -> list[int]:
        return [rng.randrange(1, vocab_size) for _ in range(rng.randint(low, high))]

    return [(draw(*prompt), draw(*response)) for _ in range(count)]


def start(side: str, python: str, job: dict[str, Any]) -> float:
    """tokens/s of one side, measured in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "PYTHONWARNINGS": "ignore"}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        command = [python, __file__, "--model", job["model"], "--job", side, file.name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    speed = float(json.loads(done.stdout.strip().splitlines()[-1]))
    print(f"{side} {job['dtype']}: {speed:.0f} tokens/s", file=sys.stderr)
    return speed


def run_learner(job: dict[str, Any]) -> float:
    """tokens/s of the learner's update, one worker without Ray."""
    import ray

    from actors.learner_worker import LearnerWorker
    from genal_ray.config import RunConfig
    from genal_ray.types import Completion, Rollout

    config = RunConfig.model_validate(
        {
            "task": {"domain": "texts"},
            "data": {"source": "unused"},
            "student": {"model": "minilm"},
            "annotators": {"synthetic": "hidden"},
            "generator": {"model": job["model"]},
            "learner": {
                "dtype": job["dtype"],
                "epochs": EPOCHS,
                "batch_size": len(job["rows"]) // MINIBATCHES,
                "micro_batch_size": len(job["rows"]) // MINIBATCHES,
                "threads": job["threads"],
            },
        }
    )
    rollouts = [
        Rollout(
            completion=Completion(
                prompt_id=str(i),
                text="",
                prompt_token_ids=tuple(prompt),
                token_ids=tuple(response),
                logprobs=(-9.0,) * len(response),
                finish_reason="stop",
                policy_version=0,
            ),
            reward=float(i % 2),
        )
        for i, (prompt, response) in enumerate(job["rows"])
    ]
    worker = LearnerWorker(config, rank=0, world_size=1)
    ray.util.get_node_ip_address = lambda: "127.0.0.1"
    worker.start(*worker.listen())
    speeds = []
    for version in range(job["updates"] + 1):
        with tempfile.TemporaryDirectory() as folder:
            speeds.append(worker.update(rollouts, version, Path(folder))["rl/tokens_per_s"])
    worker.stop()
    return median(speeds[1:])


def run_peer(job: dict[str, Any]) -> float:
    """tokens/s of TRL's update phase: from the end of generation to its log line, less the reward model."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental import ppo as trl_ppo
    from trl.experimental.ppo import ppo_trainer

    torch.set_num_threads(job["threads"])
    rows, count = job["rows"], len(job["rows"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    tokenizer.pad_token_id = 0
    responses = padded([r for _, r in rows], left=False)
    queries = padded([p for p, _ in rows], left=True)

    clock: dict[str, float] = {}
    seconds: list[float] = []

    def generation(model: Any, given: Any, size: int, pad: int, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
        answers = torch.cat([torch.tensor(queries), torch.tensor(responses)], 1)
        with torch.no_grad():
            logits = torch.cat(
                [
                    ppo_trainer.forward(model, part, pad).logits[:, len(queries[0]) - 1 : -1].float()
                    for part in answers.split(16)
                ]
            )
        clock.update(start=time.perf_counter(), reward=0.0)
        return answers, logits

    compute_reward = ppo_trainer.get_reward

    def reward(model: Any, tokens: Any, pad: int, context: int) -> Any:
        started = time.perf_counter()
        result = compute_reward(model, tokens, pad, context)
        if model is trainer.reward_model:
            clock["reward"] += time.perf_counter() - started
        return result

    ppo_trainer.batch_generation = generation
    ppo_trainer.get_reward = reward
    load = {"dtype": torch.float32}
    score, value = (
        AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1, **load) for _ in range(2)
    )
    policy, reference = (AutoModelForCausalLM.from_pretrained(job["model"], **load) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_ppo.PPOTrainer(
            args=trl_ppo.PPOConfig(
                output_dir=folder,
                use_cpu=True,
                bf16=job["dtype"] == "bfloat16",
                gradient_checkpointing=False,
                per_device_train_batch_size=count,
                gradient_accumulation_steps=1,
                num_mini_batches=MINIBATCHES,
                num_ppo_epochs=EPOCHS,
                local_rollout_forward_batch_size=count // MINIBATCHES,
                total_episodes=count * (job["updates"] + 1),
                response_length=len(responses[0]),
                num_sample_generations=0,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
            ),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=score,
            value_model=value,
            train_dataset=Dataset.from_dict({"input_ids": queries}),
        )
        trainer.log = lambda *_: seconds.append(time.perf_counter() - clock["start"] - clock["reward"])
        trainer.train()
    assert len(seconds) == job["updates"] + 1
    return sum(len(p) + len(r) for p, r in rows) / median(seconds[1:])


def padded(rows: list[list[int]], *, left: bool) -> list[list[int]]:
    width = max(map(len, rows))
    return [[0] * (width - len(r)) * left + r + [0] * (width - len(r)) * (not left) for r in rows]


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    sys.exit(main())
