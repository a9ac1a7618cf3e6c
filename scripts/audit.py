"""Known vulnerabilities of the locked packages, by pip-audit: audit.py requirements/cpu.txt

Exit codes: 0 none is known, 1 some are, 2 wrong usage or no pip-audit, 3 the advisory service could not be asked.
What it does not know (a build that is not on PyPI) is listed, not passed over; where it knows hardly any package, it
was not the advisory service that answered.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOUND, WRONG, NOT_ASKED = 1, 2, 3
ENOUGH = 0.9
"""Share of the packages that the service has to know."""


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        return _say("usage: audit.py requirements/cpu.txt", WRONG)
    lock = Path(arguments[0]).read_text(encoding="utf-8")
    pins = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;+]+)", lock, re.MULTILINE)
    if not pins:
        return _say(f"{arguments[0]} pins no package", WRONG)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as plain:  # advisories know torch 2.13.0, not 2.13.0+cpu
        plain.write("".join(f"{name}=={version}\n" for name, version in pins))
        plain.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", plain.name, "--no-deps", "--disable-pip"]
        command += ["--progress-spinner=off", "--format=json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named pip_audit" in done.stderr:
        return _say("pip-audit is not installed here: pip install pip-audit", WRONG)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return _say(f"not audited: the advisory service could not be asked ({last})", NOT_ASKED)
    return _judge(packages)


def _judge(packages: list[dict[str, Any]]) -> int:
    known = [package for package in packages if "vulns" in package]
    unknown = [package["name"] for package in packages if "vulns" not in package]
    if len(known) < ENOUGH * len(packages):
        return _say(
            f"not audited: the advisory service knows {len(known)} of {len(packages)} packages, so it is not what "
            "answered: can this machine reach it, or is there a mirror without advisories between?",
            NOT_ASKED,
        )
    if unknown:
        print(f"not known to the advisory service: {', '.join(unknown)}")
    found = [(package, flaw) for package in known for flaw in package["vulns"]]
    for package, flaw in found:
        fixed = ", ".join(flaw.get("fix_versions", [])) or "no version yet"
        print(f"{package['name']} {package['version']}: {flaw['id']}, mended in {fixed}")
    return _say(f"{len(known)} packages audited, {len(found)} vulnerabilities known", FOUND if found else 0)


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr if code > FOUND else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
