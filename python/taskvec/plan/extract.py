"""The plan that writes the difference of two models as a task vector."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from taskvec._core import blake3_hex
from taskvec.compat.check import check_vector
from taskvec.compat.findings import enforce, enforce_strictly
from taskvec.compat.layouts.fit import fitted
from taskvec.compat.layouts.parts import bound, only
from taskvec.compat.tied_heads import tie_decision
from taskvec.dtypes import parse_dtype
from taskvec.host import collector_paused
from taskvec.models.model import Model
from taskvec.models.selection import Selection, selection_recipe
from taskvec.models.source import pinned, source_document
from taskvec.models.storage import stored_bytes
from taskvec.plan.delta import Step
from taskvec.plan.layout import DEFAULT_SHARD_SIZE
from taskvec.plan.plan import FORMAT, Output, PlanRecord, Source
from taskvec.settings import Settings


@collector_paused()
def plan_extract(
    donor: Model,
    reference: Model,
    *,
    selection: Selection | None = None,
    settings: Settings | None = None,
    dtype: str | None = None,
    force: Iterable[str] = (),
) -> PlanRecord:
    """The plan of saving donor − reference.

    Parameters
    ----------
    donor, reference : Model
        Headers are enough.
    selection : Selection, optional
        The tensors that belong to the vector.
    settings : Settings, optional
        ``max_shard_size`` and ``force`` matter here.
    dtype : str, optional
        A float type for all values, which loses what it cannot hold; by default each tensor has the type
        that takes the fewest bytes, and what it does not hold is kept exactly next to it.
    force : iterable of str
        More findings to go on in spite of.

    Raises
    ------
    CompatibilityError
        The models are incompatible.
    RecipeError
        The selection matches nothing, or a setting cannot be honoured.
    """
    selection, settings = selection or Selection(), settings or Settings()
    dtype = parse_dtype(dtype) if dtype is not None else None
    donor = fitted(donor, reference)
    tie = tie_decision(reference, [("donor", donor)], "reference")
    found = check_vector(donor, reference, selection=selection, tie=tie)
    found = enforce(found, (*settings.force, *force))
    if settings.strict:
        enforce_strictly(found, (*settings.force, *force))
    wanted = bound(selection, reference)
    wanted.select(reference.tensors)
    donor, reference = only(donor, wanted), only(reference, wanted)
    own = Step(1.0, donor, reference, selection).own(tie)
    models = [("donor", donor), ("reference", reference)]
    document = {
        "format": FORMAT,
        "sources": [source_document(model) for _, model in models],
        "tensors": [
            (name, reference.tensors[name].shape, donor_name, name) for name, (donor_name, _) in own.items()
        ],
        "max_shard_size": settings.max_shard_size or DEFAULT_SHARD_SIZE,
        "dtype": dtype,
    }
    data = json.dumps(document, separators=(",", ":")).encode()
    recipe = {
        "verb": "extract",
        **{role: pinned(model) for role, model in models},
        **selection_recipe(selection),
        "dtype": dtype,
        "max_shard_size": settings.max_shard_size,
        "force": list(settings.force) or None,
    }
    bytes_in = [
        sum(donor.tensors[names[0]].nbytes for names in own.values()),
        sum(reference.tensors[name].nbytes for name in own),
    ]
    return PlanRecord(
        json=data,
        document=document,
        digest=blake3_hex(data),
        kind="vector",
        sources=tuple(
            Source(role, model.spec, model.revision, count, model.download_bytes)
            for (role, model), count in zip(models, bytes_in, strict=True)
        ),
        findings=tuple(found),
        config={},
        recipe={key: value for key, value in recipe.items() if value is not None},
        checkpoints=(donor, reference),
        **written_vector(document, reference),
    )


def written_vector(document: Mapping[str, Any], reference: Model) -> dict[str, Any]:
    """The attributes of a plan of a vector that say what it writes."""
    names = [name for name, *_ in document["tensors"]]
    return {
        "outputs": (Output("", 1.0),),
        "shards": (),
        "weight_map": dict.fromkeys(names, ""),
        "merged": len(names),
        "copied": 0,
        # if every element has changed and few differences need a wider type; known only when it has been read
        "bytes_out": _dense_bytes(reference, names, document["dtype"]),
        "most_inputs": 2,
    }


def _dense_bytes(reference: Model, names: Iterable[str], dtype: str | None) -> int:
    infos = [reference.tensors[name] for name in names]
    return sum(stored_bytes(dtype or info.dtype, info.shape) for info in infos)
