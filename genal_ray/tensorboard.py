"""TensorBoard output beside metrics.jsonl: one scalar per metric, the round as the step."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from genal_ray.files import writing
from genal_ray.types import RoundReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Event files below `folder`; nothing is written until the first report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def write(self, report: RoundReport, *, wall_time: float) -> None:
        """Raises RunError when the disk refuses."""
        from torch.utils.tensorboard import SummaryWriter

        with writing(self.folder):
            if self._writer is None:
                self._writer = SummaryWriter(log_dir=str(self.folder))
            for name, value in report.metrics.items():
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, report.round, walltime=wall_time)
            self._writer.flush()

    def close(self) -> None:
        """What was not flushed may be lost: the figures are in metrics.jsonl too."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
