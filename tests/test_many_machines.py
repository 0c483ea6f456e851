"""The page on many machines: what runs its jobs can read them, and its table follows from its formula."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import yaml

from taskvec import cli

PAGE = Path(__file__).parents[1] / "docs" / "many-machines.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
SHELL = [text for kind, text in BLOCKS if kind == "bash"]


@pytest.mark.parametrize("text", SHELL)
def test_every_script_is_one_for_the_shell(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, capture_output=True)


def commands() -> list[list[str]]:
    """The words of every taskvec command of the page, of the YAML too."""
    found = []
    for kind, text in BLOCKS:
        lines = text.replace("\\\n", " ")
        if kind == "yaml":
            lines = "\n".join(re.findall(r'args: \["(.*)"\]', lines))
        for line in lines.splitlines():
            match = re.search(r"(?:^|srun |--wrap ')taskvec (.*?)'?$", line)
            if match:
                found.append(shlex.split(match[1], comments=True))
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_one_of_ours(words: list[str]) -> None:
    words = [re.sub(r"\$\w*(INDEX|ID)\w*", "0", word) for word in words]
    words = [re.sub(r"\$SLURM_CPUS_PER_TASK", "8", word) for word in words]
    with click.Context(cli.cli) as context:
        command = cli.cli.get_command(context, words[0])
        assert command is not None
        command.make_context(words[0], list(words[1:]), parent=context)


def test_there_are_commands_of_every_kind() -> None:
    verbs = {words[0] for words in commands()}
    assert verbs >= {"transfer", "apply", "merge", "plan", "run", "verify", "sweep"}


def test_the_job_of_kubernetes() -> None:
    (job,) = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml" and "kind: Job" in text]
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1, 2]}}
    # a policy by exit code needs pods that are not restarted in place
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    (container,) = spec["template"]["spec"]["containers"]
    assert f"$JOB_COMPLETION_INDEX/{spec['completions']}" in container["args"][0]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def test_the_arrays_of_slurm_have_as_many_parts_as_tasks() -> None:
    arrays = [text for text in SHELL if "#SBATCH --array" in text]
    assert len(arrays) > 1
    for text in arrays:
        match = re.search(r"--array=0-(\d+)", text)
        assert match is not None
        assert f'--part "$SLURM_ARRAY_TASK_ID/{int(match[1]) + 1}"' in text


def test_the_table_follows_from_the_formula() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) GB \| (\d+) GB \| (\d+) s \| (\d+) s \| (\d+) s \| "
                      r"(\w+) \| (\d+) s \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)  # fmt: skip
    assert [row[0] for row in rows] == ["1", "16", "64"]
    for row in rows:
        machines, *told, bound, time = row
        files = math.ceil(200 / int(machines))
        fetch, compute, send = files * 15 / 3.125, files * 5e9 * 5.3e-9 / 16, files * 5 / 3.125
        steps = {"fetch": fetch, "compute": compute, "send": send}
        assert [int(each) for each in told] == [
            files, files * 15, files * 5, *(round(each) for each in steps.values())
        ]  # fmt: skip
        assert steps[bound] == max(steps.values())
        assert int(time) == round(max(steps.values()) + compute / files + send / files)
