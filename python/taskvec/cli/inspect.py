"""``taskvec inspect``: what a checkpoint or vector holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskvec.cli.console import Console, Page
from taskvec.cli.job import write_survival, write_vector
from taskvec.cli.options import argument, option, reading_options, talk_options, variant_option, verb
from taskvec.text import amount, plural, printable, size

if TYPE_CHECKING:
    from taskvec.report.inspect import Inspection

EXAMPLES = """
A local folder, or one on the hub (headers and small files alone are fetched):
  taskvec inspect out
  taskvec inspect Qwen/Qwen2.5-0.5B

Every tensor, for a script:
  taskvec inspect out --json | jq '.tensors[].name'
"""

CONFIG_KEYS = (
    "model_type", "architectures", "num_hidden_layers", "hidden_size", "intermediate_size",
    "num_attention_heads", "num_key_value_heads", "num_experts", "vocab_size", "max_position_embeddings",
    "rope_theta", "tie_word_embeddings", "dtype", "torch_dtype",
)  # fmt: skip
SHOWN = 30  # tensors printed without --all


@verb("inspect", examples=EXAMPLES)
@argument(
    "path",
    metavar="PATH",
    help="A checkpoint, a saved vector or an adapter: a folder, a file, a hub id, or an address.",
)
@option(
    "--all",
    "show_all",
    is_flag=True,
    section="Output",
    help=f"List every tensor, not the first {SHOWN} alone.",
)
@reading_options
@variant_option
@talk_options("inspect")
def command(console: Console, path: str, show_all: bool) -> int:
    """Show tensors, types, shapes, files and configuration of PATH, from headers alone.

    PATH is a folder, a safetensors file, a hub id or a task vector that taskvec saved. No weights are read.
    """
    from taskvec.api import inspect

    result = inspect(path)
    page = console.data()
    write_facts(page, result)
    page.line()
    write_files(page, result)
    page.line()
    write_tensors(page, result, len(result.tensors) if show_all or console.verbose else SHOWN)
    console.show(page)
    console.emit({key: value for key, value in result.to_dict().items() if key != "schema"})
    return 0


def write_facts(page: Page, result: Inspection) -> None:
    """Place, size and configuration."""
    page.line(page.paint(printable(result.spec), bold=True))
    if result.location != result.spec:
        page.fact("at", printable(result.location))
    if result.revision:
        page.fact("revision", printable(f"{result.repository}@{result.revision}"))
    page.fact("kind", result.kind)
    types = ", ".join(
        dtype if count == result.parameters else f"{dtype} {amount(count)}"
        for dtype, count in result.dtypes.items()
    )
    vector = (result.manifest or {}).get("vector")
    if vector is not None:
        write_vector(page, vector)
    tensors = plural(len(result.tensors), "tensor")
    label = "parameters" if vector is None else "values"
    page.fact(label, f"{amount(result.parameters)} in {tensors} ({types})")
    page.fact("size", f"{size(result.bytes)} in {plural(len(result.files), 'file')}")
    if result.download:
        page.fact("download", f"{size(result.download)} would be fetched to merge it")
    known = [f"{key} {_shown(result.config[key])}" for key in CONFIG_KEYS if key in result.config]
    if known or vector is None:
        page.fact("config", ", ".join(known) or "none")
    if result.other_files:
        page.fact("others", printable(", ".join(result.other_files)))
    if result.manifest is not None:
        engine = result.manifest["engine"]
        page.fact("made by", printable(f"taskvec {engine['version']}"))
        if result.manifest.get("command"):
            page.fact("command", printable(result.manifest["command"]))
        if vector is None:
            write_survival(page, result.survival, result.unmeasured)


def _shown(value: Any) -> str:
    return printable(", ".join(map(str, value)) if isinstance(value, list) else value)


def write_files(page: Page, result: Inspection) -> None:
    """The weight files."""
    page.table(
        ("file", "size", "tensors", "parameters"),
        (
            (printable(file.name), size(file.bytes), f"{file.tensors:,}", amount(file.parameters))
            for file in result.files
        ),
        right=(1, 2, 3),
    )


def write_tensors(page: Page, result: Inspection, limit: int) -> None:
    """The tensors in file order, or the first of them."""
    page.table(
        ("tensor", "type", "shape", "size"),
        (
            (
                printable(info.name),
                info.dtype,
                " x ".join(map(str, info.shape)) or "scalar",
                size(info.nbytes),
            )
            for info in result.tensors[:limit]
        ),
        right=(2, 3),
    )
    if len(result.tensors) > limit:
        page.words(f"... and {len(result.tensors) - limit:,} more; --all lists them")
