"""Names, shapes and dtypes: which tensors of the target have a counterpart, and what stays unused."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from taskvec.compat.buffers import is_derived
from taskvec.compat.counterparts import iterate_counterparts
from taskvec.compat.findings import Finding, finding
from taskvec.compat.predictor import is_predictor
from taskvec.compat.tied_heads import TieDecision
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.models.selection import Selection
from taskvec.models.tensor_names import is_vocabulary
from taskvec.regex import regex
from taskvec.text import listed, roles

if TYPE_CHECKING:
    from taskvec.compat.counterparts import Others
    from taskvec.models.model import Model, TensorInfo

# The same weights under other names: (what one model has, what another has).
_ALIASES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "language_model.model."),
    ("base_model.model.", ""),
    ("module.", ""),
    ("_orig_mod.", ""),
    ("_fsdp_wrapped_module.", ""),
    ("pretrained_model.", ""),
    ("transformer.", ""),
)
_SAVE = "save both with one version of transformers"
_ONE_EXPERT = regex(r"(.*\.experts)\.\d+\.(?:gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$")
# Factors of adapters that lie in a whole model: what it computes with is made of them and the weight.
_FACTOR = regex(
    r"[._](?:lora_(?:(?:embedding_)?[AB]|up|down|magnitude_vector)|hada_(?:w\d_[ab]|t\d)|lokr_(?:w\d(?:_[ab])?|t2)"
    r"|vera_lambda_[bd]|boft_[RS]|oft_[rR]|ia3_l|randlora_(?:lambda|gamma)|ssl_scale)(?:\.|$)"
)
_OF_A_MATRIX = (".scale", ".scales")
_FUSED_EXPERTS = (".experts.gate_up_proj", ".experts.down_proj")


def check_tensors(
    role: str,
    base: Model,
    others: Others,
    selection: Selection,
    selected: Sequence[str],
    tie: TieDecision,
) -> list[Finding]:
    """Compare names, shapes and dtypes of the selected tensors."""
    findings: list[Finding] = []
    findings += _check_names(role, base, others, selection, selected, tie)
    findings += _check_pairs(role, base, others, selected, tie)
    if tie.finding is not None and _concerns_head(selected, tie):
        findings.append(tie.finding)
    factors = [name for name in selected if _FACTOR.search(name) or _scales_matrix(name, base.tensors)]
    if factors:
        what = "factors are combined each by itself, and their product is not the combination of the products"
        fix = (
            "if adapters were left in the models, merge them first (`merge_and_unload` of peft); if weights "
            "are codes with scales, give the checkpoints from before they were quantised"
        )
        findings.append(
            finding("factors-apart", f"{listed(factors)} of the {role}", "whole weights", what, fix)
        )
    copied = [name for name in selected if base.tensors[name].dtype not in FLOAT_DTYPES]
    if copied:
        subject = f"{listed(copied)} of the {role}"
        findings.append(finding("non-float", subject, "", "not float, so the bytes are copied"))
    if len(copied) == len(selected) or next(iterate_counterparts(base, others, selected, tie), None) is None:
        what = f"{len(selected):,} tensors are selected, none has a float counterpart in every model"
        fix = "widen the selection or give other models"
        findings.append(finding("nothing-selected", "selection", "", what, fix))
    findings += unused_selection(selection, base.tensors, *(other.tensors for _, other in others))
    return findings


def _scales_matrix(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a tensor may scale the matrix next to it: one number, or one for each row."""
    weight = tensors.get(f"{name.rpartition('.')[0]}.weight") if name.endswith(_OF_A_MATRIX) else None
    return weight is not None and len(weight.shape) > 1 and len(tensors[name].shape) < 2


def unused_selection(selection: Selection, *names: Iterable[str]) -> list[Finding]:
    """The parts of a selection that match no tensor of any of these models."""
    unused: list[str] = []
    span = None
    for number, each in enumerate(names):
        span = span or selection.layer_span(each)
        parts = selection.unused(each) if unused or number == 0 else []
        unused = [part for part in parts if number == 0 or part in unused]
    return [
        finding(
            "selection-unused",
            part,
            "",
            "matches no tensor",
            span if span and part.startswith("layer") else "look for a typing error in it",
        )
        for part in unused
    ]


