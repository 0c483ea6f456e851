"""The output of the commands that write weights: the plan before, the outcome after."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from taskvec.cli.console import LABEL, Console, Page
from taskvec.option import options_of
from taskvec.run.sinks import absolute, is_address
from taskvec.settings import Settings, format_alpha
from taskvec.text import amount, duration, percent, plural, printable, size

if TYPE_CHECKING:
    from taskvec.compat.findings import Finding
    from taskvec.lazy.plan import Plan
    from taskvec.plan.plan import Source
    from taskvec.report.report import Output, Report
    from taskvec.report.survival import Survival

MOST = 16  # models of a plan that are listed one by one

ENCODINGS = {
    "dense": "dense",
    "mask": "as mask and values",
    "index": "as indices and values",
    "zero": "left out (zero)",
}


def settings_of(options: Mapping[str, Any]) -> Any:
    """The settings among a command's options."""
    return {name: options[name] for name in options_of(Settings) if name in options}


def plan_options(options: Mapping[str, Any]) -> Any:
    """The options of a command that its plan function takes too."""
    return {name: value for name, value in options.items() if name not in ("dry_run", "part", "ray")}


def write_report(
    console: Console,
    report: Report,
    out: str,
    known: Iterable[Any] = (),
    *,
    settings: Settings | None = None,
    is_conversion: bool = False,
) -> None:
    """Print the outcome of a run, without the findings that are known.

    Where the `settings` are strict, a warning among the others fails the command; the output stays.
    """
    page = console.talk()
    write_outcome(page, report, verbose=console.verbose, is_conversion=is_conversion)
    console.say(page)
    told = set(known)
    if settings is not None and settings.strict:
        failed = [each for each in report.findings if each not in told and _fails(each, settings)]
        console.has_failed = bool(failed)
        findings = tuple(_as_error(each) if each in failed else each for each in report.findings)
        report = replace(report, findings=findings)
    console.findings(finding for finding in report.findings if finding not in told)
    console.show("\n".join(printable(output.folder) for output in report.outputs))
    console.emit({"dry_run": False, "out": absolute(out), **report_record(report)})


def _fails(finding: Finding, settings: Settings) -> bool:
    return finding.level == "warning" and finding.id not in settings.force


def _as_error(finding: Finding) -> Finding:
    """A warning that only a result can show, as strict settings take it."""
    accept = f"the output stays; `--force {finding.id} --overwrite` makes it again and lets this pass"
    return replace(finding, level="error", fix=f"{finding.fix}; {accept}" if finding.fix else accept)


def report_record(report: Report) -> dict[str, Any]:
    """A run's report as the body of a JSON object."""
    return {key: value for key, value in report.to_dict().items() if key != "schema"}


def braced(alphas: Sequence[float]) -> str:
    """One alpha as it is, several in braces."""
    words = ", ".join(map(format_alpha, alphas))
    return words if len(alphas) == 1 else f"{{{words}}}"


def write_plan(page: Page, plan: Plan, title: str, out: str, threads: int | None) -> None:
    """The plan in a few lines: what is read, what is computed, what is written where."""
    page.line(page.paint(title, bold=True))
    for source in _few(page, plan.sources):
        at = f" at {source.revision[:12]}" if source.revision else ""
        fetch = f", {size(source.download)} to download" if source.download else ""
        text = f"{printable(source.spec)}{at} ({size(source.bytes_in)}{fetch})"
        if len(source.role) < LABEL:
            page.fact(source.role, text)
        else:  # one model in several roles: `vector 1 and vector 2`
            page.fact(source.role.split()[0], f"{text} as {source.role}")
    room = _room(out, plan.bytes_out)
    if plan.kind == "adapter":
        left = len(plan.document["left"])
        held = f", {plan.copied:,} held whole" if plan.copied else ""
        page.fact("tensors", f"{plan.merged:,} with factors{held}" + (f", {left:,} left out" if left else ""))
        page.fact("disk", f"reads {size(plan.bytes_in)}, writes at most {size(plan.bytes_out)}{room}")
    elif plan.kind == "vector":
        page.fact("tensors", f"{plan.merged:,}")
        page.fact("disk", f"reads {size(plan.bytes_in)}, writes about {size(plan.bytes_out)} if dense{room}")
    else:
        copied = f", {plan.copied:,} copied unchanged" if plan.copied else ""
        done = f"{plan.merged:,} merged{copied}"
        if plan.recipe["verb"] == "convert":
            packed = len({row[6][2] for row in plan.document["tensors"] if len(row) == 7})
            done = (
                f"{packed:,} packed, {plan.tensors - packed:,} plain"
                if packed
                else f"{plan.tensors:,} written"
            )
        elif plan.recipe["verb"] == "tokens":
            done = f"{plan.tensors:,}, {len(plan.tokens.spaces) if plan.tokens else 0} of them in new rows"
        page.fact("tensors", f"{done}; {amount(plan.parameters)} parameters")
        files = plural(len(plan.shards), "file")
        where = f"in {files}" if len(plan.outputs) == 1 else f"in {len(plan.outputs)} outputs of {files}"
        page.fact("disk", f"reads {size(plan.bytes_in)}, writes {size(plan.bytes_out)} {where}{room}")
    page.fact("memory", f"{size(plan.memory(threads))} at most")
    for each in plan.findings:
        if each.id == "quantised-output":
            page.fact("form", each.found)
    if plan.config:
        page.fact("config", ", ".join(_change(key, value) for key, value in plan.config.items()))


