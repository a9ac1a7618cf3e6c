"""Train the bundled annotator of the example data: a linear classifier over hashed n-grams.

    python scripts/train_example_annotator.py      # genal_ray/data/support/annotator/{config.json,model.safetensors}

It reads the train split and many more messages sampled from the same grammar, never a row of the test split,
on which its accuracy is measured after rounding the weights to what is stored.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from make_example_data import DATA_DIR, LABELS, messages
from safetensors.numpy import save_file
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression

from genal_ray.annotators.linear import CONFIG_FILE, WEIGHTS_FILE, Hashing, LinearConfig
from genal_ray.text import normalized

HASHING = Hashing(buckets=1 << 18, word_ngrams=4, char_ngrams=(4, 5))
SAMPLE_SEED = 77


def read(path: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["text"], row["label"]) for row in rows]


def features(texts: list[str]) -> csr_matrix:
    """A row of unit length per text, like LinearLabeler.logits."""
    indices = [HASHING.indices(text) for text in texts]
    starts = np.concatenate([[0], np.cumsum([len(i) for i in indices])])
    values = np.concatenate([np.full(len(i), 1 / np.sqrt(len(i)), dtype=np.float32) for i in indices])
    return csr_matrix((values, np.concatenate(indices), starts), shape=(len(texts), HASHING.buckets))


def accuracy(weights: npt.NDArray[np.float16], bias: npt.NDArray[np.float16], rows: list[tuple[str, str]]) -> float:
    logits = features([text for text, _ in rows]) @ weights.astype(np.float32) + bias.astype(np.float32)
    right = np.argmax(logits, axis=1) == np.array([LABELS.index(label) for _, label in rows])
    return float(np.mean(right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA_DIR, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--samples", type=int, default=80_000, help="further messages from the grammar")
    parser.add_argument("--out", type=Path, default=DATA_DIR / "annotator")
    args = parser.parse_args()
    train, test = read(args.data / "train.jsonl"), read(args.data / "test.jsonl")
    held_out = {normalized(text) for text, _ in test}
    train += [row for row in islice(messages(SAMPLE_SEED), args.samples) if normalized(row[0]) not in held_out]
    model = LogisticRegression(C=30.0, max_iter=200, tol=1e-3)
    model.fit(features([text for text, _ in train]), [LABELS.index(label) for _, label in train])
    weights, bias = model.coef_.T.astype(np.float16), model.intercept_.astype(np.float16)
    config = LinearConfig(
        label_names=LABELS, accuracy=round(accuracy(weights, bias, test), 4), hashing=HASHING
    )
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({"weights": np.ascontiguousarray(weights), "bias": bias}, args.out / WEIGHTS_FILE)
    (args.out / CONFIG_FILE).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (args.out / WEIGHTS_FILE).chmod(0o644)
    print(f"{args.out}: {len(train)} messages, accuracy {config.accuracy} on {len(test)} test rows")


if __name__ == "__main__":
    main()
