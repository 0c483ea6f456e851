"""Integer and boolean tensors, of which an output has the base's: do the models differ in them?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskvec.compat.findings import Finding, finding
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.text import listed, roles

if TYPE_CHECKING:
    from taskvec.models.model import Model

# Position numbers and masks are small; so many bytes of them are read of each model.
MOST_BYTES = 16 << 20


def check_integers(role: str, base: Model, others: Sequence[tuple[str, Model]]) -> list[Finding]:
    """Compare the bytes of the tensors that are not float, and say which were not compared.

    Nothing is said of models of which only the headers are here.
    """
    here = [(who, other) for who, other in others if other.path is not None]
    if base.path is None or not here:
        return []
    names, left, room = [], [], MOST_BYTES
    for name, info in base.tensors.items():
        if info.dtype in FLOAT_DTYPES or name in base.packed:
            continue
        if info.nbytes <= room:
            names.append(name)
            room -= info.nbytes
        else:
            left.append(name)
    unlike: dict[str, list[str]] = {}
    for who, other in here:
        for name in names:
            theirs, own = other.tensors.get(name), base.tensors[name]
            if theirs is None or (theirs.dtype, theirs.shape) != (own.dtype, own.shape):
                continue
            if other.reader.read(name) != base.reader.read(name):
                unlike.setdefault(name, []).append(who)
    findings = []
    if unlike:
        who = list(dict.fromkeys(each for some in unlike.values() for each in some))
        found = f"{listed(list(unlike))} differ"
        subject, kept = f"integer tensors of {roles(who)}", f"the {role}'s are kept"
        findings.append(finding("non-float-differs", subject, f"the {role}'s values", found, kept))
    if left:
        what = f"{listed(left)} are too large to be compared; the {role}'s are kept"
        findings.append(finding("non-float", f"integer tensors of the {role}", "", what))
    return findings
