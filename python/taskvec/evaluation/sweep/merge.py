"""Making the weights of arms: target + alpha * vector, its controls, and the vectors of its rivals.

The engine does the work; this module names the weights of each arm, in as few reads of the inputs as there
are vectors: all alphas of one vector come from one pass.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.arms import MERGED, PARTS, Arm
from taskvec.evaluation.backend.delta import Delta, vector_norms
from taskvec.evaluation.experiment import Experiment
from taskvec.evaluation.record import Merged, digest_json, writing
from taskvec.evaluation.sweep.part_vectors import (
    FOLDER,
    PartVectors,
    facts,
    merge_part,
    part_content,
    part_inputs,
    parts_digest,
)
from taskvec.files import look
from taskvec.settings import format_alpha

# arms whose weights are asked for, and the folder to make sub-folders in -> the merged model by `Arm.weights`
MergeArms = Callable[[Sequence[Arm], Path], dict[str, Merged]]

UNFINISHED = ".merging"


class Merger:
    """Merges the arms of an experiment with taskvec's own engine.

    Parameters
    ----------
    experiment : Experiment
    digests : mapping of str to str, optional
        The identities of the models by name: vectors that an earlier run made of the same ones are taken up.
    """

    def __init__(self, experiment: Experiment, digests: Mapping[str, str] | None = None) -> None:
        self.experiment = experiment
        self._left_out: list[str] | None = None
        self._digests = digests or {}
        self._parts: PartVectors | None = None

    def __call__(self, arms: Sequence[Arm], folder: Path) -> dict[str, Merged]:
        """Merge the weights of `arms` into sub-folders of `folder`."""
        made: dict[str, Merged] = {}
        vectors = list({arm.factor: arm for arm in arms if arm.kind == "vector"}.values())
        if vectors:
            made.update(self._write(vectors, folder))
        for arm in {arm.weights: arm for arm in arms if arm.kind in MERGED - {"vector"}}.values():
            made.update(self._write([arm], folder))
        return made

    def _vectors(self, folder: Path) -> PartVectors:
        """The vectors of parts, kept in the folder of merged models."""
        if self._parts is None:
            digest = parts_digest(self.experiment, self._digests)
            self._parts = PartVectors(self.experiment, folder / FOLDER, digest)
        return self._parts

    def _write(self, arms: Sequence[Arm], folder: Path) -> dict[str, Merged]:
        """Merge arms that differ in alpha alone, from one read of the inputs."""
        part = folder / UNFINISHED  # an unfinished merge is never taken for an arm's weights
        known: dict[str, Any] | None = None
        if arms[0].kind in PARTS:
            report, known = merge_part(self.experiment, self._vectors(folder), arms[0], part)
        else:
            report = self._merge(arms, part)
        made = {}
        for arm, output in zip(arms, report.outputs, strict=True):
            out = folder / arm.weights
            with writing(out):
                Path(output.folder).replace(out)
            norms = vector_norms(output.tensors, arm.factor)
            made[arm.weights] = Merged(
                folder=str(out),
                survival=output.survival.to_dict() if output.survival else None,
                norms=norms,
                findings=[finding.to_dict() for finding in report.findings],
                command=self.command(arm),
                part=facts(norms, known) if known is not None else None,
            )
        if look.is_folder(part):
            with writing(part):
                shutil.rmtree(part)
        return made

    def _without(self, arm: Arm) -> list[str]:
        """What a control leaves out, as patterns: tensors that shuffling leaves as they are, in the main."""
        if arm.kind != "permuted":
            return []
        if self._left_out is None:
            from taskvec.evaluation.sweep.one_sided import one_sided, pattern, rows

            donor, reference = _difference(self.experiment, arm)
            target = self.experiment.target
            if donor is None or reference is None:  # a saved vector, whose values are not looked at
                names = rows(target)
            else:
                names = one_sided(target, donor, reference)
            self._left_out = [pattern(names)] if names else []
        return self._left_out

    def delta_of(self, arm: Arm) -> Delta:
        """What is added to the target for an arm."""
        donor, reference = _difference(self.experiment, arm)
        given = self.experiment.merge
        return Delta(
            donor=donor,
            reference=reference,
            vector=self.experiment.vector if donor is None else None,
            alpha=arm.factor,
            control=CONTROLS.get(arm.kind),
            seed=arm.seed or 0,
            include=tuple(given.include),
            exclude=(*given.exclude, *self._without(arm)),
            preset=given.preset,
            layers=given.layers,
            out_dtype=given.out_dtype,
            rounding=given.rounding,
            force=tuple(given.force),
        )

    def command(self, arm: Arm) -> str:
        """The command line that makes the weights of an arm."""
        return transfer_command(self.experiment, arm, self._without(arm))

    def _merge(self, arms: Sequence[Arm], out: Path) -> Any:
        import taskvec as tv

        target, delta = self.experiment.target, self.delta_of(arms[0])
        options = {**delta.options(), "alpha": [arm.factor for arm in arms], "overwrite": True}
        if delta.vector is not None:
            return tv.apply(target, delta.vector, out=out, **options)
        assert delta.donor is not None
        assert delta.reference is not None
        return tv.transfer(target, delta.donor, delta.reference, out, **options)


CONTROLS: dict[str, str] = {"random": "random", "permuted": "permute"}


def _difference(experiment: Experiment, arm: Arm) -> tuple[str | None, str | None]:
    """The two models whose difference an arm's vector is; none of them for a saved vector."""
    if arm.kind == "between":
        return experiment.donor, experiment.reference
    if arm.kind == "sft":
        if experiment.reference is None or experiment.base is None:
            raise EvaluationError("the SFT vector needs `reference` and `base`")
        return experiment.reference, experiment.base
    if arm.kind == "whole":
        if experiment.donor is None or experiment.base is None:
            raise EvaluationError("the whole difference needs `donor` and `base`")
        return experiment.donor, experiment.base
    if arm.kind == "rival":
        model = experiment.rival_models.get(arm.origin or "")
        if model is None or experiment.reference is None:
            raise EvaluationError(f"the vector `{arm.name}` needs `reference`, and its model among `rivals`")
        return model, experiment.reference
    return (None, None) if experiment.vector is not None else (experiment.donor, experiment.reference)


