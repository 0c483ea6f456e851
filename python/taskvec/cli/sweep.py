"""``taskvec sweep``: the experiment, with its controls."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from taskvec.cli.console import Console
from taskvec.cli.eval_options import (
    backend_options,
    preset_given,
    settings_given,
    task_options,
    tasks_given,
)
from taskvec.cli.eval_output import show, show_costs, show_forecast, watching
from taskvec.cli.options import (
    Alphas,
    Size,
    alpha_option,
    argument,
    flatten,
    option,
    selection_options,
    split_names,
    storage_option,
    talk_options,
    verb,
)
from taskvec.cli.part_options import part_options, parts_given
from taskvec.text import plural, roles

EXAMPLES = """
The paper's experiment with its controls, on a published donor:
  taskvec sweep qwen2.5-math-1.5b -o out

The paper's settings, as far as they are known, for models of 7B:
  taskvec sweep --target T --donor D --reference R --paper 7b --confirm-run-unsafe-code -o out

From the command line:
  taskvec sweep --target T --donor D --reference R --alpha -1,0,0.5,1 --tasks gsm8k --think -o out

Against continued SFT and distillation, which started from the reference too:
  taskvec sweep --target T --donor D --reference R --base B --rival more-sft --rival distilled -o out

A saved vector; four GPUs; at most 100 GB of merged models at a time:
  taskvec sweep --target T --vector V --donor D --reference R --tasks gsm8k,sciq --devices 0,1,2,3 \\
      --scratch-budget 100GB -o out

On a Ray cluster whose nodes see the models and the output folder:
  taskvec sweep qwen2.5-math-1.5b -o /shared/out --ray auto

Which layers carry the vector, and how little of it does:
  taskvec sweep --target T --donor D --reference R --tasks gsm8k --groups 4 --modules --top 1,5,20 \\
      --rank 4,16 --sign -o out

A sweep file, with less of it to try it out:
  taskvec sweep my.yaml --limit 50 -o trial
