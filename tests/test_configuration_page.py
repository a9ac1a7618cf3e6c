"""docs/configuration.md tells of the configuration as it is."""

from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "configuration_page.py"


def test_the_page_is_that_of_the_configurations_classes() -> None:
    script = runpy.run_path(str(SCRIPT))
    assert script["PAGE"].read_text() == script["page"](), f"write it anew: python scripts/{SCRIPT.name}"
