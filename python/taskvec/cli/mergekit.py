"""``taskvec-yaml``: the arguments of ``mergekit-yaml``, run by ``taskvec merge``.

What is needless here is named in a note; what cannot be done is an error with the way out.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

import click

from taskvec.cli.console import Console, UsageError
from taskvec.cli.needless import NEEDLESS
from taskvec.cli.options import together
from taskvec.option import near_flag

_LARGEST = 1 << 62
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}


def _switch(name: str, default: bool = False) -> Any:
    option = name.replace("_", "-")
    return click.option(f"--{option}/--no-{option}", name, default=default, hidden=name in NEEDLESS)


_OPTIONS = [
    click.option("--transformers-cache", metavar="DIR", help="Where models of the hub are kept."),
    click.option("--random-seed", type=int, metavar="N", help="Seed of methods that draw random numbers."),
    click.option("-v", "verbose", count=True, help="Say more."),
    click.option("--quiet/--no-quiet", default=False, help="Print nothing to stderr but errors."),
    click.option("-j", "--num-threads", type=int, metavar="N", help="Worker threads."),
    click.option("--out-shard-size", metavar="SIZE", help="Largest weight file, in bytes: `5B`."),
    click.option("--overwrite", is_flag=True, help="Replace what OUT_PATH holds."),
    click.option("--force", multiple=True, metavar="ID", help="Go on in spite of a finding."),
    click.option("--dry-run", is_flag=True, help="Print the plan and stop; nothing is written."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON to stdout."),
    _switch("unsafe_truncate_embeddings"),
    _switch("copy_tokenizer", True),
    _switch("write_model_card", True),
    _switch("safe_serialization", True),
    *(
        click.option(f"--{name.replace('_', '-')}", name, hidden=True)
        for name in ("lora_merge_cache", "lora_merge_dtype", "device", "write_threads")
    ),
    click.option("--gpu-rich", "gpu_rich", is_flag=True, hidden=True),
    *(
        _switch(name)
        for name in (
            "allow_crimes", "trust_remote_code", "cuda", "low_cpu_memory", "lazy_unpickle", "read_to_gpu",
            "multi_gpu", "async_write", "clone_tensors",
        )
    ),
]  # fmt: skip


class _Command(click.Command):
    """A command whose unknown options are errors that say where the known ones are."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            near = near_flag(error.option_name, error.possibilities or ())
            raise UsageError(
                f"`{error.option_name}` is not an option of mergekit-yaml",
                f"did you mean `{near}`?"
                if near
                else "`taskvec-yaml --help` lists the options, `taskvec merge --help` those of taskvec",
            ) from None


@click.command(
    cls=_Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.argument("config_file")
@click.argument("out_path")
@together(*_OPTIONS)
@click.pass_context
def command(context: click.Context, config_file: str, out_path: str, **options: Any) -> int:
    """Merge models by a recipe in mergekit's format, with the arguments of mergekit-yaml.

    Runs `taskvec merge CONFIG_FILE OUT_PATH`. Options of mergekit-yaml that are needless here (GPUs, caches
    of adapters, threads that write) are taken and named in a note.
    """
    console = Console(
        "merge", as_json=options["as_json"], quiet=options["quiet"], verbose=options["verbose"] > 0
    )
    words = _words(config_file, out_path, options)
    page = console.talk()
    for name, why in NEEDLESS.items():
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE and options[name]:
            page.level("note", f"`--{name.replace('_', '-')}` is not needed: {why}")
    for name, why in _kept(options):
        page.level("note", f"`{name}` has no effect: {why}")
    console.say(page)
    from taskvec.cli import cli

    result = cli.main(words, prog_name="taskvec", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _kept(options: dict[str, Any]) -> list[tuple[str, str]]:
    """Options that turn off what is always written."""
    found = []
    if not options["copy_tokenizer"]:
        found.append(("--no-copy-tokenizer", "the tokenizer of the base comes along, as all of its files do"))
    if not options["write_model_card"]:
        found.append(("--no-write-model-card", "the card says what the output is made of; remove README.md"))
    return found


def _words(config: str, out: str, options: dict[str, Any]) -> list[str]:
    """The command line of ``taskvec merge``.

    Raises
    ------
    UsageError
        An option asks for what cannot be done.
    """
    if not options["safe_serialization"]:
        raise UsageError(
            "`--no-safe-serialization` would write pickles, which can run code when they are loaded",
            "leave it out: safetensors are written",
        )
    words = ["merge", config, out]
    if options["transformers_cache"]:
        os.environ["HF_HUB_CACHE"] = options["transformers_cache"]
    if options["random_seed"] is not None:
        words += ["--seed", str(options["random_seed"])]
    if options["num_threads"] is not None:
        words += ["--threads", str(options["num_threads"])]
    if options["out_shard_size"] is not None:
        words += ["--max-shard-size", str(_bytes_of(options["out_shard_size"]))]
    force = [*options["force"], *(["vocabulary-rows"] if options["unsafe_truncate_embeddings"] else [])]
    words += [word for finding in force for word in ("--force", finding)]
    names = {"overwrite": "--overwrite", "dry_run": "--dry-run", "as_json": "--json", "quiet": "--quiet"}
    words += [word for name, word in names.items() if options[name]]
    return words + (["--verbose"] if options["verbose"] else [])


def _bytes_of(size: str) -> int:
    """The bytes of a weight file: mergekit says parameters, and counts bytes.

    Raises
    ------
    UsageError
        The text is not a number with one of its units.
    """
    text = size.strip().upper()
    unit = text[-1:] if text[-1:] in _UNITS else ""
    try:
        count = int(float(text.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError):
        count = 0
    if not 0 < count < _LARGEST:
        raise UsageError(f"`--out-shard-size {size}` is not a size", "write it as `5B`, `500M` or a number")
    return count


def main() -> NoReturn:
    """The console entry point."""
    from taskvec.cli import main as start

    start(command, "merge")
