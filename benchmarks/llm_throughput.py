"""Calls per second of the chat-model client, as a share of what an endpoint of fixed latency could answer.

    python benchmarks/llm_throughput.py [--latency 0.5] [--concurrency 32] [--calls 640]

The endpoint is a local HTTP server in a process of its own, which answers every request after the same time: with n
calls at a time it answers n / latency calls a second. The client is the whole of it: limits, journal on disk, retries,
reading by schema. Prints one JSON object; exit code 1 below 90%.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from genal_ray.config import LLMConfig
from genal_ray.llm import Message, Request
from genal_ray.llm.client import LLM
from genal_ray.llm.endpoint import Endpoint
from genal_ray.llm.journal import Journal

MIN_SHARE = 0.9
MODEL = "fixed"
SCHEMA = {"type": "object", "properties": {"1": {"type": "string"}}, "required": ["1"], "additionalProperties": False}


def serve(latency: float) -> None:
    """Prints its port, then answers until it is ended."""
    from aiohttp import web

    message = {"role": "assistant", "content": json.dumps({"1": "yes"})}
    completion = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105},
    }
    answer = json.dumps(completion)

    async def complete(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(latency)
        return web.Response(text=answer, content_type="application/json")

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


def request(seed: int) -> Request:
    text = "a text of the usual length that somebody wants to have labeled, " * 4
    return Request(
        purpose="labeling",
        model=MODEL,
        messages=(Message(role="system", content="You label texts."), Message(role="user", content=text)),
        schema=SCHEMA,
        temperature=0.0,
        max_tokens=64,
        seed=seed,
    )


async def calls_per_second(config: LLMConfig, folder: Path, calls: int) -> float:
    llm = LLM(config, Endpoint(config), Journal(folder / "calls.jsonl").open())
    try:
        await llm.complete(request(-1))  # the first call imports and connects
        started = time.perf_counter()
        answers = await asyncio.gather(*(llm.ask([request(i)], lambda value: value["1"]) for i in range(calls)))
        seconds = time.perf_counter() - started
    finally:
        await llm.close()
    assert answers == ["yes"] * calls
    return calls / seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.5, help="seconds of an answer")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--calls", type=int, default=640)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.latency)
        return 0
    os.environ["OPENAI_API_KEY"] = "none"
    command = [sys.executable, __file__, "--serve", "--latency", str(options.latency)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        config = LLMConfig(model=MODEL, base_url=url, concurrency=options.concurrency)
        with tempfile.TemporaryDirectory() as folder:
            ours = asyncio.run(calls_per_second(config, Path(folder), options.calls))
    finally:
        server.terminate()
        server.wait()
    possible = options.concurrency / options.latency
    report = {
        "benchmark": "llm_throughput",
        "calls_per_s": round(ours, 1),
        "possible_per_s": round(possible, 1),
        "share": round(ours / possible, 3),
        "limit": f">= {MIN_SHARE}",
        "passed": ours / possible >= MIN_SHARE,
        "settings": {"latency_s": options.latency, "concurrency": options.concurrency, "calls": options.calls},
    }
    print(json.dumps(report, indent=2))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
