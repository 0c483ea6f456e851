"""A recipe of a mixture of experts × the headers of its models, and the gates → plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from taskvec.compat.check import check_models
from taskvec.compat.findings import Finding, enforce, finding, in_order
from taskvec.models.adapter import Adapter
from taskvec.models.model import Model, TensorInfo
from taskvec.models.selection import Selection
from taskvec.plan.adapter_gaps import gap_findings
from taskvec.plan.adapters import tie_findings
from taskvec.plan.checks import refuse_conversion
from taskvec.plan.draft import Draft
from taskvec.plan.merge_models import Opened, adapted, checkpoint_of
from taskvec.plan.moe.layouts import Layout, config_changes
from taskvec.plan.plan import PlanRecord
from taskvec.recipe.model_ref import ModelRef
from taskvec.recipe.moe import Expert, MoeFile, MoeRecipe
from taskvec.settings import Settings, out_dtype, written

# What is taken of the experts, by the names that the base has.
MLPS = Selection((r"\.mlp\.(?:gate|up|down)_proj\.weight$",))
Place = tuple[int, str]


class Experts(NamedTuple):
    """The models of a recipe, and where they go.

    Attributes
    ----------
    layout : Layout
    opened : mapping
        Every model, in the base's layout.
    places : mapping of str to (int, str)
        The matrices of the base's MLPs: layer and kind.
    """

    layout: Layout
    opened: Opened
    places: Mapping[str, Place]


def plan_moe(file: MoeFile, experts: Experts, gates: Model, settings: Settings) -> PlanRecord:
    """The plan of a mixture of experts.

    Parameters
    ----------
    file : MoeFile
    experts : Experts
    gates : Model
        As :func:`taskvec.plan.moe.gates.as_model` has made it.
    settings : Settings
        The recipe's ``dtype`` goes before the output's type here.

    Raises
    ------
    CompatibilityError
        The models are incompatible.
    """
    recipe = file.recipe
    settings = replace(
        settings,
        out_dtype=recipe.dtype or settings.out_dtype,
        seed=recipe.seed if recipe.is_drawn and recipe.seed is not None else settings.seed,
    )
    base = checkpoint_of(experts.opened, recipe.base_model)
    adapters = {ref: adapted(ref, experts.opened) for ref in recipe.models() if ref.adapter is not None}
    found = [*file.remarks, *_findings(recipe, experts, base)]
    found += [*tie_findings([*adapters.values()]), *gap_findings([*adapters.values()])]
    found += _idle_adapters(recipe, experts, adapters)
    refuse_conversion(enforce(in_order(found), settings.force), settings)
    found = enforce(in_order(found), settings.force)
    draft = Draft(base, "base")
    rows = _Rows(draft, experts, recipe, _numbers(draft, recipe, experts.opened, adapters), gates, settings)
    rows.write_all()
    changes = config_changes(
        experts.layout,
        base.config,
        len(recipe.experts),
        recipe.experts_per_token,
        shared=recipe.shared is not None,
    )
    return draft.finish(
        alphas=[1.0],
        settings=settings,
        findings=found,
        recipe={
            "verb": "moe",
            "recipe": [file.document],
            "layout": experts.layout.name,
            **_written(recipe, settings),
        },
        config=changes,
        is_random=any(expert.noise_scale for _, expert in recipe.everyone()),
    )


def _written(recipe: MoeRecipe, settings: Settings) -> dict[str, Any]:
    """The settings that a manifest keeps; the recipe's own seed stands in the recipe."""
    is_given = recipe.is_drawn and recipe.seed is None
    return {**written(settings), **({"seed": settings.seed} if is_given else {})}


def _findings(recipe: MoeRecipe, experts: Experts, base: Model) -> Iterator[Finding]:
    others = [
        (str(ref), checkpoint_of(experts.opened, ref)) for ref in recipe.models() if ref != recipe.base_model
    ]
    others = [(name, model) for name, model in others if model is not base]
    for each in check_models(others, base, selection=MLPS):
        # of experts only MLPs are taken, and there is no other selection
        names_others = any(option in each.fix for option in ("--preset", "--exclude", "selection"))
        yield replace(each, fix="give experts of the base's family and shape") if names_others else each
    if experts.layout.name == "deepseek":
        yield finding(
            "moe-code",
            "config.json",
            "",
            "transformers has no class for the layout `deepseek`: it loads it with `trust_remote_code=True` "
            "and the code of deepseek-ai/deepseek-moe-16b-base; vLLM and llama.cpp know it",
        )


