"""The other files of a target: pointers in the place of files, and weights that its files name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from taskvec.compat.findings import Finding, Level, finding
from taskvec.compat.tokenizer import is_tokenizer_file
from taskvec.files import look
from taskvec.files.folder import is_second_copy, is_weight
from taskvec.files.json import read_bytes
from taskvec.files.lfs import PULL, beginning, ending, is_pointer, is_pointer_file
from taskvec.files.modules import naming
from taskvec.files.names import is_own
from taskvec.text import listed

if TYPE_CHECKING:
    from pathlib import Path

    from taskvec.models.model import Model


# Roles of a model whose other files are not copied: there is no output, or it is a vector.
_NOT_COPIED = frozenset({"left", "reference"})
# What a document of JSON begins with.
_OF_JSON = frozenset(b'{["-0123456789tfn'[at : at + 1] for at in range(18))
_CLOSED_BY = {b"{": b"}", b"[": b"]", b'"': b'"'}
# Most of such files are of some kilobytes; reading this much takes milliseconds.
_READ_WHOLE = 1 << 20
_PLAIN = frozenset({"F32", "F16", "BF16"})


def check_files(role: str, base: Model, others: Sequence[tuple[str, Model]] = ()) -> Iterator[Finding]:
    """The base's files that come along to the output and those that do not, and the tokenizers compared."""
    yield from check_copied(role, base, tokenizer_only=role in _NOT_COPIED)
    for name, model in others:
        pointers = _pointers(model, [file for file in model.other_files if is_tokenizer_file(file)])
        if pointers:
            found = f"{listed(pointers)}: git-lfs pointers in place of the files, which cannot be compared"
            yield finding("lfs-pointer", f"files of the {name}", "the files", found, PULL, level="warning")
    yield from _damaged(role, base)
    yield from _weights(role, base)
    for name, model in [(role, base), *others]:
        yield from _variants(name, model)
        yield from _states(name, model)
    yield from _decoded([(role, base), *others])


def check_copied(role: str, model: Model, *, tokenizer_only: bool = False) -> Iterator[Finding]:
    """Pointers among the files of a model, or of its tokenizer, that an output takes from it."""
    names = [name for name in model.other_files if not is_own(name)]
    pointers = _pointers(model, list(filter(is_tokenizer_file, names)) if tokenizer_only else names)
    if pointers:
        found = f"{listed(pointers)}: git-lfs pointers in place of the files, which would be copied"
        yield finding("lfs-pointer", f"files of the {role}", "the files", found, PULL)


def _pointers(model: Model, names: Sequence[str]) -> list[str]:
    folder = model.path
    return [] if folder is None else [name for name in names if is_pointer_file(folder / name)]


def _damaged(role: str, base: Model) -> Iterator[Finding]:
    """Files of the target that are not what they are called, or cannot be copied."""
    if base.path is None or role in _NOT_COPIED:
        return
    folder = base.path
    empty, other = [], []
    for name in base.other_files:
        is_json = name.endswith(".json")
        if not (is_json or is_tokenizer_file(name)) or is_own(name):
            continue
        start = beginning(folder / name)
        if not start:
            empty.append(name)
        elif is_json and not is_pointer(start) and not _is_whole_json(folder / name, start):
            other.append(name)
    lost = [name for name in base.left_files if not is_weight(name) and _leads_nowhere(folder / name)]
    for names, what in (
        (empty, "empty"),
        (other, "not JSON, or cut short"),
        (lost, "a link to no file, and left out"),
    ):
        if names:
            fix = "download or copy the file again"
            yield finding("file-damaged", f"{listed(names)} of the {role}", "", what, fix)


def _is_whole_json(path: Path, start: bytes) -> bool:
    """Whether a file is a document of JSON; of a large one begin and end tell, as they do if it was cut."""
    status = look.stamp(path)
    if status is not None and status.size <= _READ_WHOLE:
        try:
            json.loads(read_bytes(path))
        except (ValueError, RecursionError):
            return False
        return True
    first, last = start.lstrip()[:1], ending(path).rstrip()[-1:]
    return first in _OF_JSON and last == _CLOSED_BY.get(first, last)


def _leads_nowhere(path: Path) -> bool:
    return look.exists(path, follow_links=False) and not look.exists(path)


def _weights(role: str, base: Model) -> Iterator[Finding]:
    """Weights besides the model's own: those that come along, those that stay behind, and who names them."""
    is_copied = role not in _NOT_COPIED
    along = [name for name in base.other_files if is_weight(name)]
    if along and is_copied:
        what = f"{listed(along)} come along as they are: weights of modules are not computed with"
        yield finding("files-kept", f"files of the {role}", "", what)
    if not base.left_files:
        return
    weights = [
        name
        for name in base.left_files
        if (is_weight(name) or name.endswith("/"))
        and not is_second_copy(name)
        and not _has_weights(base, name)
    ]
    named = naming(weights, base.other_files, base.read_file) if is_copied and base.path else {}
    if named:
        by = listed(list(dict.fromkeys(named.values())))
        what = f"{listed(list(named))} do not come along to the output, although {by} names them"
        fix = "copy them into the output afterwards, or merge their folders on their own"
        yield finding("files-left", f"files of the {role}", "", what, fix, level="warning")
    rest = [name for name in base.left_files if name not in named]
    if rest:
        what = f"{listed(rest)} do not come along to the output"
        yield finding("files-left", f"files of the {role}", "", what)


def _has_weights(base: Model, name: str) -> bool:
    """Whether a file lies in a folder of which other files are the weights: it is another form of these."""
    return name[: name.rfind("/") + 1] in base.sub_models


def _variants(role: str, model: Model) -> Iterator[Finding]:
    """Which weights are taken where a folder has them in several variants."""
    for folder, chosen in model.sub_models.items():
        if chosen.others:
            there = listed([tag or "without a tag" for tag in chosen.others])
            taken = f"`{chosen.variant}`" if chosen.variant else "those without a tag"
            what = f"{taken} of the weights in `{folder or '.'}`; there is also {there}"
            fix = "another one by --variant, or by `?variant=TAG` behind the model"
            yield finding("variant", f"variant of the {role}", "", what, fix)


def _decoded(models: Sequence[tuple[str, Model]]) -> Iterator[Finding]:
    """Which types the weights of GGUF files were decoded from."""
    coarse = [(role, model) for role, model in models if not _PLAIN.issuperset(model.decoded)]
    is_pair = {"donor", "reference"} <= {role for role, _ in coarse}
    for role, model in models:
        if not model.decoded:
            continue
        kinds = listed([f"{count:,} {kind}" for kind, count in model.decoded.items()], 6).replace("`", "")
        what = f"GGUF: {kinds} tensors, computed with as their values"
        loud = is_pair and role == "donor"
        if loud:
            what += "; the vector is the difference of two roundings, which may be most of it"
        fix = "take the originals of both" if loud else ""
        level: Level = "warning" if loud else "note"
        yield finding("gguf", f"weights of the {role}", "", what, fix, level=level)


def _states(role: str, model: Model) -> Iterator[Finding]:
    """What a distributed checkpoint holds besides the weights."""
    if model.left_states:
        counts = listed([f"{count:,} tensors of the {what}" for what, count in model.left_states.items()], 6)
        what = f"{counts.replace('`', '')} are left out"
        yield finding("states-left", f"distributed checkpoint of the {role}", "", what)
