"""The main job on an embedded default: small sharded checkpoints made, checked, transferred and verified.

Needs no network, no torch and nothing but this package. The result is compared, bit for bit, with the same
arithmetic written in five lines of NumPy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.errors import Error, OutputError
from taskvec.files import look
from taskvec.report.survival import survival_summary
from taskvec.report.tables import Tabled
from taskvec.shown import said
from taskvec.text import duration

if TYPE_CHECKING:
    from taskvec.compat.findings import Finding
    from taskvec.report.report import Report
    from taskvec.report.verify import Verification

ALPHA = 0.8
MAX_SHARD_SIZE = 1_200_000  # three shards per checkpoint
MARK = "taskvec-demo"  # names the folder's content as ours, so that --overwrite replaces nothing else
ROLES = {"target": "instruct", "donor": "grpo", "reference": "sft"}


@dataclass(frozen=True, slots=True, repr=False)
class DemoResult(Tabled):
    """The outcome of the demo.

    Attributes
    ----------
    folder : Path
        Where everything was written.
    kept : bool
        Whether it is still there.
    parameters, bytes_each, shards : int
        Of one of the three checkpoints.
    findings : tuple of Finding
        Those of the check.
    report : Report
        What the transfer measured.
    verification : Verification
        The manifest's hashes against the files.
    tensors, equal : int
        Tensors of the result, and those that NumPy's arithmetic gives bit for bit.
    seconds : float
        For everything.
    """

    folder: Path
    kept: bool
    parameters: int
    bytes_each: int
    shards: int
    findings: tuple[Finding, ...]
    report: Report
    verification: Verification
    tensors: int
    equal: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the files match their manifest and the result is NumPy's."""
        return self.verification.ok and self.equal == self.tensors

    def _subject(self) -> str:
        return str(self.folder) if self.kept else ""

    def _facts(self) -> dict[str, str]:
        return {
            "passed": "yes" if self.ok else "no",
            "survival": survival_summary(self.report.survival),
            "files as in the manifest": "yes" if self.verification.ok else "no",
            "equal to NumPy's": f"{self.equal} of {self.tensors} tensors",
            "time": duration(self.seconds),
        }

    def _tables(self) -> Mapping[str, Any]:
        return {"tensors": lambda: self.report._tables()["tensors"]()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as ``--json`` prints it."""
        return {
            "ok": self.ok,
            "folder": str(self.folder),
            "kept": self.kept,
            "checkpoints": {
                "parameters": self.parameters,
                "bytes_each": self.bytes_each,
                "shards": self.shards,
                **{role: str(self.folder / member) for role, member in ROLES.items()},
            },
            "findings": [finding.to_dict() for finding in self.findings],
            "transfer": self.report.to_dict(),
            "verification": self.verification.to_dict(),
            "numpy": {"tensors": self.tensors, "equal_bit_for_bit": self.equal},
            "seconds": self.seconds,
        }


def demo(
    folder: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Callable[[str], object] | bool | None = None,
) -> DemoResult:
    """Make three checkpoints, check them, transfer, verify, and compare with NumPy.

    Parameters
    ----------
    folder : str or path, optional
        Where to write and keep everything (about 13 MB): ``instruct``, ``sft``, ``grpo`` and ``merged``. By
        default a temporary folder, removed at the end.
    overwrite : bool
        Replace what an earlier demo left in `folder`.
    threads : int, optional
        Worker threads; all cores by default.
    progress : callable or bool, optional
        Called with a line of text at each step; ``True`` writes them to the standard error.

    Raises
    ------
    OutputError
        `folder` holds something, and is not an earlier demo that may be replaced.
    """
    say = said(progress)
    begun = time.perf_counter()
    if folder is not None:
        with _home(Path(folder), overwrite) as home:
            return _run(home, True, threads, say, begun)
    try:
        home = Path(tempfile.mkdtemp(prefix=f"{MARK}-"))
    except OSError as error:
        raise _unwritten(Path(tempfile.gettempdir()), error) from error
    try:
        return _run(home, False, threads, say, begun)
    except OSError as error:
        raise _unwritten(home, error) from error
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _home(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A folder with our mark and without a demo: an earlier one is out of the way until this one is whole.

    Where this one comes to nothing, or is killed and the same command is given again, the earlier one is in
    its place again.
    """
    mark, aside, going = (folder / f".{MARK}{end}" for end in ("", "-old", "-going"))
    try:
        if look.listing(folder):
            if not look.is_file(mark):
                raise OutputError(
                    f"`{folder}` is not empty and no earlier demo made it", "name another folder"
                )
            if not overwrite:
                raise OutputError(f"`{folder}` holds an earlier demo", "replace it with --overwrite")
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
        _put_back(aside, folder)
    except OSError as error:
        raise _unwritten(folder, error) from error
    try:
        aside.mkdir()
        for name in (*ROLES.values(), "merged"):
            if look.exists(folder / name):
                os.replace(folder / name, aside / name)
        yield folder.resolve()
    except BaseException as error:
        with contextlib.suppress(OSError, OutputError):  # the next run with --overwrite puts it back
            _put_back(aside, folder)
        if isinstance(error, OSError):
            raise _unwritten(folder, error) from error
        raise
    with contextlib.suppress(OSError):  # what is left of the earlier one goes with the next run
        shutil.rmtree(going, ignore_errors=True)
        os.replace(aside, going)
        shutil.rmtree(going)


def _put_back(aside: Path, folder: Path) -> None:
    """Give an earlier demo its names again, in the place of an unfinished one."""
    for name in look.listing(aside):
        if look.exists(folder / name):
            shutil.rmtree(folder / name)
        os.replace(aside / name, folder / name)
    if look.exists(aside):
        os.rmdir(aside)


def _unwritten(folder: Path, error: OSError) -> OSError:
    """The error for a folder that cannot be written to; one of ours says it itself."""
    if isinstance(error, Error):
        return error
    return OutputError(f"`{folder}` cannot be written: {error.strerror or error}", look.way_out(error))


def _run(
    home: Path, kept: bool, threads: int | None, say: Callable[[str], object], begun: float
) -> DemoResult:
    from taskvec.api import check, transfer, verify
    from taskvec.lazy.checkpoint import open as open_checkpoint
    from taskvec.selftest.synthetic import SHAPES, write_checkpoint

    shape = SHAPES["demo"]
    say(f"making three checkpoints of {shape.parameters / 1e6:.1f} M parameters")
    for member in ("instruct", "sft", "grpo"):
        write_checkpoint(home / member, shape, member, max_shard_size=MAX_SHARD_SIZE)
    target, donor, reference = (home / member for member in ROLES.values())
    say("checking that they are compatible")
    findings = check(target, donor, reference)
    say(f"transferring: instruct + {ALPHA} * (grpo - sft)")
    merged = home / "merged"
    report = transfer(target, donor, reference, merged, alpha=ALPHA, threads=threads)
    say("verifying the files against the manifest")
    verification = verify(merged)
    say("comparing with NumPy")
    tensors, equal = _compare(merged, target, donor, reference)
    opened = open_checkpoint(target)
    return DemoResult(
        folder=home,
        kept=kept,
        parameters=opened.total_parameters,
        bytes_each=opened.total_bytes,
        shards=len(opened.file_sizes),
        findings=tuple(findings),
        report=report,
        verification=verification,
        tensors=tensors,
        equal=equal,
        seconds=time.perf_counter() - begun,
    )


def _compare(merged: Path, target: Path, donor: Path, reference: Path) -> tuple[int, int]:
    """How many tensors there are, and how many of them NumPy gives bit for bit."""
    import ml_dtypes
    import numpy as np

    from taskvec.lazy.checkpoint import open as open_checkpoint

    result, *inputs = map(open_checkpoint, (merged, target, donor, reference))
    equal = 0
    for name, found in result.items():
        t, d, r = (checkpoint[name].astype(np.float32) for checkpoint in inputs)
        expected = (t + np.float32(ALPHA) * (d - r)).astype(ml_dtypes.bfloat16)
        equal += found.tobytes() == expected.tobytes()
    return len(result), equal
