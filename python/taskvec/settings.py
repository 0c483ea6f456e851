"""Settings of every verb that writes weights: output type, rounding, layout and resource limits.

A setting is one field of :class:`Settings` and one line of :class:`Options`; all else follows from them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from taskvec.arguments import between, switch, texts, threads
from taskvec.dtypes import FLOAT_DTYPES, parse_dtype
from taskvec.errors import RecipeError
from taskvec.option import option, options_of, recorded
from taskvec.regex import regex
from taskvec.text import alike, kind_of

Rounding = Literal["nearest", "stochastic"]
# The output type that stands for the target's own form of storage, packed weights included.
TARGET = "target"
# What a quantised target is written as where only the weights that change are plain.
TOUCHED = "touched"
# Packed formats that a plain checkpoint can be converted to.
FORMATS = ("fp8-block", "fp8-channel", "int8-channel", "mxfp4", "int4-g32")

_SIZE = regex(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([kmgtp]?)(i?)(b?)\s*", re.IGNORECASE)
_MAX_SEED = 2**64 - 1
_MAX_SIZE = 2**63 - 1
# mergekit writes `5B` for five billion: no weight file or buffer that is meant in bytes is so small.
_SMALLEST_IN_BYTES = 1_000_000


def parse_size(value: str | int) -> int:
    """Bytes of ``5GB`` (decimal), ``512MiB`` (binary) or a plain number.

    Raises
    ------
    RecipeError
        The text is not a size, or not above zero.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        count = value
    elif not isinstance(value, str):
        raise RecipeError(f"a size is a whole number or a text, found {kind_of(value)}", "write it as `5GB`")
    else:
        match = _SIZE.fullmatch(value)
        if match is None or (match[3] and not match[2]):
            raise RecipeError(f"`{value}` is not a size", "write it as `5GB`, `512MB` or a number of bytes")
        power = " kmgtp".index(match[2].lower() or " ")
        # a number beyond all sizes would be infinite
        count = int(min(float(match[1]), float(_MAX_SIZE)) * (1024 if match[3] else 1000) ** power)
        if power == 0 and match[4] and count < _SMALLEST_IN_BYTES:
            number = match[1]
            raise RecipeError(
                f"the size `{value}` is {count} bytes: `B` stands for bytes, not for billions",
                f"write `{number}GB` for {number} billion bytes",
            )
    if not 0 < count <= _MAX_SIZE:
        raise RecipeError(
            f"the size `{value}` is out of range", "give a size above zero, and below 2^63 bytes"
        )
    return count


def parse_alphas(value: str | float | Iterable[float], *, distinct: bool = True) -> tuple[float, ...]:
    """The values of alpha in ``-1,0,0.5``, a number, or a sequence of numbers; each once, if ``distinct``.

    Raises
    ------
    RecipeError
        A value is not a finite number, occurs twice, or there is none.
    """
    if isinstance(value, str):
        words: list[Any] = value.split(",")
    elif isinstance(value, bytes | Mapping):
        raise RecipeError(f"alpha is a number, or a list of them, found {kind_of(value)}", "give `alpha=0.8`")
    elif isinstance(value, Iterable):
        words = list(value)
    else:
        words = [value]
    alphas: list[float] = []
    for word in words:
        try:
            alpha = float(word)
        except (TypeError, ValueError):
            raise RecipeError(
                f"alpha `{word}` is not a number", "several are separated by commas: -1,0.5,1"
            ) from None
        if not math.isfinite(alpha):
            raise RecipeError(
                f"alpha `{word}` is not finite", "alpha is any finite number, negative or above one too"
            )
        alpha += 0.0  # -0.0 becomes 0.0
        if distinct and alpha in alphas:
            raise RecipeError(
                f"alpha `{format_alpha(alpha)}` is given twice",
                "each value has one output folder: name it once",
            )
        alphas.append(alpha)
    if not alphas:
        raise RecipeError("no alpha is given", "give at least one value")
    return tuple(alphas)


