"""The direction of imports, and that the method imports without the heavy parts."""

from __future__ import annotations

import subprocess
import sys

import pytest
from importlinter.cli import lint_imports

HEAVY = ("ray", "vllm", "deepspeed")


def test_import_contracts_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert lint_imports(no_cache=True) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("genal_ray.loop", HEAVY),
        ("genal_ray.config", (*HEAVY, "torch", "transformers", "datasets")),
        ("cluster.cli", (*HEAVY, "torch", "transformers", "datasets")),
    ],
)
def test_module_imports_without(module: str, banned: tuple[str, ...]) -> None:
    code = f"import sys, {module}; sys.exit(', '.join(sorted(set({banned!r}) & set(sys.modules))) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{module} imports {result.stderr}"
