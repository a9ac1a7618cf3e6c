"""Sentences per second of sentence-transformers' `encode`; run by benchmarks/student.py in the peer's environment.

    python student_peer.py MODEL_FOLDER THREADS < texts.json
"""

from __future__ import annotations

import json
import sys
import time

import torch
from sentence_transformers import SentenceTransformer


def main() -> None:
    folder, threads = sys.argv[1], int(sys.argv[2])
    texts = json.load(sys.stdin)
    torch.set_num_threads(threads)
    model = SentenceTransformer(folder, device="cpu")
    model.encode(texts[:64])
    started = time.perf_counter()
    model.encode(texts)
    print(len(texts) / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
