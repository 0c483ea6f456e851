"""The jobs of the page and the composite action: each is read by what its program would read it with."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.models import Trio
from support.pages import DOCS, ROOT
from taskvec import cli

PAGE = (DOCS / "pipelines.md").read_text(encoding="utf-8")
ACTION = ROOT / ".github" / "actions" / "merge" / "action.yml"
# By the heading that they stand below.
KINDS = {"GitHub Actions": "github-workflow", "GitLab": "gitlab-ci", "Kubernetes": "kubernetes-job"}
YAML = [
    (KINDS[heading], text)
    for heading, section in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    for text in re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
]
SHELL = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
# Schemas that check-jsonschema brings along.
SCHEMAS = {"github-workflow": "vendor.github-workflows", "gitlab-ci": "vendor.gitlab-ci"}


def checked(place: Path, schema: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_has_a_job_of_each_kind() -> None:
    assert {kind for kind, _ in YAML} == {*SCHEMAS, "kubernetes-job"}
    assert len(SHELL) == 2
    assert PAGE.count("```yaml") == len(YAML)


@pytest.mark.parametrize(
    ("kind", "text"), [row for row in YAML if row[0] in SCHEMAS], ids=lambda each: each[:12]
)
def test_jobs_follow_the_schema_of_their_program(kind: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "job.yml").write_text(text)
    checked(tmp_path / "job.yml", SCHEMAS[kind])
    data = yaml.safe_load(text)
    name = next(key for key in data if key not in ("name", "on", True))
    data[name] = {"scritp": 1}
    (tmp_path / "bad.yml").write_text(yaml.safe_dump(data))
    with pytest.raises(AssertionError):
        checked(tmp_path / "bad.yml", SCHEMAS[kind])


def test_the_action_follows_its_schema() -> None:
    checked(ACTION, "vendor.github-actions")


def test_the_job_of_kubernetes_is_one() -> None:
    (job,) = [yaml.safe_load(text) for kind, text in YAML if kind == "kubernetes-job"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]["template"]["spec"]
    mounts = {mount["name"] for each in spec["containers"] for mount in each["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["volumes"]}
    # a policy for failures needs pods that are not started again in place
    assert spec["restartPolicy"] == "Never"
    assert job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]


@pytest.mark.parametrize("text", SHELL)
def test_scripts_are_ones_for_the_shell(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    # what follows the first command is no setting any more
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


def commands() -> list[list[str]]:
    """The words of every taskvec command of the jobs."""
    found = []
    for _, text in YAML:
        for value in strings(yaml.safe_load(text)):
            found += [shlex.split(value)] if value.startswith("taskvec ") else []
        found += [list(each) for each in lists(yaml.safe_load(text)) if each[:1] == ["taskvec"]]
    for text in SHELL:
        found += [shlex.split(line.removeprefix("srun ")) for line in text.splitlines() if "taskvec " in line]
    return found


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    each = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in each for text in strings(item)]


def lists(value: Any) -> list[list[str]]:
    found = [value] if isinstance(value, list) and all(isinstance(item, str) for item in value) else []
    each = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return found + [row for item in each for row in lists(item)]


def test_the_commands_of_the_jobs_parse() -> None:
    import click

    found = commands()
    assert len(found) >= 6
    for words in found:
        command = cli.cli.get_command(click.Context(cli.cli), words[1])
        assert command is not None, words
        rest = [word for word in words[2:] if word != ">"]
        rest = rest[: rest.index("report.json")] if "report.json" in rest else rest
        command.make_context(words[1], [word.replace("$SLURM_CPUS_PER_TASK", "8") for word in rest])


def test_the_scripts_of_the_action_do_the_merge(trio: Trio, tmp_path: Path) -> None:
    steps = yaml.safe_load(ACTION.read_text())["runs"]["steps"]
    models = [
        {"model": str(folder), "parameters": {"weight": 0.5}} for folder in (trio.donor, trio.reference)
    ]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "taskvec"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m taskvec "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "RECIPE": "recipe.yaml", "OUT": "out put", "OPTIONS": "--out-dtype float32  --threads 1",
        "RUNNER_TEMP": str(tmp_path), "GITHUB_OUTPUT": str(tmp_path / "outputs"),
    }  # fmt: skip
    for step in steps:
        if step.get("run", "").startswith("python -m pip"):
            continue
        if "run" in step:
            subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=environment, check=True)
    outputs = dict(line.split("=", 1) for line in (tmp_path / "outputs").read_text().splitlines())
    assert outputs["out"] == "out put"
    assert json.loads(Path(outputs["report"]).read_text())["outputs"][0]["shards"]
    assert (tmp_path / "out put" / "taskvec.json").exists()


def test_no_input_of_the_action_reaches_a_shell_as_text() -> None:
    for step in yaml.safe_load(ACTION.read_text())["runs"]["steps"]:
        assert "${{" not in step.get("run", ""), step["name"]
        if "uses" in step:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"])
