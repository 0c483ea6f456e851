"""The plan that writes one checkpoint in another form: dequantised, cast, or quantised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from taskvec.compat.companions import check_files
from taskvec.compat.findings import Finding, enforce, finding
from taskvec.compat.formats import check_formats
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.errors import RecipeError
from taskvec.models.model import Model
from taskvec.models.source import pinned
from taskvec.plan.draft import Draft
from taskvec.plan.new_formats import NEW_FORMATS, NewFormat, plain_modules
from taskvec.plan.packed_output import hold_plain
from taskvec.plan.plan import PlanRecord
from taskvec.settings import TARGET, Settings, float_dtype, written
from taskvec.text import listed


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
        type that the config has. ``rounding``, ``seed``, ``max_shard_size`` and ``force`` matter too.

    Raises
    ------
    RecipeError
        The form is not known, there is nothing to convert, or a pattern is not a regular expression.
    CompatibilityError
        The checkpoint is stored in a format that is not read.
    """
    settings = settings or Settings()
    dtype, form = float_dtype(settings), NEW_FORMATS.get(settings.out_dtype or "")
    if form is None and dtype is None and not model.packed and model.unreadable is None:
        raise RecipeError(f"`{model.spec}` is plain already", "name the type or format to write it in")
    if settings.out_dtype == TARGET:
        raise RecipeError(f"`{model.spec}` is in its own format already", "name another type or format")
    found = list(check_formats([("model", model)], list(model.tensors)))
    found += check_files("model", model)
    found = enforce([*found, *_findings(model, form)], settings.force)
    hold_plain(model)
    draft = Draft(model, "model")
    copy = draft.operation({"kind": "copy"})
    chosen = _chosen(model, form, keep) if form is not None else frozenset()
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
        plain = plain_modules(name for name in model.tensors if name not in chosen)
        config["quantization_config"] = form.config(plain)
    recipe: dict[str, Any] = {"verb": "convert", "model": pinned(model)}
    return draft.finish(
        alphas=(1.0,),
        settings=settings,
        findings=found,
        recipe={**recipe, **({"keep": list(keep)} if keep else {}), **written(settings)},
        config=config,
    )


def _chosen(model: Model, form: NewFormat, keep: Iterable[str]) -> frozenset[str]:
    """The weights that are packed."""
    patterns = []
    for pattern in keep:
        try:
            patterns.append(re.compile(pattern))
        except re.error as error:
            raise RecipeError(f"keep `{pattern}` is not a regular expression: {error}") from None
    chosen = frozenset(
        name
        for name, info in model.tensors.items()
        if info.dtype in FLOAT_DTYPES and form.fits(info) and not any(p.search(name) for p in patterns)
    )
    if not chosen:
        raise RecipeError(
            f"`{model.spec}` has no weight that can be {form.words}",
            "matrices are packed whose sides are multiples of the format's blocks, but for embeddings, head, "
            "norms and routers",
        )
    return chosen


def _findings(model: Model, form: NewFormat | None) -> list[Finding]:
    if form is None:
        return []
    stacked = [
        info.name for info in model.tensors.values() if ".experts." in info.name and len(info.shape) == 3
    ]
    if not stacked:
        return []
    what = f"{listed(stacked)} hold several experts each and stay plain"
    return [finding("convert-plain", f"`{model.spec}`", "", what)]
