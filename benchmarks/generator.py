"""Bulk generation: tokens per second through Ray Serve against bare offline `LLM.generate`, same prompts, one run.

    python benchmarks/generator.py [--prompts 512] [--max-tokens 48] [--repeats 5]

Both engines stay up and take turns, so that a busy machine slows both; the figure is the median of the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).resolve().parent.parent
LIMIT = 0.8


def main() -> None:
    options = parse_arguments()
    sys.path.insert(0, str(REPOSITORY))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.bare:
        serve_bare(options)
        return
    report = asyncio.run(compare(options))
    print(json.dumps(report, indent=2))
    sys.exit(0 if report["passed"] else 1)


def parse_arguments() -> argparse.Namespace:
    domain_lm = REPOSITORY.parent / "shared" / "models" / "domain-lm"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(domain_lm) if domain_lm.is_dir() else "package://support-lm")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts-per-request", type=int, default=64)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_config(options: argparse.Namespace) -> Any:
    from genal_ray.config import GeneratorConfig

    return GeneratorConfig(
        model=options.model,
        max_model_len=512,
        max_tokens=options.max_tokens,
        threads=options.threads,
        prompts_per_request=options.prompts_per_request,
    )


def make_prompts(options: argparse.Namespace) -> list[Any]:
    from genal_ray.types import Prompt

    examples = ("of an authentic feel", "really good things can come in enormous packages", "is listless , witless")
    text = "Based on the following examples of movie reviews, come up with a new example:\n" + "".join(
        f"Example {i}: {example}\n" for i, example in enumerate(examples, 1)
    )
    return [
        Prompt(id=str(i), text=f"{text}Example 4: number {i}\nNew Example:", example_ids=(), seed=i)
        for i in range(options.prompts)
    ]


async def compare(options: argparse.Namespace) -> dict[str, Any]:
    import ray
    from ray import serve

    from actors.generator import GeneratorService

    folder = tempfile.mkdtemp(prefix="gb-", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=folder,
        runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}},
    )
    bare = start_bare()
    try:
        service = GeneratorService(make_config(options), "benchmark")
        await service.start()
        return await measure(options, service, bare)
    finally:
        bare.kill()
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


async def measure(options: argparse.Namespace, service: Any, bare: subprocess.Popen[str]) -> dict[str, Any]:
    prompts = make_prompts(options)
    through_serve, offline, same = [], [], 1.0
    for repeat in range(options.repeats + 1):
        begun = time.perf_counter()
        completions = await service.generate(prompts)
        rate = sum(len(c.token_ids) for c in completions) / (time.perf_counter() - begun)
        peer = await asyncio.to_thread(ask_bare, bare)
        same = statistics.mean(list(c.token_ids) == t for c, t in zip(completions, peer["tokens"], strict=True))
        if repeat:  # the first pass warms both up
            through_serve.append(rate)
            offline.append(peer["tokens_per_s"])
    ratio = statistics.median(a / b for a, b in zip(through_serve, offline, strict=True))
    return {
        "benchmark": "generator",
        "figures": {
            "serve_tokens_per_s": round(statistics.median(through_serve)),
            "offline_tokens_per_s": round(statistics.median(offline)),
            "ratio": round(ratio, 3),
            "ratios": [round(a / b, 3) for a, b in zip(through_serve, offline, strict=True)],
            "same_completions": round(same, 3),
        },
        "limits": {"ratio": LIMIT},
        "passed": ratio >= LIMIT,
        "setting": {
            "model": Path(options.model).name,
            "prompts": options.prompts,
            "max_tokens": options.max_tokens,
            "threads": options.threads,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
        },
    }


def start_bare() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, "--bare", *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ask_bare(bare: subprocess.Popen[str]) -> dict[str, Any]:
    assert bare.stdin is not None
    assert bare.stdout is not None
    bare.stdin.write("generate\n")
    bare.stdin.flush()
    answer = bare.stdout.readline()
    if not answer:
        raise RuntimeError("the process with the offline engine ended; its error is above")
    return dict(json.loads(answer))


def serve_bare(options: argparse.Namespace) -> None:
    """The peer: one offline engine with the replica's arguments, which generates whenever it is told to."""
    answers = take_stdout()
    from actors.generator_engine import engine_args, model_location, replica_env

    config = make_config(options)
    os.environ.update(replica_env(config))
    from vllm import LLM, SamplingParams

    engine = LLM(**engine_args(config, model_location(config)))
    prompts = make_prompts(options)
    sampling = [
        SamplingParams(temperature=1.0, max_tokens=options.max_tokens, seed=p.seed, logprobs=0) for p in prompts
    ]
    for _ in sys.stdin:
        begun = time.perf_counter()
        outputs = engine.generate([p.text for p in prompts], sampling, use_tqdm=False)
        seconds = time.perf_counter() - begun
        tokens = [list(o.outputs[0].token_ids) for o in outputs]
        print(json.dumps({"tokens_per_s": sum(map(len, tokens)) / seconds, "tokens": tokens}), file=answers, flush=True)


def take_stdout() -> IO[str]:
    """Standard output for answers only: what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()
