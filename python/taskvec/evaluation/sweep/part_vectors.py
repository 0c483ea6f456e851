"""The vectors of the arms that say what a vector is made of, and their merges."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

import taskvec as tv
from taskvec.errors import EvaluationError
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.experiment import Experiment
from taskvec.evaluation.record import digest_json, write_whole
from taskvec.evaluation.sweep.part_arms import chosen_names, groups, rules
from taskvec.evaluation.sweep.sound import is_sound
from taskvec.files import look
from taskvec.files.names import MANIFEST
from taskvec.lazy.derived import VALUE, Derived, derive
from taskvec.models.selection import Selection
from taskvec.resolve.saved_vector import is_vector

if TYPE_CHECKING:
    from taskvec.lazy.vector import TaskVector

FOLDER = ".parts"  # in the scratch folder: vectors that were made of the vector
VERSION = 1  # of the ways in which they are made: part of an arm's identity
_DERIVED = TypeAdapter(Derived)


def whole_vector(experiment: Experiment) -> TaskVector:
    """The vector of an experiment on the tensors that its merges take, from headers."""
    given = experiment.merge
    if experiment.vector is not None:
        found = tv.load_vector(experiment.vector)
    else:
        assert experiment.donor is not None
        assert experiment.reference is not None
        found = _difference(experiment.donor, experiment.reference, experiment)
    return found.select_by(Selection(tuple(given.include), tuple(given.exclude), given.preset, given.layers))


def vector_names(experiment: Experiment) -> list[str]:
    """The tensors of the vector of an experiment; none is looked for where no group is asked for."""
    parts = experiment.parts
    return list(whole_vector(experiment).tensors) if parts.groups is not None or parts.modules else []


def _difference(donor: str, reference: str, experiment: Experiment) -> TaskVector:
    from taskvec.lazy.vector import TaskVector

    force = tuple(experiment.merge.force)
    return TaskVector.difference(tv.open(donor), tv.open(reference), force=force)


def hold_some(arm: Arm, names: Sequence[str] | None) -> None:
    """Return if a group has tensors; None is a part of another kind.

    Raises
    ------
    EvaluationError
        It has none.
    """
    if names is not None and not names:
        raise EvaluationError(f"arm `{arm.name}` adds no tensor", "ask for groups of another kind")


def sft_vector(experiment: Experiment) -> TaskVector:
    """Reference - base, from headers."""
    assert experiment.reference is not None
    assert experiment.base is not None
    return _difference(experiment.reference, experiment.base, experiment)


def other_vector(experiment: Experiment) -> TaskVector:
    """The vector of the second donor, or the second saved one, on the tensors that merges take.

    Raises
    ------
    EvaluationError
        It is a model, and there is no reference to take it from.
    """
    given = experiment.merge
    also = experiment.parts.also
    assert also is not None
    if is_vector(also):
        found = tv.load_vector(also)
    elif experiment.reference is not None:
        found = _difference(also, experiment.reference, experiment)
    else:
        raise EvaluationError(f"`{also}` is a model: its vector needs a reference", "name `reference`")
    return found.select_by(Selection(tuple(given.include), tuple(given.exclude), given.preset, given.layers))


def part_inputs(experiment: Experiment, arm: Arm) -> list[str]:
    """The models and vectors whose weights a part depends on, besides target and vector."""
    found = []
    if arm.part == "without-sft":
        found = [experiment.reference, experiment.base]
    if arm.part in ("other", "v-and-other"):
        found = [experiment.parts.also, experiment.reference]
    return [model for model in found if model is not None]


def part_content(experiment: Experiment, arm: Arm) -> dict[str, Any]:
    """What decides the weights of a part besides its inputs, as plain data."""
    made = {"part": arm.part, "version": VERSION}
    if arm.part is not None and arm.part.startswith(("only-", "all-but-")):
        made["groups"] = experiment.parts.groups
    return made


class PartVectors:
    """Gives the vector of every such arm; those that are computed are made together, from one read.

    Parameters
    ----------
    experiment : Experiment
    folder : Path
        Where vectors that are computed are kept; those of an earlier run are taken up again.
    digest : str
        Of everything that the vectors are made of.
    """

    def __init__(self, experiment: Experiment, folder: Path, digest: str) -> None:
        self.experiment, self._folder, self._digest = experiment, folder, digest
        self.whole = whole_vector(experiment)
        self._groups = groups(experiment, list(self.whole.tensors))

    def __call__(self, arm: Arm) -> tuple[TaskVector, dict[str, Any]]:
        """The vector of an arm of kind ``part`` at alpha 1, and what is known of it.

        Returns
        -------
        tuple of TaskVector and dict
            ``bytes``, ``norm`` and ``cosine`` of a vector that was made; ``bytes`` of a group.
        """
        part = arm.part or ""
        names = chosen_names(part, self._groups)
        if names is not None:
            hold_some(arm, names)
            elements = sum(math.prod(self.whole.tensors[name]) for name in names)
            return self.whole.select_by(_exactly(names)), {"bytes": VALUE * elements}
        if part in ("other", "v-and-other"):
            other = other_vector(self.experiment)
            return (other if part == "other" else self.whole + other), {}
        facts = self._made()[part]
        return tv.load_vector(facts["folder"]), {k: v for k, v in facts.items() if k != "folder"}

    def _made(self) -> dict[str, dict[str, Any]]:
        """The facts of every vector that is computed, each created if it does not exist."""
        wanted = rules(self.experiment)
        known = {name: facts for name in wanted if (facts := self._known(name)) is not None}
        missing = {name: rule for name, rule in wanted.items() if name not in known}
        if not missing:
            return known
        other = None
        if "without-sft" in missing:
            other = sft_vector(self.experiment)
        for name in missing:
            shutil.rmtree(self._folder / name, ignore_errors=True)
        for name, made in derive(self.whole, missing, self._folder, other=other).items():
            known[name] = asdict(made)
            content = {"digest": self._digest, **known[name]}
            write_whole(self._folder / f"{name}.json", json.dumps(content))
        return known

    def _known(self, name: str) -> dict[str, Any] | None:
        """The facts of a vector that an earlier run made of the same."""
        path = self._folder / f"{name}.json"
        if not look.exists(path) or not look.exists(self._folder / name / MANIFEST):
            return None
        try:
            content = json.loads(path.read_text())
            is_ours = content.pop("digest") == self._digest
            known = asdict(_DERIVED.validate_json(json.dumps(content), strict=True))
        except (ValueError, TypeError, AttributeError, KeyError):  # damaged: it is made again
            return None
        return known if is_ours and is_sound(self._folder / name) else None


def _exactly(names: Sequence[str]) -> Selection:
    from taskvec.evaluation.sweep.one_sided import pattern

    return Selection(include=(pattern(names),))


def merge_part(
    experiment: Experiment, vectors: PartVectors, arm: Arm, out: Path
) -> tuple[Any, dict[str, Any]]:
    """Write the weights of an arm; the engine's report and the figures of the part."""
    options = _options(experiment)
    if arm.kind == "between":
        assert experiment.donor is not None
        assert experiment.reference is not None
        given = experiment.merge
        chosen = {
            "include": given.include,
            "exclude": given.exclude,
            "preset": given.preset,
            "layers": given.layers,
        }
        report = tv.transfer(
            experiment.reference, experiment.donor, experiment.reference, out,
            alpha=[arm.factor], **chosen, **options,
        )  # fmt: skip
        return report, {}
    vector, known = vectors(arm)
    if options["out_dtype"] is None and _is_written_packed(experiment):
        # as the whole vector is: a computed one is plain. What rounding leaves of it is in the report
        options |= {"out_dtype": "target", "force": (*options["force"], "quantised-lost")}
    return tv.apply(experiment.target, vector, out=out, alpha=[arm.factor], **options), known


