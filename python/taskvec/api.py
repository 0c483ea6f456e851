"""One call for each verb: open, check, plan, run, report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from taskvec.arguments import path as hold_path
from taskvec.arguments import texts
from taskvec.arguments import threads as hold_threads
from taskvec.compat.findings import in_order
from taskvec.errors import RecipeError
from taskvec.files import look
from taskvec.models.adapter import Adapter
from taskvec.models.selection import Preset, Selection, both
from taskvec.plan.checks import findings
from taskvec.plan.delta import Step
from taskvec.plan.packed_steps import check_output
from taskvec.report.tables import Findings
from taskvec.run.sinks import is_address
from taskvec.settings import Options, Settings, parse_alphas
from taskvec.shown import shown

if TYPE_CHECKING:
    from taskvec.lazy.checkpoint import Checkpoint
    from taskvec.lazy.plan import Plan
    from taskvec.lazy.vector import TaskVector
    from taskvec.models.model import Model
    from taskvec.plan.token_ways import Method as TokenMethod
    from taskvec.plan.transfer import Control, TokenizerSource
    from taskvec.progress import Callback
    from taskvec.report.composition import Composition
    from taskvec.report.difference import Difference
    from taskvec.report.inspect import Inspection
    from taskvec.report.merge_check import MergeCheck
    from taskvec.report.report import Report
    from taskvec.report.verify import Verification

    ModelLike = str | os.PathLike[str] | Checkpoint


def plan_transfer(
    target: ModelLike,
    donor: ModelLike,
    reference: ModelLike,
    *,
    alpha: float | str | Sequence[float] = 1.0,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: Preset = "full",
    layers: str | None = None,
    layer_scale: Sequence[float] | None = None,
    control: Control | None = None,
    tokenizer: TokenizerSource | None = None,
    **settings: Unpack[Options],
) -> Plan:
    """Say what :func:`transfer` would do, from headers, config and tokenizer alone.

    Takes the arguments of :func:`transfer` but for the output folder.
    """
    from taskvec.lazy.plan import Plan
    from taskvec.plan import transfer as planning
    from taskvec.resolve.open import open as open_model

    record = planning.plan_transfer(
        open_model(target),
        open_model(donor),
        open_model(reference),
        selection=_selection(include, exclude, preset, layers),
        settings=Settings.of(settings),
        alphas=parse_alphas(alpha),
        layer_scale=layer_scale,
        control=control,
        tokenizer=tokenizer,
    )
    return Plan.of(record)


def transfer(
    target: ModelLike,
    donor: ModelLike,
    reference: ModelLike,
    out: str | os.PathLike[str],
    *,
    alpha: float | str | Sequence[float] = 1.0,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: Preset = "full",
    layers: str | None = None,
    layer_scale: Sequence[float] | None = None,
    control: Control | None = None,
    tokenizer: TokenizerSource | None = None,
    progress: Callback | bool | None = None,
    **settings: Unpack[Options],
) -> Report:
    r"""Write target + α·(donor − reference), in one streamed pass (arXiv 2509.01363).

    Parameters
    ----------
    target, donor, reference : str, path or Checkpoint
        Folders, hub ids, or what :func:`taskvec.open` gave.
    out : str or path
        The output folder. Several values of alpha write ``out/alpha=0.5`` and so on, from one read of the
        inputs.
    alpha : float or sequence of float
        Factor of the vector; negative and above one too.
    include, exclude : str or iterable of str
        Regular expressions over tensor names; the others are the target's bytes.
    preset : {"full", "no-embed", "no-embed-norm"}
        Leave out the embeddings and the output head, or those and the norms.
    layers : str, optional
        Only these layers: ``8-20``, ``0,3,5-7``.
    layer_scale : sequence of float, optional
        Factors spread evenly over the layers, times alpha. What comes before the layers takes the first,
        what comes after them the last.
    control : {"random", "permute"}, optional
        Put a random vector of the same norm per tensor, or the vector's own values shuffled within each
        tensor, in its place; ``seed`` draws another one.
    tokenizer : {"union", "base", "target", "donor"}, optional
        Where the vocabularies differ: whose the output has, the target's (``base`` too), the donor's or all.
        Rows go by token. A row that a model lacks is the target's, or else the reference's.
    progress : callable or bool, optional
        Called with a :class:`taskvec.Progress` a few times a second.
    **settings
        The fields of :class:`taskvec.Settings`.

    Returns
    -------
    Report
        What was written, and what of the step survived rounding.

    Raises
    ------
    taskvec.Error
        One of its subclasses says what is incompatible, missing, damaged or could not be written.
    KeyboardInterrupt
        Stopped; the same call goes on where it was.
    """
    plan = plan_transfer(
        target, donor, reference, alpha=alpha, include=include, exclude=exclude, preset=preset, layers=layers,
        layer_scale=layer_scale, control=control, tokenizer=tokenizer, **settings,
    )  # fmt: skip
    return plan.run(out, settings=Settings.of(settings), progress=progress)


def check(
    target: ModelLike,
    donor: ModelLike,
    reference: ModelLike,
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: Preset = "full",
    layers: str | None = None,
    force: str | Iterable[str] = (),
) -> Findings:
    """The findings of a transfer, errors first; nothing is raised for an error among them.

    Returns
    -------
    list of Finding
        With ``ok``, ``to_frame()``, and a table in a notebook.
    """
    from taskvec.resolve.open import open as open_model

    step = Step(
        1.0,
        open_model(donor),
        open_model(reference),
        _selection(include, exclude, preset, layers),
    )
    base = open_model(target)
    found = findings(base, [step], force=texts(force, "force"))
    if any(each.level == "error" for each in found):
        return Findings(found)
    return Findings(in_order([*found, *check_output(base, [step])]))


def plan_extract(
    donor: ModelLike,
    reference: ModelLike,
    *,
    dtype: str | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: Preset = "full",
    layers: str | None = None,
    **settings: Unpack[Options],
) -> Plan:
    """Say what :func:`extract` would do, from headers alone; takes its arguments but for ``out``."""
    from taskvec.lazy.plan import Plan
    from taskvec.plan import extract as planning
    from taskvec.resolve.open import open as open_model

    record = planning.plan_extract(
        open_model(donor),
        open_model(reference),
        selection=_selection(include, exclude, preset, layers),
        settings=Settings.of(settings),
        dtype=dtype,
    )
    return Plan.of(record)


def extract(
    donor: ModelLike,
    reference: ModelLike,
    out: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: Preset = "full",
    layers: str | None = None,
    progress: Callback | bool | None = None,
    **settings: Unpack[Options],
) -> Report:
    """Save donor − reference as a task vector, without loss.

    Parameters
    ----------
    donor, reference : str, path or Checkpoint
        Folders, hub ids, or what :func:`taskvec.open` gave.
    out : str or path
        The output folder.
    dtype : str, optional
        A float type for all values, which loses what it cannot hold; by default each tensor has the type
        that takes the fewest bytes, and what it does not hold is kept exactly next to it.
    include, exclude, preset, layers
        The tensors that belong to the vector; see :func:`transfer`.
    progress : callable or bool, optional
        Called with a :class:`taskvec.Progress`; ``True`` draws a bar.
    **settings
        ``max_shard_size``, ``threads``, ``force``, ``overwrite``, ``resume`` and ``rehash`` matter here.

    Returns
    -------
    Report
        Its ``vector`` has the figures and the encoding of each tensor.

    Raises
    ------
    taskvec.Error
        One of its subclasses says what is incompatible, missing, damaged or could not be written.
    """
    plan = plan_extract(
        donor, reference, dtype=dtype, include=include, exclude=exclude, preset=preset, layers=layers,
        **settings,
    )  # fmt: skip
    return plan.run(out, settings=Settings.of(settings), progress=progress)


def plan_apply(
    target: ModelLike,
    *vectors: str | os.PathLike[str] | TaskVector,
    alpha: float | str | Sequence[float] = 1.0,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: Preset = "full",
    layers: str | None = None,
    layer_scale: Sequence[float] | None = None,
    control: Control | None = None,
    **settings: Unpack[Options],
) -> Plan:
    """Say what :func:`apply` would do, from headers alone; takes its arguments but for ``out``."""
    from taskvec.lazy.plan import Plan
    from taskvec.lazy.vector import TaskVector, load_vector
    from taskvec.plan import transfer as planning
    from taskvec.resolve.open import open as open_model

    if not vectors:
        raise RecipeError("no vector is given", "name at least one that `extract` or `save` wrote")
    alphas = parse_alphas(alpha, distinct=len(vectors) == 1)
    weights = [1.0]
    if len(vectors) > 1:
        if len(alphas) not in (1, len(vectors)):
            raise RecipeError(
                f"{len(alphas)} values of alpha are given for {len(vectors)} vectors",
                "give one for all, or one for each",
            )
        weights, alphas = [*alphas, *alphas * (len(vectors) - len(alphas))], (1.0,)
    opened = [vector if isinstance(vector, TaskVector) else load_vector(vector) for vector in vectors]
    selection = _selection(include, exclude, preset, layers)
    given = Settings.of(settings)
    force = [name for vector in opened for name in vector.force]
    record = planning.plan_steps(
        open_model(target),
        [
            step._replace(weight=weight * step.weight, selection=both(step.selection, selection))
            for vector, weight in zip(opened, weights, strict=True)
            for step in vector.steps
        ],
        settings=replace(given, force=tuple(dict.fromkeys((*given.force, *force)))),
        alphas=alphas,
        layer_scale=layer_scale,
        control=control,
    )
    return Plan.of(record)


def apply(
    target: ModelLike,
    *vectors: str | os.PathLike[str] | TaskVector,
    out: str | os.PathLike[str],
    alpha: float | str | Sequence[float] = 1.0,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: Preset = "full",
    layers: str | None = None,
    layer_scale: Sequence[float] | None = None,
    control: Control | None = None,
    progress: Callback | bool | None = None,
    **settings: Unpack[Options],
) -> Report:
    """Write target + Σ α·vector of saved vectors, in one pass; the bytes are those of :func:`transfer`.

    Parameters
    ----------
    target : str, path or Checkpoint
        The model that receives the vectors.
    *vectors : str, path or TaskVector
        What :func:`extract` or ``save`` wrote.
    out : str or path
        The output folder.
    alpha : float or sequence of float
        One for all vectors or, of several vectors, one for each. With one vector, several values write one
        output folder each.
    include, exclude, preset, layers, layer_scale, control
        See :func:`transfer`.
    progress : callable or bool, optional
        Called with a :class:`taskvec.Progress`; ``True`` draws a bar.
    **settings
        The fields of :class:`taskvec.Settings`.

    Raises
    ------
    taskvec.Error
        One of its subclasses says what is incompatible, missing, damaged or could not be written.
    """
    plan = plan_apply(
        target, *vectors, alpha=alpha, include=include, exclude=exclude, preset=preset, layers=layers,
        layer_scale=layer_scale, control=control, **settings,
    )  # fmt: skip
    return plan.run(out, settings=Settings.of(settings), progress=progress)


def plan_convert(
    model: ModelLike,
    *,
    keep: str | Iterable[str] = (),
    **settings: Unpack[Options],
) -> Plan:
    """Say what :func:`convert` would do, from headers alone; takes its arguments but for ``out``."""
    from taskvec.lazy.plan import Plan
    from taskvec.plan import convert as planning
    from taskvec.resolve.open import open as open_model

    record = planning.plan_convert(
        open_model(model), keep=texts(keep, "keep"), settings=Settings.of(settings)
    )
    return Plan.of(record)


def convert(
    model: ModelLike,
    out: str | os.PathLike[str],
    *,
    keep: str | Iterable[str] = (),
    progress: Callback | bool | None = None,
    **settings: Unpack[Options],
) -> Report:
    """Write a checkpoint in another form: dequantised, cast to another type, or quantised.

    Parameters
    ----------
    model : str, path or Checkpoint
        A folder, a hub id, or what :func:`taskvec.open` gave.
    out : str or path
        The output folder.
    keep : str or iterable of str
        Regular expressions over tensor names: what matches is not packed. Embeddings, head, norms, routers
        and what has one axis never are.
    progress : callable or bool, optional
        Called with a :class:`taskvec.Progress`; ``True`` draws a bar.
    **settings
        The fields of :class:`taskvec.Settings`. ``out_dtype`` is a float type for all float tensors
        (``bfloat16``), or a packed format for the linear layers: ``fp8-block``, ``fp8-channel``,
        ``int8-channel``, ``mxfp4`` or ``int4-g32``, by the rule of the tool that reads it. By default packed
        weights become plain, and what is not in safetensors (GGUF, distributed checkpoints of torch) is
        written so.

    Raises
    ------
    taskvec.Error
        One of its subclasses says what cannot be read, is missing, damaged or could not be written.
    """
    plan = plan_convert(model, keep=keep, **settings)
    return plan.run(out, settings=Settings.of(settings), progress=progress)


def plan_tokens(
    target: ModelLike,
    model: ModelLike,
    *,
    method: TokenMethod = "omp",
    k: int | None = None,
    **settings: Unpack[Options],
) -> Plan:
    """Say what :func:`tokens` would do, from headers and tokenizers; takes its arguments but for ``out``."""
    from taskvec.lazy.plan import Plan
    from taskvec.plan import tokens as planning
    from taskvec.resolve.open import open as open_model

    record = planning.plan_tokens(
        open_model(target), open_model(model), method=method, k=k, settings=Settings.of(settings)
    )
    return Plan.of(record)


def tokens(
    target: ModelLike,
    model: ModelLike,
    out: str | os.PathLike[str],
    *,
    method: TokenMethod = "omp",
    k: int | None = None,
    progress: Callback | bool | None = None,
    **settings: Unpack[Options],
) -> Report:
    """Write a checkpoint with the tokenizer of another model: the rows of its embedding and head go by token.

    Rows of tokens that both have are copied, and so are those of special tokens with the same role. The
    weights of other rows are found in the other model's embedding (for the head in its head) and carried
    over. There are as many rows as the other model has; those behind its tokens are zeros.

    Parameters
    ----------
    target : str, path or Checkpoint
        Keeps all other weights.
    model : str, path or Checkpoint
        Has the tokenizer.
    out : str or path
        The output folder.
    method : {"omp", "nearest", "subword"}
        For tokens that the target lacks: combinations of ``k`` shared tokens by orthogonal matching pursuit,
        the mean of the ``k`` nearest shared tokens by angle, or the mean of the target's own pieces of the
        token's text.
    k : int, optional
        64 for ``omp``, 1 for ``nearest``.
    progress : callable or bool, optional
        Called with a :class:`taskvec.Progress`; ``True`` draws a bar.
    **settings
        The fields of :class:`taskvec.Settings`.

    Returns
    -------
    Report
        Its ``tokens`` has the figures: how many rows come from where, and what is left of those approximated.

    Raises
    ------
    taskvec.Error
        One of its subclasses says what is incompatible, missing, damaged or could not be written.
    """
    plan = plan_tokens(target, model, method=method, k=k, **settings)
    return plan.run(out, settings=Settings.of(settings), progress=progress)


def analyse(
    vector: ModelLike | TaskVector,
    reference: ModelLike | None = None,
    *,
    sft: ModelLike | TaskVector | None = None,
    others: Iterable[ModelLike | TaskVector] = (),
    groups: int | None = None,
    spectra: bool = True,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: Preset = "full",
    layers: str | None = None,
    force: str | Iterable[str] = (),
    progress: Callback | bool | None = None,
) -> Composition:
    """Say what a vector is made of, from one read of it, in bounded memory.

    Parameters
    ----------
    vector : str, path, Checkpoint or TaskVector
        A vector, or with `reference` the donor.
    reference : str, path or Checkpoint, optional
        What the donor is compared with.
    sft : str, path, Checkpoint or TaskVector, optional
        The SFT vector, or the model that the reference was tuned from.
    others : iterable of str, path, Checkpoint or TaskVector
        Further vectors to compare with; of a model its difference from `reference`.
    groups : int, optional
        Figures of so many groups of neighbouring layers as well.
    spectra : bool
        Whether singular values are computed, which takes most of the time.
    include, exclude, preset, layers
        The tensors of the vector; see :func:`transfer`.
    force : str or iterable of str
        Identifiers of findings to go on in spite of.
    progress : callable or bool, optional
        Called with a :class:`taskvec.Progress`; ``True`` draws a bar.

    Returns
    -------
    Composition
        Norms and shares of the squared norm by layer, module and group; how much of it the largest elements
        hold (magnitudes that differ by less than 0.8 % count alike there); effective ranks; cosines and the
        agreement of signs with the other vectors. `to_dict` gives plain data.

    Raises
    ------
    taskvec.Error
        One of its subclasses says what is incompatible, missing, damaged or not finite.
    """
    from taskvec.lazy import analyse as verb

    return verb.analyse(
        vector,
        reference,
        sft=sft,
        others=others,
        groups=groups,
        spectra=spectra,
        selection=_selection(include, exclude, preset, layers),
        force=texts(force, "force"),
        progress=progress,
    )


def diff(
    left: ModelLike | TaskVector,
    right: ModelLike | TaskVector,
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: Preset = "full",
    layers: str | None = None,
    threads: int | None = None,
    progress: Callback | bool | None = None,
) -> Difference:
    """Compare two checkpoints, or two task vectors, in one streamed pass.

    Parameters
    ----------
    left, right : str, path, Checkpoint or TaskVector
        Two of one kind.
    include, exclude, preset, layers
        The tensors to compare; see :func:`transfer`.
    threads : int, optional
        All cores by default.
    progress : callable or bool, optional
        Called with a :class:`taskvec.Progress`; ``True`` draws a bar.

    Returns
    -------
    Difference
        Relative norm, cosine, share of elements that differ, largest difference and, of vectors, overlap of
        the supports and agreement of the signs; per tensor, per layer, per kind of module.

    Raises
    ------
    CompatibilityError
        They have nothing in common, or hold quantised weights.
    """
    from taskvec.lazy.diff import diff

    selection = _selection(include, exclude, preset, layers)
    return diff(left, right, selection=selection, threads=threads, progress=progress)


def inspect(path: ModelLike) -> Inspection:
    """Describe a checkpoint or a saved vector, from its headers alone."""
    from taskvec.report.inspect import inspect

    return inspect(path)


def check_merge(
    base: ModelLike,
    step: ModelLike,
    merged: ModelLike,
    *,
    alpha: float | None = None,
    progress: Callback | bool | None = None,
) -> MergeCheck:
    """Say, tensor by tensor, whether a step was really added to a model, by whatever tool.

    Parameters
    ----------
    base : str, path or Checkpoint
        The model that was merged into.
    step : str, path or Checkpoint
        What was to be added: a model that was tuned from `base`, a saved vector, or a LoRA adapter.
    merged : str, path or Checkpoint
        The outcome.
    alpha : float, optional
        The factor that was asked for; any one factor by default.
    progress : callable or bool, optional
        Called with a :class:`taskvec.Progress`; ``True`` draws a bar.

    Returns
    -------
    MergeCheck
        True if `merged` is base + alpha * step in every tensor, up to rounding; ``verdict``, ``alpha`` by
        least squares, and each tensor's own.

    Raises
    ------
    RecipeError
        The step has no tensor of the base.
    taskvec.Error
        A model is missing or damaged.
    """
    from taskvec.lazy import merge_check
    from taskvec.models.adapter_config import CONFIG
    from taskvec.resolve.adapter import open_adapter
    from taskvec.resolve.open import open as open_model
    from taskvec.resolve.remote import materialised
    from taskvec.resolve.saved_vector import is_vector, open_vector

    alpha = None if alpha is None else parse_alphas([alpha])[0]

    with shown(progress) as tell:

        def opened(model: ModelLike) -> Model:
            found = materialised(open_model(model), tell)
            assert not isinstance(found, Adapter)
            return found  # type: ignore[return-value]

        before, after = opened(base), opened(merged)
        values = None
        if isinstance(step, str | os.PathLike) and look.exists(os.path.join(os.fspath(step), CONFIG)):
            added: Any = open_adapter(step)
            values = merge_check.of_adapter(before, os.fspath(step))
        elif isinstance(step, str | os.PathLike) and is_vector(step):
            added = open_vector(step, tell)
            values = merge_check.of_vector(before, os.fspath(step))
        else:
            added = opened(step)
        return merge_check.check_merge(before, added, after, alpha=alpha, values=values, progress=tell)


def verify(
    path: str | os.PathLike[str],
    *,
    rehash: bool = False,
    threads: int | None = None,
    progress: Callback | bool | None = None,
) -> Verification:
    """Compare every file of an output with the manifest's digest.

    At an address of an object store sizes and the store's own checksums are compared with those noted when
    the output was written; ``rehash`` has all files read there as well.
    """
    path, threads = hold_path(path, "path"), hold_threads(threads)
    if is_address(path):
        from taskvec.report.verify_store import verify_store  # obstore, which local folders do not need

        with shown(progress) as tell:
            return verify_store(str(path), rehash=rehash, threads=threads, progress=tell)
    from taskvec.report.verify import verify

    with shown(progress) as tell:
        return verify(path, threads=threads, progress=tell)


def _selection(
    include: str | Iterable[str], exclude: str | Iterable[str], preset: Preset, layers: str | None
) -> Selection:
    return Selection(texts(include, "include"), texts(exclude, "exclude"), preset, layers)
