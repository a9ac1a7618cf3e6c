"""GenAL-Ray: generative active learning on Ray.

For a notebook:

    import genal_ray
    directory = genal_ray.run("demo", output_dir="runs/first")
    [report.metrics["al/accuracy"] for report in genal_ray.load_run(directory).reports()]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genal_ray.store import RunDirectory

__all__ = ["load_run", "run"]
__version__ = "0.1.0"


def run(
    config: str,
    overrides: Sequence[str] = (),
    *,
    output_dir: str | None = None,
    work_dir: str | None = None,
    address: str | None = None,
) -> Path:
    """Run a configuration file or preset to its end, on a private Ray cluster or the one at `address`.

    Returns the run directory; where `output_dir` is a URL, the one in which the run was worked on (`work_dir`). Raises
    genal_ray.errors.UserError for what can be mended before anything starts, and RunError when the run failed; what it
    had done is kept and `genal-ray resume` goes on from there.
    """
    from cluster.launch import run as launch

    return launch(config, list(overrides), output_dir=output_dir, work_dir=work_dir, address=address)


def load_run(directory: str | Path) -> RunDirectory:
    """A run directory, finished or not: its configuration, reports and label ledger."""
    from genal_ray.location import local_folder
    from genal_ray.store import RunDirectory

    return RunDirectory(local_folder(str(directory), "load_run of"))