def _is_written_packed(experiment: Experiment) -> bool:
    """Whether the whole vector of quantised models leaves a quantised target in its format."""
    models = (experiment.target, experiment.donor, experiment.reference)
    if experiment.vector is not None:
        return False
    return all(tv.open(model).packed for model in models if model is not None)


def _options(experiment: Experiment) -> dict[str, Any]:
    given = experiment.merge
    return {
        "out_dtype": given.out_dtype,
        "rounding": given.rounding,
        "force": tuple(given.force),
        "overwrite": True,
    }


def facts(norms: Mapping[str, float], known: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a part: ``bytes`` that it takes, its ``norm``, and its ``cosine`` to the vector.

    A figure that is not known is None.
    """
    norm = math.sqrt(math.fsum(value * value for value in norms.values())) if norms else None
    return {"bytes": None, "cosine": None, "norm": norm, **known}


def parts_digest(experiment: Experiment, digests: Mapping[str, str]) -> str:
    """The digest of what the vectors are made of, from the identities of the models."""
    roles = (experiment.vector, experiment.donor, experiment.reference, experiment.base)
    inputs = [digests.get(model) for model in roles if model is not None]
    return digest_json(
        {"inputs": inputs, "merge": experiment.merge.model_dump(mode="json"), "version": VERSION}
    )
