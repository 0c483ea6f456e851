"""Mixtures of experts made of dense models: the recipe, lazy; gates, plan and run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Unpack

from taskvec.compat.findings import enforce_strictly
from taskvec.errors import RecipeError
from taskvec.lazy.plan import Plan
from taskvec.lazy.planned import Planned
from taskvec.models.model import Model
from taskvec.plan.merge_models import adapted, checkpoint, checkpoint_of, opened_models
from taskvec.plan.moe import gates
from taskvec.plan.moe.choice import hold_experts, layout_of, matrices
from taskvec.plan.moe.gates import Gates
from taskvec.plan.moe.plan import MLPS, Experts, plan_moe
from taskvec.recipe.moe import MoeFile, load
from taskvec.report.tables import facts_html, findings_html
from taskvec.resolve import storage
from taskvec.resolve.remote import materialised
from taskvec.resolve.stage import let_go, scratch_folder, stage
from taskvec.settings import Options, Settings

if TYPE_CHECKING:
    from taskvec.compat.findings import Finding
    from taskvec.progress import Callback
    from taskvec.report.report import Report

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class MoeMerge(Planned):
    """A mixture of experts, lazy: nothing is read but the recipe itself until it is planned or saved.

    It is a mapping of the tensors of its result too, which are computed when they are read.

    Attributes
    ----------
    file : MoeFile
    settings : Settings
    """

    file: MoeFile
    settings: Settings
    cache: list[Plan] = field(default_factory=list, init=False)

    def plan(self, **settings: Unpack[Options]) -> Plan:
        """What would happen, from headers and the gates, which are made here.

        ``cheap_embed`` reads the embeddings of the prompts' tokens, ``hidden`` runs the base model on them,
        one layer in memory at a time.

        Parameters
        ----------
        **settings
            The fields of :class:`taskvec.Settings`, in place of those that the recipe was opened with.

        Raises
        ------
        RecipeError
            The models fit no layout, or the prompts make no gates.
        CompatibilityError
            The models are incompatible.
        """
        if settings:
            return self.given(settings).plan()
        recipe = self.file.recipe
        opened = opened_models(recipe.models(), checkpoint, MLPS)
        base = checkpoint_of(opened, recipe.base_model)
        layout = layout_of(recipe, base)
        experts = Experts(layout, opened, matrices(recipe, layout, base))
        hold_experts(recipe, opened, experts.places)
        made = gates.as_model(list(self._gates(experts, base)))
        return Plan.of(plan_moe(self.file, experts, made, self.settings))

    def save(
        self,
        out: str | os.PathLike[str],
        *,
        progress: Callback | bool | None = None,
        **settings: Unpack[Options],
    ) -> Report:
        """Write the mixture into a folder, or to an address; raises as :func:`taskvec.moe`."""
        given = self.given(settings)
        return given.plan().run(out, settings=given.settings, progress=progress)

    def notes(self) -> list[Finding]:
        """What is known of the recipe without its models."""
        return list(self.file.remarks)

    def given(self, options: Options) -> MoeMerge:
        """The same with some settings replaced; raises as :func:`open_moe`."""
        given: Any = Planned.given(self, options)
        _hold_plain(given.settings)
        return given

    def _gates(self, experts: Experts, base: Model) -> Iterator[Gates]:
        """Those of each layer, or one for all."""
        recipe, layout = self.file.recipe, experts.layout
        with_shared = bool(layout.shared_gate) and recipe.shared is not None
        rows, width = base.tensors[EMBEDDING].shape
        if recipe.has_random_gates:
            layers, count = int(base.config["num_hidden_layers"]), len(recipe.experts)
            seed = self.settings.seed if recipe.seed is None else recipe.seed
            yield from gates.drawn(layers, count, width, seed, mode=recipe.gate_mode, with_shared=with_shared)
            return
        self._hold_adapter(experts)
        ids = gates.token_ids(base, gates.prompts_of(recipe), rows)
        for directions in self._directions(base, ids):
            yield gates.of_prompts(recipe, directions, with_shared=with_shared)

    def _directions(self, base: Model, ids: Mapping[str, Sequence[int]]) -> Iterator[Mapping[str, Any]]:
        if self.file.recipe.gate_mode == "cheap_embed":
            with _sampled(base) as model:
                yield gates.summed_embeddings(model, EMBEDDING, ids)
            return
        from taskvec.run.hidden_states import states  # which needs torch

        local = materialised(base, None)
        assert isinstance(local, Model)
        yield from states(local, ids)

    def _hold_adapter(self, experts: Experts) -> None:
        """Return if the gates are made of the base as the output has it."""
        recipe, ref = self.file.recipe, self.file.recipe.base_model
        if ref.adapter is None:
            return
        changed = adapted(ref, experts.opened)[0].changed
        if recipe.gate_mode == "hidden" or EMBEDDING in changed:
            raise recipe.error(
                ("base_model",),
                f"`gate_mode: {recipe.gate_mode}` of a base with an adapter, which would change the gates",
                "merge the adapter first: a recipe of `passthrough` with `model: base+adapter`",
            )

    def __repr__(self) -> str:
        recipe = self.file.recipe
        return f"MoeMerge({self.file.source!r}, {len(recipe.experts)} experts, gates: {recipe.gate_mode})"

    def _repr_html_(self) -> str:
        recipe = self.file.recipe
        facts = {"experts": str(len(recipe.experts)), "gates": str(recipe.gate_mode)}
        return facts_html("MoeMerge", self.file.source, facts) + findings_html(self.notes())


@contextmanager
def _sampled(model: Model) -> Iterator[Model]:
    """A model of which elements can be read: at an address range by range."""
    if model.weights is not None:
        yield model
        return
    place = scratch_folder(storage.current().folder, "gates-")
    try:
        source = stage(model, place / "base").source
        assert isinstance(source, Model)
        yield source
    finally:
        let_go(place)


def open_moe(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    *,
    overrides: Iterable[str] = (),
    **settings: Unpack[Options],
) -> MoeMerge:
    """Read a recipe in mergekit-moe's format and check what can be checked without its models.

    Parameters
    ----------
    recipe : path, YAML text or mapping
    overrides : iterable of str
        ``experts_per_token=1``: values to replace.
    **settings
        Those of :class:`taskvec.Settings`; the recipe's ``dtype`` goes before the output's type.

    Raises
    ------
    RecipeError
        It names the file, the line, the key, and the nearest valid word.
    CompatibilityError
        A word of it has no effect, and the settings are strict.
    """
    given, file = Settings.of(settings), load(recipe, overrides)
    _hold_plain(given)
    if given.strict:
        enforce_strictly(file.remarks, given.force)
    return MoeMerge(file, given)


def _hold_plain(settings: Settings) -> None:
    if settings.out_dtype == "target":
        raise RecipeError(
            "`target` is a packed format, which experts are not written in",
            "write bfloat16 here and convert the result (`taskvec convert`)",
        )


def moe(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    overrides: Iterable[str] = (),
    progress: Callback | bool | None = None,
    **settings: Unpack[Options],
) -> Report:
    """Write dense models as one mixture of experts, by a recipe in mergekit-moe's format.

    Attention, norms and embeddings are the base's, the MLPs of every expert model one expert of each layer,
    the gates made of the prompts or drawn; config.json is that of Mixtral, Qwen2-MoE, Qwen3-MoE or
    DeepSeek-MoE. Packed weights are written plain.

    Parameters
    ----------
    recipe : path, YAML text or mapping
    out : str or path
        The output folder.
    overrides : iterable of str
        ``experts_per_token=1``: values to replace.
    progress : callable or bool, optional
        Called with a :class:`taskvec.Progress`; ``True`` draws a bar.
    **settings
        The fields of :class:`taskvec.Settings`.

    Raises
    ------
    RecipeError
        The recipe is not one, the models fit no layout, or the prompts make no gates.
    CompatibilityError
        The models are incompatible.
    taskvec.Error
        Another of its subclasses says what is missing, damaged or could not be written.
    """
    return open_moe(recipe, overrides=overrides, **settings).save(out, progress=progress)