def model_of(arm: Arm, experiment: Experiment) -> str:
    """The model of an arm that needs no merge, as the experiment names it."""
    model = {"baseline": experiment.target, "donor": experiment.donor, "reference": experiment.reference}[
        arm.kind
    ]
    assert model is not None
    return model


def arm_weights(arm: Arm, experiment: Experiment, digests: Mapping[str, str]) -> str:
    """The identity of an arm's weights, without merging it, from the identities of the models."""
    if arm.kind not in MERGED:
        return digests[model_of(arm, experiment)]
    donor, reference = _difference(experiment, arm)
    first = experiment.target if arm.kind != "between" else reference
    given = (first, donor, reference, None if donor else experiment.vector, *part_inputs(experiment, arm))
    inputs = [model for model in given if model is not None]
    content = {
        "inputs": [digests[model] for model in inputs],
        "kind": arm.kind,
        "alpha": arm.factor,
        "seed": arm.seed,
        "merge": experiment.merge.model_dump(mode="json"),
    }
    if arm.kind == "permuted":
        # permuted vectors from before held them
        content["left_out"] = "one-sided" if donor else "one-dimensional"
    if arm.kind == "part":
        content |= part_content(experiment, arm)
    return f"merge:{digest_json(content)}"


def transfer_command(experiment: Experiment, arm: Arm, without: Sequence[str] = ()) -> str:
    """The command line that makes the weights of an arm, `without` the tensors of further patterns.

    Empty for a part of the vector: the sweep itself makes it.
    """
    if arm.kind == "part":
        return ""
    donor, reference = _difference(experiment, arm)
    if donor is None or reference is None:
        words = ["taskvec", "apply", experiment.target, str(experiment.vector)]
    else:
        words = [
            "taskvec",
            "transfer",
            "--target",
            reference if arm.kind == "between" else experiment.target,
            "--donor",
            donor,
            "--reference",
            reference,
        ]
    words += ["-o", "OUT", "--alpha", format_alpha(arm.factor)]
    if arm.kind in CONTROLS:
        words += ["--control", CONTROLS[arm.kind], "--seed", str(arm.seed or 0)]
    given = experiment.merge
    for option, values in (
        ("--include", given.include),
        ("--exclude", [*given.exclude, *without]),
        ("--force", given.force),
    ):
        for value in values:
            words += [option, value]
    for option, value, default in (
        ("--preset", given.preset, "full"),
        ("--layers", given.layers, None),
        ("--out-dtype", given.out_dtype, None),
        ("--rounding", given.rounding, "nearest"),
    ):
        if value is not None and value != default:
            words += [option, value]
    return shlex.join(words)