"""


@verb("sweep", examples=EXAMPLES)
@argument(
    "file",
    metavar="[FILE]",
    required=False,
    help="A sweep file in YAML, or the name of one that is shipped; `-` is standard input.",
)
@option("--target", metavar="MODEL", section="Models", help="Receives the vector.")
@option("--donor", metavar="MODEL", section="Models", help="The fine-tuned model to take the change from.")
@option("--reference", metavar="MODEL", section="Models", help="What the donor was before it was fine-tuned.")
@option("--vector", metavar="VEC", section="Models", help="A saved vector, instead of donor - reference.")
@option("--base", metavar="MODEL", section="Models", help="What the reference was tuned from: SFT control.")
@option(
    "--rival",
    "rivals",
    multiple=True,
    metavar="MODEL",
    section="Models",
    help="Trained from the reference another way, such as continued SFT: its vector is an arm (repeatable).",
)
@option(
    "--sft-alpha",
    "sft_alphas",
    type=Alphas(),
    multiple=True,
    metavar="A[,A...]",
    section="Models",
    callback=flatten,
    help="More factors of the SFT vector, besides 1 and v's norm.",
)
@alpha_option("Factors of the vector.  [default: -1,0,0.5,1]")
@task_options
@option("--think-only", is_flag=True, default=None, section="Evaluation", help="Run no arm without --think.")
@option("--random", type=click.IntRange(0), metavar="N", section="Evaluation",
        help="Random vectors of the same norm per tensor.  [default: 3]")  # fmt: skip
@option("--permuted", type=click.IntRange(0), metavar="N", section="Evaluation",
        help="Vectors with their own values shuffled within each tensor.  [default: 1]")  # fmt: skip
@option("--development", type=click.FloatRange(0, 1, max_open=True), metavar="SHARE", section="Evaluation",
        help="Share of documents on which alpha is chosen.  [default: 0.3]")  # fmt: skip
@option("--choose", type=click.Choice(["once", "task"]), section="Evaluation",
        help="Choose one alpha for all tasks, or one for each.  [default: once]")  # fmt: skip
@part_options
@selection_options
@option("--out-dtype", metavar="DTYPE", section="Arithmetic", help="Type of the merged weights.")
@option("--rounding", type=click.Choice(["nearest", "stochastic"]), section="Arithmetic",
        help="How merged weights are rounded.  [default: nearest]")  # fmt: skip
@option("--force", multiple=True, metavar="ID[,ID...]", callback=split_names, section="Checks",
        help="Go on in spite of these compatibility findings.")  # fmt: skip
@option("-o", "--out", required=True, metavar="OUT", type=click.Path(file_okay=False), section="Output",
        help="Folder of the report and the arms.")  # fmt: skip
@option("--arms", type=click.Choice(["place", "merged"]), section="Machine",
        help="Make the weights of arms in the target, loaded once, where that gives the bytes of a merge; or "
        "merge each into a folder.  [default: place]")  # fmt: skip
@option("--scratch", metavar="DIR", type=click.Path(file_okay=False), section="Output",
        help="Where merged models lie while they are evaluated.  [default: OUT/scratch]")  # fmt: skip
@option("--scratch-budget", type=Size(), metavar="SIZE", section="Output",
        help="What they may take together.  [default: half of what is free]")  # fmt: skip
@option("--keep", is_flag=True, section="Output", help="Leave merged models in the scratch folder.")
@option(
    "--dry-run",
    is_flag=True,
    section="Output",
    help="Print the experiment, its power and its cost, and stop.",
)
@backend_options
@option("--devices", multiple=True, callback=split_names, metavar="N[,N...]", section="Machine",
        help="Run arms side by side, one process per GPU.")  # fmt: skip
@option("--jobs", type=click.IntRange(1), default=1, metavar="N", section="Machine",
        help="Run arms side by side on one device.")  # fmt: skip
@option("--ray", section="Machine", metavar="[ADDRESS]", is_flag=False, flag_value="local",
        help="Run arms on a Ray cluster that shares a file system, one on each GPU.")  # fmt: skip
@storage_option
@talk_options("sweep")
def command(console: Console, file: str | None, out: str, **options: Any) -> int:
    """Merge, evaluate and compare a vector with its controls.

    Arms: the baseline (the target as it is), the vector at every alpha, donor and reference, random and
    permuted vectors at the alpha that a development part of the documents chooses, and the vectors of rivals,
    as they are and at the norm of the chosen one: of each --rival, which was trained from the reference by
    another way, and the SFT vector if --base is given. FILE is a sweep file (YAML) or the name of one that
    ships with taskvec; options go before what it says. The same command goes on after an interruption.
    """
    from taskvec.evaluation.backend.evaluate import require_extra
    from taskvec.evaluation.experiment import experiment, load_experiment
    from taskvec.evaluation.machines import hold_device
    from taskvec.evaluation.sweep.sweep import run_sweep
    from taskvec.run.sinks import hold_folder

    hold_folder(out, "a sweep")
    for device in options["devices"]:
        hold_device(device)
    require_extra()
    content = load_experiment(file).model_dump(mode="json", exclude_unset=True) if file else {}
    named = _merged(_merged(content, preset_given(options)), _given(options))
    if file:
        whole = experiment(named, source=file)
    else:
        with _said_by_options():
            whole = experiment(named, source="the command line")
    if options["dry_run"]:
        return _plan(console, whole, Path(out))
    with watching(console) as progress:
        report = run_sweep(
            whole,
            Path(out),
            scratch=Path(options["scratch"]) if options["scratch"] else None,
            budget=options["scratch_budget"],
            keep=options["keep"],
            devices=options["devices"],
            jobs=options["jobs"],
            ray=options["ray"],
            progress=progress,
        )
    show(console, report, Path(out))
    return 0


# keys of a sweep file whose options have another name
_OPTIONS = {"alphas": "alpha", "sft_alphas": "sft-alpha", "rivals": "rival"}
_KEY = re.compile(r"`(?:[a-z_]+\.)*([a-z_]+)`")


@contextlib.contextmanager
def _said_by_options() -> Iterator[None]:
    """Around what reads an experiment: a mistake is told by the options, and not by the keys of a file."""
    from taskvec.errors import RecipeError

    def option_of(found: re.Match[str]) -> str:
        name = f"--{_OPTIONS.get(found[1], found[1]).replace('_', '-')}"
        return f"`{name}`" if name in known else found[0]

    try:
        yield
    except RecipeError as error:
        known = {word for given in command.params for word in given.opts}
        raise RecipeError(
            _KEY.sub(option_of, error.message), error.hint or "`taskvec sweep --help` explains the options"
        ) from None


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a command line in the layout of a sweep file, without those that are not given."""
    preset = options["preset"] if options["preset"] != "full" else None
    content = {
        **{key: options[key] for key in ("target", "donor", "reference", "vector", "base")},
        **{key: options[key] for key in ("think", "think_only", "choose")},
        "rivals": list(options["rivals"]),
        "sft_alphas": list(options["sft_alphas"]),
        "alphas": list(options["alpha"]),
        "tasks": list(tasks_given(options)),
        "perturb": list(options["perturb"]),
        "arms": options["arms"],
        "development": options["development"],
        "parts": parts_given(options),
        "controls": {"random": options["random"], "permuted": options["permuted"]},
        "evaluation": settings_given(options),
        "merge": {
            "include": list(options["include"]),
            "exclude": list(options["exclude"]),
            "preset": preset,
            "layers": options["layers"],
            "out_dtype": options["out_dtype"],
            "rounding": options["rounding"],
            "force": list(options["force"]),
        },
    }
    return _without_empty(content)


