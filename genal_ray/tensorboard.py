"""TensorBoard output beside metrics.jsonl: one scalar per metric, the round as the step."""

from __future__ import annotations

import math
from pathlib import Path

from genal_ray.types import RoundReport


class TensorBoard:
    """Event files below `folder`; nothing is written until the first report."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(folder))

    def write(self, report: RoundReport, *, wall_time: float) -> None:
        for name, value in report.metrics.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, report.round, walltime=wall_time)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