def _concerns_head(selected: Sequence[str], tie: TieDecision) -> bool:
    names = set(selected)
    return tie.base.embedding in names or tie.base.head in names


def _check_names(
    role: str,
    base: Model,
    others: Others,
    selection: Selection,
    selected: Sequence[str],
    tie: TieDecision,
) -> Iterator[Finding]:
    missing: dict[tuple[str, ...], list[str]] = {}
    extra: dict[tuple[str, ...], list[str]] = {}
    # what is not float is the base's in any case, so that nothing is missing where another model lacks it
    wanted = {name for name in selected if base.tensors[name].dtype in FLOAT_DTYPES}
    for name, other in others:
        table, substitutes = other.tensors, tie.substitutes.get(name, {})
        lacking = wanted - table.keys()
        if lacking:
            names = tuple(n for n in selected if n in lacking and substitutes.get(n) not in table)
            missing.setdefault(names, []).append(name)
        beyond = table.keys() - base.tensors.keys()
        if beyond:
            unused = tie.unused.get(name, ())
            names = tuple(n for n in table if n in beyond and n not in unused and selection.matches(n))
            extra.setdefault(names, []).append(name)
    for names, who in missing.items():
        kept = [name for name in names if is_predictor(name, base.config)]
        if kept:
            what = f"{len(kept):,} of its tensors are missing; the {role}'s are kept: {listed(kept)}"
            yield finding("predictor-kept", f"multi-token prediction of {roles(who)}", "", what)
            names = tuple(name for name in names if name not in set(kept))
        derived = [name for name in names if is_derived(base.tensors[name])]
        if derived:
            what = f"{len(derived):,} that follow from the config are missing; the {role}'s are kept: "
            yield finding("buffers-kept", f"buffers of {roles(who)}", "", what + listed(derived))
            names = tuple(name for name in names if name not in set(derived))
        alone = _folders_of_base(base, [dict(others)[each] for each in who])
        if alone:
            what = f"there are none in {listed(alone)}; the {role}'s are kept"
            yield finding("files-kept", f"weights of {roles(who)}", "", what)
            names = tuple(name for name in names if not name.startswith(tuple(alone)))
        if names:
            table = dict(others)[who[0]].tensors
            yield finding(
                "tensor-missing",
                f"{roles(who)}",
                f"the {role}'s {listed(names)}",
                f"{len(names):,} of {len(selected):,} selected tensors are missing",
                _alias_hint(names, table)
                or "give models of one architecture, or leave these tensors out with `--exclude`",
            )
    for names, who in extra.items():
        if names:
            yield finding(
                "tensor-unused",
                roles(who),
                "",
                f"{len(names):,} tensors without a counterpart in the {role} are not used: {listed(names)}",
                _alias_hint(names, base.tensors) or "make sure that the models belong together",
            )


def _alias_hint(names: Sequence[str], table: Mapping[str, TensorInfo]) -> str:
    """How the other model calls the same weights, where it is a known way."""
    for first, second in _ALIASES:
        for here, there in ((first, second), (second, first)):
            sample = [name for name in names[:200] if name.startswith(here)]
            if sample and all(there + name.removeprefix(here) in table for name in sample):
                return f"the other model names the same weights `{there}…` in place of `{here}…`; {_SAVE}"
    for which, short, long in (("the other model", names, table), ("this model", list(table), set(names))):
        prefix = _in_front(short, long)
        if prefix:
            return f"{which} has `{prefix}` in front of the names: rename its tensors, or save it again"
    for name in names[:200]:
        match = _ONE_EXPERT.match(name)
        if match and any(f"{match[1].removesuffix('.experts')}{fused}" in table for fused in _FUSED_EXPERTS):
            return f"the other model stores its experts fused in one tensor; {_SAVE}"
        if name.endswith(_FUSED_EXPERTS) and f"{name.rpartition('.')[0]}.0.down_proj.weight" in table:
            return f"the other model stores its experts one by one; {_SAVE}"
    return ""


