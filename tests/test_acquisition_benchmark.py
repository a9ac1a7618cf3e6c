"""benchmarks/acquisition.py runs, and its two sides agree."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "acquisition.py"


def test_quick_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("acquisition_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, benchmark)  # where its dataclasses look themselves up
    spec.loader.exec_module(benchmark)
    assert benchmark.main(["--quick", "--without-memory"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["figures"]) == {"signal", "cal", "badge"}
    assert all(figures["speedup"] > 1 for figures in report["figures"].values())
