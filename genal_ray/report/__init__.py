"""One self-contained HTML page for a run directory or a comparison directory: no network, no script.

    directory ─► RunPage or ComparisonPage (frozen values) ─► charts (SVG) ─► templates (autoescaped) ─► report.html

Everything is read, nothing of the directory is changed: a run in progress may be looked at.
"""

from __future__ import annotations

from pathlib import Path

from genal_ray.errors import RunError, UserError
from genal_ray.files import write_text
from genal_ray.report.comparison import is_comparison, read_comparison
from genal_ray.report.html import render
from genal_ray.report.run import read_run
from genal_ray.store import RunDirectory

__all__ = ["write_report"]


def write_report(directory: Path, output: Path | None = None) -> Path:
    """Write the page of a run or comparison directory to `output` (default: report.html in it); returns where.

    Raises UserError for a directory that is neither, and where the page cannot be written.
    """
    target = (output or directory / "report.html").expanduser().absolute()
    html = _page(directory, target)
    try:
        write_text(target, html)
    except RunError as error:
        raise UserError(f"{error}; or give another --output") from error
    return target


def _page(directory: Path, target: Path) -> str:
    if is_comparison(directory):
        return render("comparison.html", page=read_comparison(directory, link_from=target.parent))
    store = RunDirectory(directory.expanduser())
    if not store.config_file.is_file():
        raise UserError(
            f"{directory} is neither a run nor a comparison: give the directory that `genal-ray run` or "
            "`genal-ray compare` wrote (it holds config.yaml or comparison.json)"
        )
    return render("run.html", page=read_run(store))
