"""The plan that writes one checkpoint in another form: dequantised, cast, or quantised."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from taskvec.compat.companions import check_files
from taskvec.compat.findings import Finding, enforce, finding
from taskvec.compat.formats import check_formats, check_vectors
from taskvec.compat.layouts.rewritten import in_packed_layout, in_plain_layout, one_by_one
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.errors import RecipeError
from taskvec.host import collector_paused
from taskvec.models.model import Model
from taskvec.models.source import pinned
from taskvec.plan.draft import Draft
from taskvec.plan.new_formats import NewFormat, experts_of, is_stack, new_format, plain_modules
from taskvec.plan.plan import PlanRecord
from taskvec.settings import TARGET, TOUCHED, Settings, float_dtype, written
from taskvec.text import listed

_PACKED = (
    "matrices are packed whose sides are multiples of the format's blocks, but for embeddings, head, norms "
    "and routers"
)


@collector_paused()
def plan_convert(model: Model, *, keep: Sequence[str] = (), settings: Settings | None = None) -> PlanRecord:
    """The plan of writing a checkpoint in another form.

    Parameters
    ----------
    model : Model
        Headers are enough.
    keep : sequence of str
        Regular expressions: weights whose name matches stay as they are where a format is given.
    settings : Settings, optional
        ``out_dtype`` is a float type, or one of ``FORMATS``; by default packed weights become plain, of the
        type that the config has, and what is not in safetensors is written so. ``rounding``, ``seed``,
        ``max_shard_size`` and ``force`` matter too.

    Raises
    ------
    RecipeError
        The form is not known, there is nothing to convert, or a pattern is not a regular expression.
    CompatibilityError
        The checkpoint is stored in a format that is not read.
    """
    settings = settings or Settings()
    enforce(check_vectors([("model", model)]))
    dtype, form = float_dtype(settings), new_format(model, settings.out_dtype)
    is_plain = not model.packed and not model.is_laid_out and model.unreadable is None
    if form is None and dtype is None and is_plain:
        raise RecipeError(f"`{model.spec}` is plain already", "name the type or format to write it in")
    if settings.out_dtype in (TARGET, TOUCHED):
        raise RecipeError(f"`{model.spec}` is in its own format already", "name another type or format")
    found = list(check_formats([("model", model)], list(model.tensors)))
    found += check_files("model", model)
    patterns = _patterns(keep)
    if form is not None:
        below = _hold_one(model)
        patterns += [re.compile(f"^{re.escape(folder)}") for folder in below]
        if below:
            what = "stay plain: the config at the top declares a format for the weights at the top alone"
            found.append(finding("convert-plain", f"weights in {listed(below)}", "", what))
    model, chosen = in_plain_layout(model), frozenset()
    if form is not None and form.is_stacked:
        model = in_packed_layout(model, lambda info: form.fits(info) and not _is_kept(patterns, info.name))
        chosen = _chosen(model, form, patterns)
    elif form is not None:
        apart = one_by_one(model, lambda name, names: not _is_kept(patterns, name, *names))
        chosen = _chosen(apart, form, patterns)
        model = one_by_one(model, lambda _, names: chosen.issuperset(names))
    draft = Draft(model, "model")
    copy = draft.operation({"kind": "copy"})
    left = _findings(model, form, chosen, patterns) if form is not None else ()
    found = enforce([*found, *left], settings.force)
    for name, info in model.tensors.items():
        if form is not None and name in chosen:
            draft.new_tensor(info, form, copy)
        else:
            written_as = dtype if dtype and info.dtype in FLOAT_DTYPES else info.dtype
            draft.tensor(name, written_as, info.shape, copy, [(0, name)])
    config: dict[str, Any] = {}
    if form is not None:
        if not model.config:
            raise RecipeError(f"`{model.spec}` has no config.json, which declares packed weights")
        plain = plain_modules([info for name, info in model.tensors.items() if name not in chosen])
        config["quantization_config"] = form.config(plain)
    recipe: dict[str, Any] = {"verb": "convert", "model": pinned(model)}
    return draft.finish(
        alphas=(1.0,),
        settings=settings,
        findings=found,
        recipe={**recipe, **({"keep": list(keep)} if keep else {}), **written(settings)},
        config=config,
    )


def _hold_one(model: Model) -> list[str]:
    """The sub-folders of a model with weights, which stay plain, where it has weights at the top to pack.

    Raises
    ------
    RecipeError
        It is several models in folders.
    """
    below = [folder for folder in model.sub_models if folder]
    if below and "" not in model.sub_models:
        raise RecipeError(
            f"`{model.spec}` is several models in folders, and a packed one is read alone",
            f"give one of them: `{model.spec}/{below[0].rstrip('/')}`",
        )
    return below


def _patterns(keep: Iterable[str]) -> list[re.Pattern[str]]:
    patterns = []
    for pattern in keep:
        try:
            patterns.append(re.compile(pattern))
        except re.error as error:
            raise RecipeError(
                f"keep `{pattern}` is not a regular expression: {error}",
                "put a backslash before a character that is meant as itself",
            ) from None
    return patterns


def _is_kept(patterns: Iterable[re.Pattern[str]], *names: str) -> bool:
    return any(pattern.search(name) for pattern in patterns for name in names)


def _chosen(model: Model, form: NewFormat, patterns: Sequence[re.Pattern[str]]) -> frozenset[str]:
    """The weights that are packed; of the experts of a layer all are or none."""
    floats = (info for info in model.tensors.values() if info.dtype in FLOAT_DTYPES)
    linear = [info for info in floats if form.is_linear(info)]
    fits = {info.name: form.fits(info) and not _is_kept(patterns, info.name) for info in linear}
    whole = {experts_of(name) for name, is_packed in fits.items() if not is_packed}
    chosen = frozenset(
        name
        for name, is_packed in fits.items()
        if is_packed and (not (block := experts_of(name)) or block not in whole)
    )
    if not chosen:
        kept = [info.name for info in linear if form.fits(info) and _is_kept(patterns, info.name)]
        raise RecipeError(
            f"`{model.spec}` has no weight that can be {form.words}",
            f"`keep` leaves {len(kept):,} that can as they are: keep fewer" if kept else _PACKED,
        )
    return chosen


def _findings(
    model: Model, form: NewFormat, chosen: frozenset[str], patterns: Sequence[re.Pattern[str]]
) -> Iterator[Finding]:
    """The weights that stay plain, and why, where that is neither asked for nor what every tool does."""
    left = [
        info
        for info in model.tensors.values()
        if info.name not in chosen and info.dtype in FLOAT_DTYPES and not _is_kept(patterns, info.name)
    ]
    stacked = [info.name for info in left if is_stack(info) and not form.is_stacked]
    if stacked:
        yield finding(
            "convert-plain",
            _alike(stacked),
            "",
            "stay plain: each holds several experts, which readers of the format do not take in one tensor",
        )
    linear = [info for info in left if form.is_linear(info) and info.name not in stacked]
    unread = [info.name for info in linear if experts_of(info.name) and not form.has_experts]
    if unread:
        what = f"stay plain: transformers does not read experts that are {form.words}"
        yield finding("convert-plain", _alike(unread), "", what)
    odd = [info.name for info in linear if not form.fits(info) and info.name not in unread]
    if odd:
        rows, columns = form.multiple
        needed = f"columns are a multiple of {columns}"
        needed = f"sides are multiples of {rows} and {columns}" if rows > 1 else needed
        yield finding(
            "convert-plain", _alike(odd), "", f"stay plain: {form.words} is of matrices whose {needed}"
        )
    cut = [info.name for info in linear if form.fits(info)]
    if cut:
        what = "stay plain: others of these layers' experts do, and readers take them together"
        yield finding("convert-plain", _alike(cut), "", what)


def _alike(names: Iterable[str]) -> str:
    """Names in which numbers of layers and experts are stars, each once, and how many there are of it."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    return ", ".join(f"`{name}`" + (f" ({count:,})" if count > 1 else "") for name, count in counts.items())
