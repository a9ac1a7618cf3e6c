"""What a killed launcher leaves behind, and who clears it away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cluster.leftovers import session_folder

CHILD = """
import sys, signal
from pathlib import Path
from cluster.leftovers import session_folder
with session_folder(Path(sys.argv[1])) as folder:
    (folder / "socket").touch()
    print(folder, flush=True)
    signal.pause()
"""


def launcher(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def age(folder: Path) -> None:
    os.utime(folder / "owner.lock", (0, 0))


def test_the_folder_of_a_killed_launcher_is_removed_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "gr-others").mkdir()
    alive, his = launcher(tmp_path)
    killed, left = launcher(tmp_path)
    try:
        age(his)
        killed.kill()
        killed.wait()
        with session_folder(tmp_path):
            assert left.exists(), "too young to be called abandoned"
        age(left)
        with session_folder(tmp_path) as mine:
            assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "gr-others", his, mine])
        assert (his / "socket").exists()
    finally:
        alive.kill()
        alive.wait()
    assert not mine.exists()
