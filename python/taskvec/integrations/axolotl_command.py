"""``axolotl task-vector CONFIG``: what a training of axolotl has learned, saved or added to a model.

axolotl finds it by the entry point group ``axolotl.cli_commands``.
"""

from __future__ import annotations

import os
from typing import Any

import click

from taskvec.errors import Error, RecipeError
from taskvec.files import look
from taskvec.models.adapter_config import CONFIG as ADAPTER_CONFIG


class _Failure(click.ClickException):
    """An error of taskvec as click shows errors: what is wrong, and the way out."""

    def __init__(self, error: Error) -> None:
        super().__init__(f"{error.message}\nhint: {error.hint}" if error.hint else error.message)


@click.command(
    "task-vector", short_help="save what a training has learned as a task vector, or add it to a model"
)
@click.argument("config", type=click.Path(dir_okay=False))
@click.option(
    "-o",
    "--out",
    metavar="DIR",
    help="Where the result goes.  [default: next to output_dir, with -task-vector]",
)
@click.option("--target", metavar="MODEL", help="Add the step to this model, and write that.")
@click.option(
    "--alpha", type=float, default=1.0, show_default=True, help="Factor of the step, with --target."
)
@click.option("--dtype", metavar="DTYPE", help="A smaller type for the vector, with loss.")
@click.option("--overwrite", is_flag=True, help="Replace what the folder holds.")
def command(
    config: str, out: str | None, target: str | None, alpha: float, dtype: str | None, overwrite: bool
) -> None:
    """Save output_dir - base_model of CONFIG as a task vector, or add it to another model."""
    try:
        click.echo(run(config, out, target, alpha, dtype, overwrite=overwrite))
    except Error as error:
        raise _Failure(error) from None


def run(
    config: str, out: str | None, target: str | None, alpha: float, dtype: str | None, *, overwrite: bool
) -> str:
    """Do what the command says; the folder that was written.

    Raises
    ------
    RecipeError
        The configuration lacks a model, or asks for a vector of an adapter.
    taskvec.Error
        A model was not found, or the result cannot be written.
    """
    import taskvec as tv

    settings = read(config)
    base, trained = settings.get("base_model"), settings.get("output_dir")
    if not isinstance(base, str) or not isinstance(trained, str):
        missing = "base_model" if not isinstance(base, str) else "output_dir"
        raise RecipeError(
            f"`{config}` has no `{missing}`", "give the configuration that the model was trained with"
        )
    # next to the model: an output never lies within its input
    place = out or f"{os.path.normpath(trained)}-task-vector"
    if look.exists(os.path.join(trained, ADAPTER_CONFIG)):
        if target is None:
            raise RecipeError(
                f"`{trained}` holds an adapter, which is a vector already",
                "add it to a model with `--target MODEL`, or merge it first (`axolotl merge-lora`)",
            )
        if alpha != 1.0:
            raise RecipeError("an adapter is added with its own scale", "leave out `--alpha`")
        document = {"merge_method": "passthrough", "models": [{"model": f"{target}+{trained}"}]}
        tv.merge(document, place, overwrite=overwrite)
    elif target is None:
        tv.extract(trained, base, place, dtype=dtype, overwrite=overwrite)
    else:
        tv.transfer(target, trained, base, place, alpha=alpha, overwrite=overwrite)
    return place


def read(config: str) -> dict[str, Any]:
    """The configuration as plain data.

    Raises
    ------
    RecipeError
        It is not YAML with keys.
    """
    import yaml

    from taskvec.recipe.parse import read_text

    try:
        found = yaml.safe_load(read_text(config))
    except yaml.YAMLError as error:
        raise RecipeError(f"`{config}` is not YAML: {str(error).splitlines()[0]}", "check the file") from None
    if not isinstance(found, dict):
        raise RecipeError(f"`{config}` has no keys", "give a configuration of axolotl")
    return found