def format_alpha(alpha: float) -> str:
    """The shortest text that reads back as this number: ``-1``, ``0.5``, ``1e-07``."""
    return repr(float(alpha)).removesuffix(".0")


class Options(TypedDict, total=False):
    """The fields of :class:`Settings` as keyword arguments of the verbs."""

    out_dtype: str | None
    rounding: Rounding
    seed: int
    threads: int | None
    max_memory: int | str | None
    scratch_size: int | str | None
    stream: bool
    public: bool
    max_shard_size: int | str | None
    force: str | Iterable[str]
    strict: bool
    overwrite: bool
    resume: bool
    rehash: bool
    input_digests: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a run: how it computes and writes.

    Parameters
    ----------
    out_dtype : str, optional
        Float type of every float tensor written (``bfloat16``, ``float32`` …), or ``target``: the target's
        types, packed weights in their own format; or ``touched``: only packed weights that change are plain,
        with those that serving engines keep in one layer with them. By default the target's types; a packed
        weight is written in its own format where all models are stored in it, and plain otherwise.
        ``convert`` takes the name of a packed format too.
    rounding : {"nearest", "stochastic"}
        Nearest-even, or unbiased by counter-based random draws.
    seed : int
        Seed of everything random, 0 to 2⁶⁴ − 1.
    threads : int, optional
        Worker threads; all cores by default. The bytes written do not depend on them.
    max_memory : int or str, optional
        Upper limit of the buffers in bytes, or as ``512MB``.
    scratch_size : int or str, optional
        Upper limit of what lies in the scratch folder at a time where models are brought range by range or
        the output goes to an address; by default nearly all that is free there.
    stream : bool
        Bring models that are at addresses range by range, for one weight file after the other, instead of
        fetching them as a whole first. It is so in any case where the output goes to an address, or where
        they do not fit on the disk.
    public : bool
        Whether all may read a repository that is made on the hub for the output; otherwise it is private.
    max_shard_size : int or str, optional
        Largest weight file in bytes, or as ``5GB``; the target's own layout by default.
    force : tuple of str
        Identifiers of findings that are taken as warnings instead of errors.
    strict : bool
        Take warnings as errors before anything is written, but for those that ``force`` names. What only the
        result shows, such as steps that were rounded away, is among the report's findings.
    overwrite : bool
        Replace what the output folder holds.
    resume : bool
        Go on with an unfinished output of the same plan.
    rehash : bool
        When resuming, read finished shards again and compare their digests.
    input_digests : bool
        Make the BLAKE3 digests of the local weight files that are read, in the same pass, for manifest and
        card: about a quarter of a second of one core for a gigabyte, once for each state of a file.

    Raises
    ------
    RecipeError
        A value that cannot be honoured.
    """

    # fmt: off
    out_dtype: str | None = option(
        None, section="Arithmetic", metavar="DTYPE", recorded=True,
        help="Type of the float tensors written: bfloat16, float32, ..., or target: packed weights in "
        "their own format; touched: those that change plain.  [default: the target's]",
    )
    rounding: Rounding = option(
        "nearest", section="Arithmetic", parse="choice", choices=get_args(Rounding), recorded=True,
        help="How results are rounded to the output type; stochastic is unbiased.",
    )
    seed: int = option(
        0, section="Arithmetic", parse="number", metavar="N",
        recorded=lambda settings: settings.rounding == "stochastic",
        help="Seed of everything random; the same seed gives the same bytes.",
    )
    threads: int | None = option(
        None, section="Machine", parse="number", metavar="N", for_vectors=True,
        help="Worker threads; the result does not depend on them.  [default: all cores]",
    )
    max_memory: int | None = option(
        None, section="Machine", parse="size", metavar="SIZE",
        help="Upper limit for buffers, such as `512MB` or `2GB`.",
    )
    scratch_size: int | None = option(
        None, section="Machine", parse="size", metavar="SIZE",
        help="Upper limit of the scratch folder where models are streamed or the output goes to an "
        "address, such as `20GB`.",
    )
    stream: bool = option(
        False, section="Machine", parse="switch",
        help="Fetch of models at addresses only what the next weight file needs, and let it go again.",
    )
    public: bool = option(
        False, section="Output", parse="switch", for_vectors=True,
        help="Let all read a repository that is made on the hub; otherwise it is private.",
    )
    max_shard_size: int | None = option(
        None, section="Output", parse="size", metavar="SIZE", recorded=True, for_vectors=True,
        help="Largest weight file, such as `5GB`.  [default: the target's own layout]",
    )
    force: tuple[str, ...] = option(
        (), section="Checks", parse="names", metavar="ID[,ID...]", recorded=True, for_vectors=True,
        help="Go on in spite of the findings named here, one by one (`taskvec check` shows the names).",
    )
    strict: bool = option(
        False, section="Checks", parse="switch", for_vectors=True,
        help="Take warnings as errors, but for those in --force: before anything is written, or, where only "
        "the result shows them, as exit code 1.",
    )
    overwrite: bool = option(
        False, section="Output", parse="switch", for_vectors=True,
        help="Replace what the output folder holds.",
    )
    resume: bool = option(
        True, section="Output", parse="switch", for_vectors=True,
        help="Go on with an unfinished output of the same plan, or begin again.",
    )
    rehash: bool = option(
        False, section="Output", parse="switch", for_vectors=True,
        help="When resuming, read finished files and inputs again and compare their hashes.",
    )
    input_digests: bool = option(
        True, section="Output", parse="switch", for_vectors=True,
        help="Hash the local weight files that are read, for manifest and card: 0.25 s of a core per GB, "
        "once for each file.",
    )
    # fmt: on

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if self.out_dtype is not None:
            put("out_dtype", _out_dtype(self.out_dtype))
        if self.rounding not in get_args(Rounding):
            raise RecipeError(f"rounding `{self.rounding}` is not known", "choose `nearest` or `stochastic`")
        put("seed", between(self.seed, "seed", 0, _MAX_SEED, "0 to 2^64 - 1"))
        put("threads", threads(self.threads))
        for name, declared in options_of(type(self)).items():
            if declared.parse == "switch":
                switch(getattr(self, name), name)
        for name in ("max_memory", "scratch_size", "max_shard_size"):
            if getattr(self, name) is not None:
                put(name, parse_size(getattr(self, name)))
        put("force", texts(self.force, "force"))

    @classmethod
    def of(cls, options: Options | Settings | None = None) -> Settings:
        """Settings from keyword arguments.

        Raises
        ------
        TypeError
            A keyword that no setting has; the message names the nearest one.
        RecipeError
            A value that cannot be honoured.
        """
        if isinstance(options, Settings):
            return options
        options = options or {}
        known = options_of(cls)
        for name in options:
            if name not in known:
                near = alike(name, known, n=1)
                raise TypeError(
                    f"unknown setting `{name}`" + (f"; did you mean `{near[0]}`?" if near else "")
                )
        return cls(**options)  # type: ignore[arg-type]


def _out_dtype(value: Any) -> str:
    word = str(value).strip().lower()
    if word in (TARGET, TOUCHED, *FORMATS):
        return word
    packed = [each for each in FORMATS if word and each.startswith(word)]
    if packed:
        raise RecipeError(
            f"`{value}` is not a float type, and not the whole name of a packed format",
            f"`taskvec convert` writes {', '.join(f'`{each}`' for each in packed)}",
        )
    return parse_dtype(value)


def out_dtype(dtype: str, settings: Settings) -> str:
    """The type in which a tensor of this type is written; only floats change theirs."""
    return float_dtype(settings) or dtype if dtype in FLOAT_DTYPES else dtype


def float_dtype(settings: Settings) -> str | None:
    """The float type that is asked for; ``None`` where the tensors keep theirs."""
    return None if settings.out_dtype in (TARGET, TOUCHED, *FORMATS) else settings.out_dtype


def written(settings: Settings) -> dict[str, Any]:
    """The settings that change what is written, without those that have their default."""
    return recorded(settings)