def _idle_adapters(
    recipe: MoeRecipe, experts: Experts, adapters: Mapping[ModelRef, tuple[Adapter, Model]]
) -> Iterator[Finding]:
    """Remarks on adapters of experts that change no MLP: nothing else is taken of them."""
    for path, expert in recipe.everyone():
        ref = expert.source_model
        if ref not in adapters or ref == recipe.base_model or adapters[ref][0].parameters:
            continue
        if experts.places.keys().isdisjoint(adapters[ref][0].changed):
            where = recipe.document.place((*path, "source_model"), key=True)
            what = "the adapter has no effect: it changes no MLP, and nothing else is taken of an expert"
            yield finding("recipe-ignored", where, "", what, "remove it")


def _numbers(
    draft: Draft, recipe: MoeRecipe, opened: Opened, adapters: Mapping[ModelRef, tuple[Adapter, Model]]
) -> dict[ModelRef, int]:
    """The number of each model in the plan; one with an adapter is the adapter on top of it."""
    roles = {recipe.base_model: ["base"]}
    for number, expert in enumerate(recipe.experts):
        roles.setdefault(expert.source_model, []).append(f"expert {number}")
    if recipe.shared is not None:
        roles.setdefault(recipe.shared.source_model, []).append("shared expert")
    numbers: dict[ModelRef, int] = {}
    for ref, names in roles.items():
        for role in names:
            numbers[ref] = draft.source(checkpoint_of(opened, ref), role)
        if ref in adapters:
            numbers[ref] = draft.adapter(adapters[ref][0], names[0], base=numbers[ref])
    return numbers


class _Rows:
    """The tensors of the output, written into a plan in the making."""

    def __init__(
        self,
        draft: Draft,
        experts: Experts,
        recipe: MoeRecipe,
        numbers: Mapping[ModelRef, int],
        gates: Model,
        settings: Settings,
    ) -> None:
        self.draft, self.recipe, self.numbers, self.settings = draft, recipe, numbers, settings
        self.layout, self.opened, self.places = experts
        self.base = draft.base
        self.gates = draft.source(gates, "gates")
        self.is_one = "1.router" not in gates.tensors  # one set of gates for all layers
        self.copy = draft.operation({"kind": "copy"})

    def write_all(self) -> None:
        """Every tensor of the base where it stands, or what comes in its place."""
        for name, info in self.base.tensors.items():
            if name in self.places:
                self._write_experts(name, info, *self.places[name])
            else:
                self._add(name, info, self.copy, self._inputs(self.recipe.base_model, name))

    def _write_experts(self, name: str, info: TensorInfo, layer: int, matrix: str) -> None:
        stem = f"model.layers.{layer}."
        if matrix == "gate_proj":
            self._write_gates(stem, info, layer)
        for number, expert in enumerate(self.recipe.experts):
            self._write(stem + self.layout.expert(number, matrix), name, info, matrix, expert)
        if self.recipe.shared is not None:
            own = f"{stem}{self.layout.shared_name}.{matrix}.weight"
            self._write(own, name, info, matrix, self.recipe.shared)

    def _write(self, own: str, name: str, info: TensorInfo, matrix: str, expert: Expert) -> None:
        """One matrix of an expert; what adds to the stream is scaled, noise and all."""
        scale = expert.residual_scale if matrix == "down_proj" and expert.residual_scale is not None else 1.0
        terms = [{"model": 0, "reference": None, "weight": scale}]
        if expert.noise_scale:
            kind = {"kind": "noised", "terms": terms, "deviation": expert.noise_scale}
        else:
            kind = {"kind": "passthrough", "terms": terms}
        is_copy = scale == 1.0 and not expert.noise_scale
        operation = self.copy if is_copy else self.draft.operation(kind)
        self._add(own, info, operation, self._inputs(expert.source_model, name))

    def _write_gates(self, stem: str, info: TensorInfo, layer: int) -> None:
        number = 0 if self.is_one else layer
        width = info.shape[1]
        router = info._replace(shape=(len(self.recipe.experts), width), nbytes=0)
        self._add(stem + self.layout.router, router, self.copy, [(self.gates, f"{number}.router")])
        if self.layout.shared_gate and self.recipe.shared is not None:
            shared = info._replace(shape=(1, width), nbytes=0)
            self._add(stem + self.layout.shared_gate, shared, self.copy, [(self.gates, f"{number}.shared")])

    def _inputs(self, ref: ModelRef, name: str) -> list[tuple[int, str]]:
        """The tensor of a model; of one that lacks it, or has another shape, the base's: that was forced."""
        own = checkpoint_of(self.opened, ref).tensors.get(name)
        fits = own is not None and own.shape == self.base.tensors[name].shape
        return [(self.numbers[ref if fits else self.recipe.base_model], name)]

    def _add(self, name: str, info: TensorInfo, operation: int, inputs: Sequence[tuple[int, str]]) -> None:
        form = out_dtype(info.dtype, self.settings)
        self.draft.tensor(name, form, info.shape, operation, list(inputs))
        if name not in self.base.tensors:
            self.draft.place(name, info._replace(nbytes=0))
