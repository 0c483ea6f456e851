"""The keyword arguments of the calls of evaluation, as editors and type checkers know them.

They are the keys of a sweep file: `Settings` and `Experiment` say what each one means, and check it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from taskvec.evaluation.paper import Size
from taskvec.evaluation.settings import Backend, Decoding

Path = str | os.PathLike[str]
Several = str | Sequence[str]
Numbers = float | Sequence[float]


class MapOptions(TypedDict, total=False):
    """Settings of an importance map."""

    backend: Backend
    chat_template: bool
    data: Path
    device: str | None
    include_path: Path
    limit: int | float | None
    model_args: Mapping[str, str | int | float | bool]
    seed: int


class SettingOptions(MapOptions, total=False):
    """The settings of an evaluation, but for its tasks."""

    batch_size: int | Literal["auto"] | None
    confirm_run_unsafe_code: bool
    decoding: Decoding
    max_gen_toks: int | None
    metrics: Mapping[str, str]
    pass_at: Sequence[int]
    samples: int
    temperature: float
    top_p: float


class ControlOptions(TypedDict, total=False):
    """How many vectors of each kind the real one is compared with."""

    random: int
    permuted: int


class PartOptions(TypedDict, total=False):
    """Arms that say what a vector is made of."""

    groups: int | None
    modules: bool
    top: Numbers
    rank: int | Sequence[int]
    sign: bool
    without_sft: bool
    between: Numbers
    also: str | None


class MergeOptions(TypedDict, total=False):
    """How arms are merged."""

    include: Sequence[str]
    exclude: Sequence[str]
    preset: Literal["full", "no-embed", "no-embed-norm"]
    layers: str | None
    out_dtype: str | None
    rounding: Literal["nearest", "stochastic"]
    force: Sequence[str]


class SweepOptions(TypedDict, total=False):
    """The keys of a sweep file."""

    target: Path
    donor: Path | None
    reference: Path | None
    vector: Path | None
    base: Path | None
    rivals: Path | Sequence[Path]
    sft_alphas: str | Numbers
    alphas: str | Numbers
    tasks: Several
    think: str | bool | None
    think_only: bool
    perturb: Several
    arms: Literal["place", "merged"]
    development: float
    choose: Literal["once", "task"]
    controls: ControlOptions
    parts: PartOptions
    paper: Size | None
    evaluation: SettingOptions
    merge: MergeOptions