def _in_front(short: Sequence[str], long: Collection[str]) -> str:
    """What all the longer names have in front of the shorter ones; empty where it is not one prefix."""
    longer = [name for name in long if short and name.endswith(f".{short[0]}")]
    prefix = longer[0].removesuffix(short[0]) if len(longer) == 1 else ""
    return prefix if all(f"{prefix}{name}" in long for name in short[:200]) else ""


def _check_pairs(
    role: str, base: Model, others: Others, selected: Sequence[str], tie: TieDecision
) -> Iterator[Finding]:
    shapes: dict[tuple[bool, tuple[tuple[str, str, str], ...]], list[str]] = {}
    kinds: dict[tuple[str, ...], list[str]] = {}
    own = base.tensors.get
    for other_role, other in others:
        get, substitutes = other.tensors.get, tie.substitutes.get(other_role)
        if other.fingerprint == base.fingerprint and not substitutes:
            continue
        rows: list[tuple[str, str, str]] = []
        wrong: list[tuple[str, str, str]] = []
        unlike: list[str] = []
        for name in selected:
            mine, theirs = own(name), get(substitutes.get(name, name) if substitutes else name)
            if mine is None or theirs is None:
                continue
            if mine.dtype not in FLOAT_DTYPES and theirs.dtype not in FLOAT_DTYPES:
                continue
            if theirs.shape != mine.shape:
                is_rows = is_vocabulary(name) and theirs.shape[1:] == mine.shape[1:]
                (rows if is_rows else wrong).append((name, _shape(mine.shape), _shape(theirs.shape)))
            elif theirs.dtype != mine.dtype and (theirs.dtype in FLOAT_DTYPES) != (
                mine.dtype in FLOAT_DTYPES
            ):
                unlike.append(name)
        for is_rows, found in ((True, rows), (False, wrong)):
            if found:
                shapes.setdefault((is_rows, tuple(found)), []).append(other_role)
        if unlike:
            kinds.setdefault(tuple(unlike), []).append(other_role)
    for (is_rows, found), who in shapes.items():
        yield _shape_finding(role, who, found, is_rows)
    for names, who in kinds.items():
        theirs = dict(others)[who[0]].tensors[names[0]].dtype
        yield finding(
            "dtype-kind",
            f"{listed(names)} of {roles(who)}",
            f"{base.tensors[names[0]].dtype} as in the {role}",
            f"{theirs}",
            "give models that are stored alike, or leave these tensors out with `--exclude`",
        )
    yield from _check_dtypes(role, base, others)


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _shape_finding(
    role: str, who: list[str], found: Sequence[tuple[str, str, str]], is_rows: bool
) -> Finding:
    name, mine, theirs = found[0]
    more = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
    subject = f"`{name}` of {roles(who)}{more}"
    if is_rows:
        fix = (
            "vocabularies are padded to different numbers of rows, or have other tokens: "
            "leave embedding and head out with `--preset no-embed`"
        )
        return finding("vocabulary-rows", subject, f"{mine} as in the {role}", theirs, fix)
    fix = "give models of one size, or leave these tensors out with `--exclude`"
    return finding("shape", subject, f"{mine} as in the {role}", theirs, fix)


def _check_dtypes(role: str, base: Model, others: Others) -> Iterator[Finding]:
    used = {name: _floats(checkpoint) for name, checkpoint in [(role, base), *others]}
    if len(set(used.values())) > 1:
        found = "; ".join(f"{name} {kinds}" for name, kinds in used.items())
        yield finding("dtype", "element types", "", f"{found}; the output has the {role}'s")


def _floats(checkpoint: Model) -> str:
    return ", ".join(sorted({info.dtype for info in checkpoint.tensors.values()} & FLOAT_DTYPES))


def _folders_of_base(base: Model, others: Sequence[Model]) -> list[str]:
    """The sub-folders of the base of which none of the others has weights."""
    folders = [folder for folder in base.sub_models if folder]
    # of a saved vector names alone tell
    return [
        folder
        for folder in folders
        if not any(name.startswith(folder) for other in others for name in other.tensors)
    ]
