"""The plan that writes a task vector as a LoRA adapter: which modules have factors, and of which rank."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from taskvec._core import blake3_hex
from taskvec.compat.check import check_vector
from taskvec.compat.findings import Finding, enforce, enforce_strictly, finding
from taskvec.compat.layouts.fit import fitted
from taskvec.compat.layouts.parts import bound, taken
from taskvec.compat.tied_heads import head_of, tie_decision
from taskvec.dtypes import FLOAT_DTYPES, TYPES, parse_dtype
from taskvec.errors import RecipeError
from taskvec.models.model import Model
from taskvec.models.saved_vector import SavedVector
from taskvec.models.selection import Selection, selection_recipe
from taskvec.models.source import pinned, source_document
from taskvec.plan.adapter_division import Division, Embeddings, Others, divide
from taskvec.plan.delta import Step
from taskvec.plan.lora_memory import working_bytes
from taskvec.plan.plan import FORMAT, Output, PlanRecord, Source
from taskvec.settings import Settings
from taskvec.text import listed

AUTO = "auto"
ENERGY = 0.95
MAXIMUM = 256
_LARGEST = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """How a vector is written as an adapter.

    Parameters
    ----------
    rank : int or "auto"
        Of the factors of every module; ``"auto"`` takes for each the smallest rank that keeps ``energy``.
    energy : float, optional
        The share of the squared norm of a module's difference that is kept, above 0 and up to 1; of rank
        ``"auto"`` alone, 0.95 by default.
    max_rank : int, optional
        The largest rank that ``"auto"`` takes, 256 by default.
    embeddings : {"lora", "whole", "leave"}
        Whether embedding and head have factors, are held as they are in the donor, or are left out.
    others : {"leave", "whole"}
        Whether what is not a linear layer, such as norms and biases, is left out or held as in the donor.
    dtype : str, optional
        Float type of the factors; float32 by default.

    Raises
    ------
    RecipeError
        A value that cannot be honoured.
    """

    rank: int | Literal["auto"]
    energy: float | None = None
    max_rank: int | None = None
    embeddings: Embeddings = "lora"
    others: Others = "leave"
    dtype: str | None = None

    def __post_init__(self) -> None:
        rank = self.rank.strip().lower() if isinstance(self.rank, str) else self.rank
        rank = int(rank) if isinstance(rank, str) and rank.isdecimal() else rank
        for name, value in (("rank", rank), ("max_rank", self.max_rank)):
            if not (value is None or (value == AUTO and name == "rank") or _is_rank(value)):
                raise RecipeError(
                    f"{name.replace('_', ' ')} `{value}` is not a rank",
                    f"give a whole number from 1 to {_LARGEST:,}, or `auto` with `--energy`",
                )
        if rank is None:
            raise RecipeError("no rank is given", "give a whole number, or `auto`")
        for name in ("energy", "max_rank"):
            if rank != AUTO and getattr(self, name) is not None:
                raise RecipeError(
                    f"`--{name.replace('_', '-')}` is given with the rank {rank}, and only `auto` takes it",
                    "leave it out, or give `--lora auto`",
                )
        is_share = isinstance(self.energy, int | float) and not isinstance(self.energy, bool)
        if self.energy is not None and not (is_share and 0 < self.energy <= 1):
            raise RecipeError(f"energy `{self.energy}` is out of range", "give a share above 0 and up to 1")
        for name, kind in (("embeddings", Embeddings), ("others", Others)):
            if getattr(self, name) not in get_args(kind):
                raise RecipeError(
                    f"{name} `{getattr(self, name)}` is not known",
                    f"choose one of {', '.join(get_args(kind))}",
                )
        object.__setattr__(self, "rank", rank)
        object.__setattr__(self, "dtype", parse_dtype(self.dtype) if self.dtype is not None else None)

    @property
    def largest(self) -> int:
        """The rank of a module at most."""
        return self.rank if isinstance(self.rank, int) else self.max_rank or MAXIMUM

    @property
    def kept(self) -> float | None:
        """The energy that decides of ranks, if it does."""
        return None if isinstance(self.rank, int) else self.energy or ENERGY

    def recipe(self) -> dict[str, Any]:
        """What is not the default, as a manifest has it."""
        return {
            "rank": self.rank,
            "energy": self.energy,
            "max_rank": self.max_rank,
            "embeddings": self.embeddings if self.embeddings != "lora" else None,
            "others": self.others if self.others != "leave" else None,
            "dtype": self.dtype,
        }


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST


def plan_lora(
    donor: Model | SavedVector,
    reference: Model | None,
    lora: Lora,
    *,
    selection: Selection | None = None,
    settings: Settings | None = None,
    force: Iterable[str] = (),
) -> PlanRecord:
    """The plan of saving donor − reference as an adapter on the reference.

    Parameters
    ----------
    donor : Model or SavedVector
        Headers are enough. A saved vector has its reference in itself.
    reference : Model or None
        What the adapter is put on; ``None`` with a saved vector.
    lora : Lora
    selection : Selection, optional
        The tensors that belong to the adapter.
    settings : Settings, optional
        ``seed`` and ``force`` matter here.
    force : iterable of str
        More findings to go on in spite of.

    Raises
    ------
    CompatibilityError
        The models are incompatible.
    RecipeError
        The selection matches nothing that has factors, or a setting cannot be honoured.
    """
    selection, settings = selection or Selection(), settings or Settings()
    step = _step(donor, reference, selection)
    _hold_one_model(step.base)
    tie = None if reference is None else tie_decision(reference, step.models[:1], "reference")
    found: list[Finding] = []
    if isinstance(step.donor, Model) and reference is not None:
        found = check_vector(step.donor, reference, selection=selection, tie=tie)
        found = enforce(found, (*settings.force, *force))
        _hold_whole(selection, reference)
    step.wanted.select(step.base.tensors)
    own = step.own(tie)
    division = divide(step.base, list(own), embeddings=lora.embeddings, others=lora.others)
    _hold(division, step, own)
    found += _tied(step.base, division)
    if settings.strict:
        enforce_strictly(found, (*settings.force, *force))
    document = _document(step, own, division, lora, settings)
    data = json.dumps(document, separators=(",", ":")).encode()
    sources = [(role, source) for role, source in step.sources]
    used = [*(part.name for part in division.factors), *division.whole]
    return PlanRecord(
        json=data,
        document=document,
        digest=blake3_hex(data),
        kind="adapter",
        sources=tuple(
            Source(
                role, source.spec, source.revision, _bytes(source, own, used, number), source.download_bytes
            )
            for number, (role, source) in enumerate(sources)
        ),
        outputs=(Output("", 1.0),),
        shards=(),
        weight_map=dict.fromkeys(used, ""),
        merged=len(division.factors),
        copied=len(division.whole),
        bytes_out=_bytes_out(step.base, division, lora),
        most_inputs=2,
        findings=tuple(found),
        config={},
        recipe=_recipe(step, selection, lora, settings),
        checkpoints=tuple(source for _, source in sources),
    )


def _step(donor: Model | SavedVector, reference: Model | None, selection: Selection) -> Step:
    if isinstance(donor, SavedVector):
        if reference is not None:
            raise RecipeError(
                f"`{donor.spec}` is a saved vector, which has its reference in itself",
                "give the vector alone, or two models",
            )
        return Step(1.0, donor, None, selection)
    if reference is None:
        raise RecipeError(
            f"`{donor.spec}` is given without a reference", "give donor and reference, or a saved vector"
        )
    return Step(1.0, fitted(donor, reference), reference, selection)


def _hold_one_model(base: Model) -> None:
    """Return if the weights are those of one model: an adapter is put on one."""
    folders = sorted({name.rpartition("/")[0] for name in base.tensors if "/" in name})
    if folders:
        raise RecipeError(
            f"`{base.spec}` has weights in {listed(folders)}, and an adapter is of one model",
            f"give the folder of one of them: `{base.spec}/{folders[0]}`",
        )


def _hold_whole(selection: Selection, reference: Model) -> None:
    """Return if a selection takes or leaves every stored tensor as a whole: factors are of all of it."""
    for name, parts in taken(bound(selection, reference), reference.tensors).items():
        raise RecipeError(
            f"the selection takes `{parts[0].name}`, which `{reference.spec}` stores as a part of `{name}`",
            "an adapter has factors of whole tensors: name it as it is stored, or leave the pattern out",
        )


def _hold(division: Division, step: Step, own: Mapping[str, tuple[str, ...]]) -> None:
    """Return if an adapter can be made of these tensors."""
    if not division.factors:
        raise RecipeError(
            f"the adapter would hold no factors: none of {len(own):,} tensors is the weight of a linear "
            "layer",
            f"names look like {listed(list(own))}; save the vector itself (without `--lora`)",
        )
    if division.whole and step.reference is None:
        raise RecipeError(
            f"{listed(division.whole)} cannot be held whole: a saved vector has the difference alone",
            "give donor and reference in place of the vector",
        )


def _document(
    step: Step,
    own: Mapping[str, tuple[str, ...]],
    division: Division,
    lora: Lora,
    settings: Settings,
) -> dict[str, Any]:
    """What the run does, as data; the digest of a plan is over these."""
    return {
        "format": FORMAT,
        "kind": "adapter",
        "sources": [source_document(source) for _, source in step.sources],
        "rank": lora.largest,
        "energy": lora.kept,
        "dtype": lora.dtype or "F32",
        "seed": settings.seed,
        "factors": [[*part, own[part.name]] for part in division.factors],
        "whole": [[name, own.get(name)] for name in division.whole],
        "left": division.left,
        "others": {name: own[name] for name in _measured(step.base, own, division)},
        "working": max(working_bytes(part.shape, lora.largest) for part in division.factors),
    }


def _measured(base: Model, own: Mapping[str, tuple[str, ...]], division: Division) -> list[str]:
    """What has no factors and is a difference of its own all the same: not a second copy of a tied head."""
    head = head_of(base)
    copy = head.head if head.state == "double" else None
    names = [*(name for name in division.whole if name in own), *division.left]
    return [name for name in names if name != copy and base.tensors[name].dtype in FLOAT_DTYPES]


def _bytes(
    source: Model | SavedVector, own: Mapping[str, tuple[str, ...]], used: Sequence[str], number: int
) -> int:
    names = {own[name][number] for name in used if name in own and len(own[name]) > number}
    return sum(source.tensors[name].nbytes for name in names)


def _bytes_out(base: Model, division: Division, lora: Lora) -> int:
    width = TYPES[lora.dtype or "F32"].bytes
    factors = sum(min(lora.largest, *part.shape) * sum(part.shape) * width for part in division.factors)
    return factors + sum(base.tensors[name].nbytes for name in division.whole)


def _tied(base: Model, division: Division) -> list[Finding]:
    """A warning where the factors of an embedding are those of a tied head too."""
    head = head_of(base)
    is_meant = any(part.name in (head.embedding, head.head) for part in division.factors)
    if head.state not in ("tied", "double") or not is_meant:
        return []
    return [
        finding(
            "tied-head",
            f"output head of `{base.spec}`",
            "a tensor of its own",
            "tied to the embedding, which has factors",
            "taskvec, and `merge_and_unload` of peft, change both; peft changes the embedding alone while "
            "the adapter is not merged (`--embeddings leave` makes an adapter that is the same either way)",
        )
    ]


def _recipe(step: Step, selection: Selection, lora: Lora, settings: Settings) -> dict[str, Any]:
    names = ["vector"] if step.reference is None else ["donor", "reference"]
    models = {name: pinned(source) for name, (_, source) in zip(names, step.sources, strict=True)}
    recipe = {
        "verb": "extract",
        **models,
        **selection_recipe(selection),
        **lora.recipe(),
        "seed": settings.seed or None,
        "force": list(settings.force) or None,
    }
    return {key: value for key, value in recipe.items() if value is not None}
