#!/usr/bin/env python3
"""The conda recipe renders for each platform, and asks for what pyproject.toml asks for."""

import re
import sys
import tomllib
from pathlib import Path

import rattler_build

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "docs" / "install" / "recipe.yaml"
# With the C library that conda-forge compiles against.
PLATFORMS = {
    "linux-64": "sysroot",
    "linux-aarch64": "sysroot",
    "osx-64": "macosx_deployment_target",
    "osx-arm64": "macosx_deployment_target",
}


def main() -> list[str]:
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {_plain(each) for each in [f"python{project['requires-python']}", *project["dependencies"]]}
    wrong = []
    for platform, stdlib in PLATFORMS.items():
        variants = rattler_build.VariantConfig({"python": ["3.11.*", "3.13.*"], "c_stdlib": [stdlib]})
        config = rattler_build.RenderConfig(platform=rattler_build.PlatformConfig(target_platform=platform))
        rendered = rattler_build.Stage0Recipe.from_file(RECIPE).render(variants, config)
        if not rendered:
            wrong.append(f"{platform}: nothing is rendered")
        for each in rendered:
            if each.recipe.package.version != version:
                wrong.append(f"the recipe is of {each.recipe.package.version}, Cargo.toml of {version}")
            run = each.recipe.to_dict()["requirements"]["run"]
            asked = {_plain(need if isinstance(need, str) else str(need)) for need in run}
            if asked != wanted:
                wrong.append(f"{platform}: recipe and pyproject.toml differ by {sorted(asked ^ wanted)}")
    return wrong


def _plain(requirement: str) -> str:
    """Name and bound in one spelling: conda has `ml_dtypes >=0.4` where Python has `ml-dtypes>=0.4`."""
    return re.sub(r"[\s_-]+", "", requirement).lower()


if __name__ == "__main__":
    problems = sorted(set(main()))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(bool(problems))
