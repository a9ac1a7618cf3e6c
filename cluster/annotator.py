"""Training the annotator of synthetic instances, on this machine, with a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.console import console, step_bar
from cluster.runtime_env import go_offline
from genal_ray.config import load_config
from genal_ray.paths import is_local


def train(
    source: str,
    overrides: Sequence[str],
    output_dir: Path,
    *,
    rows: int | None,
    model: str | None,
    epochs: float | None,
) -> dict[str, float]:
    """Returns the figures of annotator.json; raises UserError for bad input, see genal_ray.annotator_training.

    `epochs` is the last override of student.epochs.
    """
    settings = [*overrides, *([] if epochs is None else [f"student.epochs={epochs}"])]
    config = load_config(source, settings, without=("generator", "annotators.synthetic"))
    if model is None or is_local(model):
        go_offline(config)
    from genal_ray.annotator_training import train_annotator  # after go_offline: imports the Hugging Face libraries

    with step_bar(console(stderr=True), "training") as progress:
        return train_annotator(config, output_dir, rows=rows, model=model, progress=progress)
