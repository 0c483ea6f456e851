"""``taskvec verify``: the manifest's hashes against the files."""

from __future__ import annotations

from taskvec.cli.console import EXIT_FAILED, Console, Page
from taskvec.cli.options import argument, option, reading_options, talk_options, verb
from taskvec.text import duration, plural, printable, size

EXAMPLES = """
Is the output what was written?
  taskvec verify out

At an address, by the checksums there:
  taskvec verify s3://bucket/out
  taskvec verify hf://org/name

In a script:
  taskvec verify out --quiet || echo "out is damaged"
"""

STATUS_LABELS = {
    "ok": "as written",
    "missing": "missing",
    "truncated": "too short",
    "differs": "differs",
    "extra": "not in the manifest",
}


@verb("verify", examples=EXAMPLES)
@argument(
    "path",
    metavar="OUT",
    help="A folder or address that taskvec has written: a checkpoint, a vector or an adapter.",
)
@option(
    "--threads", type=int, metavar="N", section="Machine", help="Threads that hash.  [default: all cores]"
)
@option(
    "--rehash", is_flag=True, section="Output",
    help="At an address, read all files, and do not rely on the checksums there.",
)  # fmt: skip
@reading_options
@talk_options("verify")
def command(console: Console, path: str, threads: int | None, *, rehash: bool) -> int:
    """Compare the files of OUT with the hashes in its manifest, taskvec.json.

    OUT is a checkpoint or a task vector that taskvec wrote, or a folder of several alphas, here or at
    hf://, s3://, gs:// or az://. Files that the manifest does not list are named, which is not a failure.
    Exit code 1 if a file is missing or differs, or the manifest itself has been changed since it was written.
    """
    from taskvec.api import verify

    with console.progress() as progress:
        result = verify(path, rehash=rehash, threads=threads, progress=progress)
    page = console.data()
    for file in result.files:
        if file.status != "ok" or console.verbose:
            _write(page, file.status, file.name, file.expected_bytes, file.found_bytes)
    listed = [file for file in result.files if file.status != "extra"]
    total = sum(file.found_bytes or 0 for file in listed)
    if result.seal == "broken":
        word = page.paint(STATUS_LABELS["differs"].ljust(19), fg="red")
        page.words(f"{word}  taskvec.json  (its bytes are not those of its own seal)")
    if result.ok:
        read = f"{size(total)}, {duration(result.seconds)}"
        page.words(f"ok: {plural(len(listed), 'file')} as the manifest says ({read})")
        if result.seal == "not-sealed":
            page.words("the manifest is not sealed: a change of its own bytes would not be seen")
    else:
        problems = len(result.problems) + (result.seal == "broken")
        count = len(listed) + (result.seal == "broken")
        page.words(f"failed: {problems} of {plural(count, 'file')} are not what was written")
    console.show(page)
    console.emit({key: value for key, value in result.to_dict().items() if key != "schema"})
    return 0 if result.ok else EXIT_FAILED


def _write(page: Page, status: str, name: str, expected: int | None, found: int | None) -> None:
    colour = {"ok": "green", "extra": None}.get(status, "red")
    word = page.paint(STATUS_LABELS[status].ljust(19), fg=colour)
    lengths = f"  ({found:,} bytes, expected {expected:,})" if found is not None and found != expected else ""
    page.line(f"{word}  {printable(name)}{lengths if status != 'extra' else ''}")