def _few(page: Page, sources: Sequence[Source]) -> Iterator[Source]:
    """The models of a plan; of many the first and the last ones, and a line between them."""
    yield from sources if len(sources) <= MOST else sources[: MOST // 2]
    if len(sources) > MOST:
        page.fact("...", f"{len(sources) - MOST // 2 - 1:,} more, and at last")
        yield sources[-1]


def _change(key: str, value: Any) -> str:
    """A key of config.json that changes; a quantisation is told by its method."""
    if value is None:
        return f"without {key}"
    named = value.get("quant_method") if isinstance(value, dict) else None
    return f"{key} = {json.dumps(named or value)}"


def free_bytes(out: str) -> int | None:
    from taskvec.host import free_space

    if is_address(out):
        return None
    try:
        return free_space(out)
    except OSError:
        return None


def _room(out: str, need: int) -> str:
    free = free_bytes(out)
    if free is None:
        return ""
    return f"; {size(free)} free" + (" (too little)" if free < need else "")


def write_outcome(page: Page, report: Report, *, verbose: bool, is_conversion: bool = False) -> None:
    """The outcome: files, speed, and what is left of the step, or what a new format did to the weights."""
    page.line()
    outputs = report.outputs
    total = sum(shard.size for output in outputs for shard in output.shards)
    files = plural(sum(len(output.shards) for output in outputs), "file")
    folder = outputs[0].folder if len(outputs) == 1 else os.path.dirname(outputs[0].folder)
    where = f"{printable(folder)} ({size(total)} in {files}"
    if report.already_done:
        page.fact("already done", f"{where}), nothing was touched", fg="green", bold=True)
    else:
        resumed = f", {report.resumed_shards} of them by an earlier run" if report.resumed_shards else ""
        page.fact("written", f"{where}{resumed})", fg="green", bold=True)
        if report.bytes_read or report.bytes_written:  # an earlier run may have left only the end to do
            page.fact(
                "speed",
                f"{report.bytes_per_second / 1e9:.2f} GB/s read and written, {duration(report.seconds)} on "
                f"{plural(report.threads, 'thread')} ({report.cpu_level})",
            )
    measured = [output for output in outputs if output.survival is not None]
    if is_conversion:
        for output in measured:
            write_errors(page, output, verbose=verbose)
        return
    if len(measured) > 1:
        write_survival_table(page, measured)
    elif report.tokens is not None:
        from taskvec.report.token_words import token_words  # which most runs do without

        words = token_words(report.tokens)
        for label, line in zip(("tokens", *[""] * len(words)), words, strict=False):
            page.fact(label, line)
    elif report.vector is None and report.adapter is None:
        write_survival(page, report.survival, outputs[0].unmeasured if outputs else 0)
    if outputs[0].unweighted:
        count = sum(outputs[0].unweighted.values())
        page.fact(
            "importance",
            f"{plural(count, 'element')} of {plural(len(outputs[0].unweighted), 'tensor')} matter to no "
            "model: the mean by the weights alone",
        )
    if outputs[0].noise is not None:
        from taskvec.report.noise import noise_words

        for label, words in zip(("noise", ""), noise_words(outputs[0].noise), strict=False):
            page.fact(label, words)
    if report.vector is not None:
        write_vector(page, report.vector, verbose=verbose)
    if report.adapter is not None:
        from taskvec.cli.energy import write_energy  # which most runs do without

        write_energy(page, report.adapter, verbose=verbose)
    if verbose:
        for output in measured:
            write_tensors(page, output)


def write_errors(page: Page, output: Output, *, verbose: bool) -> None:
    """How far packing has moved the weights, and tensor by tensor where all is told."""
    rows = {name: row.format_error or 0.0 for name, row in output.tensors.items()}
    if output.survival is None or not rows:
        return
    worst = max(rows, key=rows.__getitem__)
    whole = percent(output.survival.format_error or 0.0)
    page.fact(
        "error", f"{whole} of the norm of {plural(len(rows), 'packed weight')}, by rounding to the format"
    )
    page.fact("", f"most {percent(rows[worst])}, in {printable(worst)}")
    if verbose:
        page.line()
        table = [(printable(name), percent(error)) for name, error in rows.items()]
        page.table(("tensor", "error"), table, right=(1,))


def write_survival(page: Page, survival: Survival | None, unmeasured: int = 0) -> None:
    """The survival of the step, in a few lines."""
    from taskvec.report.survival import survival_words

    for label, words in zip(("survival", "", ""), survival_words(survival, unmeasured), strict=False):
        page.fact(label, words)


def write_vector(page: Page, vector: Mapping[str, Any], *, verbose: bool = False) -> None:
    """The contents of a saved vector, and how they are stored."""
    tensors = vector["tensors"]
    share = percent(vector["changed"] / vector["elements"]) if vector["elements"] else "none"
    norm = "not finite" if vector["norm"] is None else f"{vector['norm']:.4g}"
    page.fact("vector", f"{share} of {amount(vector['elements'])} elements changed, norm {norm}")
    count = Counter(row["encoding"] for row in tensors.values())
    page.fact(
        "stored", ", ".join(f"{plural(many, 'tensor')} {ENCODINGS[how]}" for how, many in count.most_common())
    )
    if verbose:
        page.line()
        rows = (
            (printable(name), row["encoding"], row["dtype"] or "-", f"{row['changed']:,}", size(row["bytes"]))
            for name, row in tensors.items()
        )
        page.table(("tensor", "stored", "type", "changed", "size"), rows, right=(3, 4))


def write_survival_table(page: Page, outputs: Sequence[Output]) -> None:
    """One line for each alpha."""
    page.line()
    rows = []
    for output in outputs:
        survival = output.survival
        if survival is None:
            continue
        error = {"zero": "-", "not-finite": "not finite"}.get(survival.status)
        rows.append(
            (
                os.path.basename(output.folder) if output.alpha is None else format_alpha(output.alpha),
                percent(survival.changed_share),
                "-" if survival.status == "zero" else percent(survival.rounded_away_share),
                "-" if survival.cosine is None else f"{survival.cosine:.4f}",
                error or percent(survival.relative_error or 0.0),
            )
        )
    header = ("alpha", "changed", "rounded away", "cosine", "error")
    page.table(header, rows, right=range(5))


def write_tensors(page: Page, output: Output) -> None:
    """Survival tensor by tensor, for ``--verbose``."""
    page.line()
    page.table(
        ("tensor", "changed", "rounded away", "cosine", "step / target"),
        (
            (
                printable(name),
                percent(row.changed_share),
                percent(row.rounded_away_share),
                _cosine(row),
                _relative(row),
            )
            for name, row in output.tensors.items()
        ),
        right=range(1, 5),
    )


def _relative(row: Survival) -> str:
    """The step over the target, or what the output's format did where there is none."""
    if row.format_error:
        return f"{row.format_error:.1e}"
    return f"{row.step_norm / row.target_norm:.1e}" if row.step_norm and row.target_norm else ""


def _cosine(row: Survival) -> str:
    if row.status == "not-finite":
        return "not finite"
    return "" if row.cosine is None else f"{row.cosine:.4f}"
