#!/usr/bin/env python3
"""The version is one in all places: `python .ci/version.py`, and before a release `--released v1.2.3`."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> list[str]:
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    wrong = []
    if sections[0] != "Unreleased" and sections[0].split()[0] != version:
        wrong.append(f"CHANGELOG.md begins with `{sections[0]}`; it is `Unreleased` or {version}")
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    for package in ("taskvec-core", "taskvec-python"):
        found = next(each["version"] for each in locked if each["name"] == package)
        if found != version:
            wrong.append(f"Cargo.lock has {package} {found}; Cargo.toml has {version}")
    if arguments[:1] == ["--released"]:
        if arguments[1:] != [f"v{version}"]:
            wrong.append(f"the tag is `{' '.join(arguments[1:])}`; that of version {version} is `v{version}`")
        if not re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", sections[0]):
            wrong.append(f"CHANGELOG.md begins with `{sections[0]}`; a release is `{version} (YYYY-MM-DD)`")
        if "Source" not in project["urls"]:
            wrong.append("pyproject.toml names no `Source`, the address of the repository, in [project.urls]")
    return wrong


if __name__ == "__main__":
    problems = main(sys.argv[1:])
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(bool(problems))