def _without_empty(content: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in content.items():
        value = _without_empty(value) if isinstance(value, dict) else value
        if value is not None and value != [] and value != {}:
            found[key] = value
    return found


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two layers of settings; the command line goes before the file."""
    found = dict(below)
    for key, value in above.items():
        found[key] = _merged(found.get(key) or {}, value) if isinstance(value, dict) else value
    return found


def _plan(console: Console, experiment: Any, out: Path) -> int:
    from taskvec.evaluation.arms import RIVALS
    from taskvec.evaluation.sweep.forecast import forecast
    from taskvec.evaluation.sweep.part_arms import part_arms
    from taskvec.evaluation.sweep.part_vectors import vector_names
    from taskvec.evaluation.sweep.sweep import planned_arms

    arms, found = planned_arms(experiment), forecast(experiment, out)
    parts = part_arms(experiment, (1.0,), vector_names(experiment))
    page = console.data()
    page.line(experiment.to_yaml().rstrip())
    page.line()
    page.fact("arms", ", ".join(arm.name for arm in arms))
    controls = experiment.controls
    drawn = [
        plural(count, f"{kind} vector")
        for kind, count in (("random", controls.random), ("permuted", controls.permuted))
        if count
    ]
    rivals = [arm.name for arm in arms if arm.kind in RIVALS and arm.alpha == 1]
    waiting = [*drawn, *([f"{roles(rivals)} at the norm of +v"] if rivals else [])]
    each = "each alpha chosen for a task" if experiment.choose == "task" else "the alpha chosen for all tasks"
    page.fact("then", f"{roles(waiting) or 'nothing more'}, at {each}")
    if parts:
        page.fact("and", f"parts of the vector, tested apart: {', '.join(arm.name for arm in parts)}")
    show_forecast(page, found)
    show_costs(page, found.costs)
    page.fact("dry run", "nothing was merged or evaluated")
    console.show(page)
    console.emit(
        {
            "dry_run": True,
            "experiment": experiment.model_dump(mode="json"),
            "arms": [arm.name for arm in arms],
            "parts": [arm.name for arm in parts],
            "power": {key: value for key, value in asdict(found).items() if key != "costs"},
            "costs": [asdict(cost) for cost in found.costs],
        }
    )
    return 0
