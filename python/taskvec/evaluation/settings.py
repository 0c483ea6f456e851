"""How arms are evaluated: every setting that can change a score, in one frozen value.

A field of `Settings` is the one place where a setting is declared. The options of ``taskvec eval`` and
``taskvec sweep``, the keys of a sweep file and what is compared between arms all follow from it, so this
module imports nothing that ``--help`` would wait for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from taskvec.arguments import path
from taskvec.errors import RecipeError
from taskvec.evaluation.machines import hold_device
from taskvec.option import Declaration, declared, options_of
from taskvec.text import kind_of, plural

THINK = "Think step by step."
PERTURBATIONS = ("typo", "distractor", "order", "numbers")
RATED = ("typo", "distractor")  # perturbations of which there can be more or less
PAPER_TASKS = ("gsm8k", "humaneval", "sciq", "bbh_cot_fewshot")

Backend = Literal["hf", "vllm"]
Decoding = Literal["neutral", "model"]
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option(Declaration):
    """The command-line option and the key of a sweep file that one setting has.

    Attributes
    ----------
    unset : str, optional
        The effect of leaving it out, for the help; by default the field's default.
    flag : str, optional
        The option; by default ``--max-gen-toks`` of ``max_gen_toks``.
    key : str, optional
        The key in a sweep file; by default the field's name.
    least : int, optional
        The smallest number that the option takes.
    written : type, optional
        The type in a sweep file; by default the field's.
    parse : callable, optional
        Makes the field's value from the one in a sweep file or on the command line, where they differ.
    compared : bool
        Whether arms must agree in it to be compared; it is then a part of their identity.
    """

    unset: str | None = None
    flag: str | None = None
    key: str | None = None
    least: int | None = None
    written: Any = None
    parse: Callable[[Any], Any] | None = None
    compared: bool = True


def option(default: Any, **declaration: Any) -> Any:
    """A field of `Settings` with the option of the same attributes; see :class:`Option`."""
    return declared(Option(default=default, **declaration))


def _pairs(content: Mapping[str, str | int | float | bool]) -> Pairs:
    """A mapping as sorted pairs of texts; YAML's booleans are ``true`` and ``false`` again."""
    if not isinstance(content, Mapping):
        raise RecipeError(f"a mapping is needed, found {kind_of(content)}", "give `{'dtype': 'bfloat16'}`")
    words = {
        key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in content.items()
    }
    return tuple(sorted(words.items()))


def _counts(given: Any) -> tuple[int, ...]:
    """Whole numbers in rising order, each once."""
    if not isinstance(given, (list, tuple)) or any(
        not isinstance(each, int) or isinstance(each, bool) for each in given
    ):
        raise RecipeError(f"`pass_at` is a list of whole numbers, found {kind_of(given)}", "write [1, 5, 10]")
    return tuple(sorted(set(given)))


def _folder(given: Any) -> Path:
    return Path(path(given, "include_path"))


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that all arms of one experiment share.

    Attributes
    ----------
    tasks : tuple of str
        Task or group names of lm-eval, or of YAML tasks in ``include_path``.
    backend : {"hf", "vllm"}
        lm-eval's model class.
    device : str, optional
        ``cpu``, ``cuda``, ``cuda:1`` or a GPU's number; by default the GPU where there is one.
    batch_size : int or "auto", optional
        16 for ``hf`` and ``"auto"`` for ``vllm`` by default. ``"auto"`` with ``hf`` on a GPU is grown until
        memory is full, once for all arms of an output folder; on the CPU it is 16.
    limit : int or float, optional
        The first so many documents of each task; below 1 a share of them.
    chat_template : bool
        Whether prompts go through the tokenizer's chat template. It moves scores by tens of points.
    max_gen_toks : int, optional
        New tokens for every generating task; by default `defaults.KNOWN` decides per task.
    decoding : {"neutral", "model"}
        Whether answers are decoded by what the task asks for alone, or as the model's own
        ``generation_config.json`` adds to it (with ``hf``).
    samples : int
        Answers that are drawn for each question of generating tasks, besides the one that is scored.
    temperature, top_p : float
        How they are drawn.
    pass_at : tuple of int
        The k of pass@k and majority@k; by default the powers of two up to `samples`, and `samples`.
    seed : int
        For lm-eval's few-shot draws, for sampling, and for perturbations.
    include_path : Path, optional
        A folder of YAML tasks.
    data : Path, optional
        A folder of fetched data sets, which are then taken from there alone; by default HF_DATASETS_CACHE if
        it is one.
    model_args : tuple of (str, str)
        Further arguments of the backend, such as ``("dtype", "float32")``.
    metrics : tuple of (str, str)
        The metric to compare per task, where the default is not wanted.
    allow_unsafe_code : bool
        Consent to run code that a model writes.

    Raises
    ------
    RecipeError
        A value that cannot be honoured.
    """

    # fmt: off
    tasks: tuple[str, ...] = option(
        MISSING, section="Evaluation", metavar="NAME[,NAME...]",
        help="Tasks or groups of lm-eval, or of YAML tasks in --include-path.",
    )
    backend: Backend = option("hf", section="Machine", help="lm-eval's model class.")
    device: str | None = option(
        None, section="Machine", metavar="NAME", unset="the GPU if there is one", compared=False,
        help="cpu, cuda, cuda:1 or a GPU's number.",
    )
    batch_size: int | Literal["auto"] | None = option(
        None, section="Machine", metavar="N|auto", unset="16, vllm: auto",
        help="Requests at once; halved where memory does not suffice. On a GPU auto grows until it is full.",
    )
    limit: int | float | None = option(
        None, section="Evaluation", metavar="N",
        help="The first N documents of each task; below 1 a share of them.",
    )
    chat_template: bool = option(
        False, section="Evaluation", help="Put prompts through the tokenizer's chat template.",
    )
    max_gen_toks: int | None = option(
        None, section="Evaluation", metavar="N", unset="per task, long enough to reason", least=1,
        help="New tokens for every generating task.",
    )
    decoding: Decoding = option(
        "neutral", section="Evaluation", compared=False,
        help="Decode as the task says alone, or follow the model's generation_config.json as well.",
    )
    samples: int = option(
        0, section="Evaluation", metavar="N", unset="none", compared=False,
        help="Also draw N answers for each question, for pass@k and majority@k.",
    )
    temperature: float = option(
        0.7, section="Evaluation", metavar="T", compared=False, help="Of the answers drawn.",
    )
    top_p: float = option(
        0.95, section="Evaluation", metavar="P", compared=False,
        help="Draw from the likeliest tokens that hold this share.",
    )
    pass_at: tuple[int, ...] = option(
        (), section="Evaluation", metavar="K[,K...]", compared=False, parse=_counts, written=list[int],
        unset="1, 2, 4 ... N", help="The k of pass@k and majority@k.",
    )
    seed: int = option(
        1234, section="Evaluation", metavar="N",
        help="For worked examples, sampling, perturbations and the development part.",
    )
    include_path: Path | None = option(
        None, section="Evaluation", metavar="DIR", written=str | None, parse=_folder, compared=False,
        help="Folder of local YAML tasks.",
    )
    data: Path | None = option(
        None, section="Evaluation", metavar="DIR", written=str | None, parse=Path, compared=False,
        help="Folder of data sets that `taskvec tasks fetch` made; the hub is not asked for any.",
    )
    model_args: Pairs = option(
        (), section="Machine", metavar="KEY=VALUE", flag="--model-arg", parse=_pairs,
        written=dict[str, str | int | float | bool],
        help="A further argument of the backend, such as dtype=bfloat16 (repeatable).",
    )
    metrics: Pairs = option(
        (), section="Evaluation", metavar="TASK=METRIC", flag="--metric", parse=_pairs,
        written=dict[str, str], compared=False,
        help="The metric to compare for a task (repeatable).",
    )
    allow_unsafe_code: bool = option(
        False, section="Evaluation", key="confirm_run_unsafe_code", compared=False,
        help="Consent to tasks that run code which the model writes, on this machine.",
    )
    # fmt: on

    def __post_init__(self) -> None:
        if not self.tasks:
            raise RecipeError("no task was named", "name tasks with `--tasks gsm8k,sciq`, or use --paper")
        repeated = sorted({task for task in self.tasks if self.tasks.count(task) > 1})
        if repeated:
            raise RecipeError(f"task `{repeated[0]}` is named twice", "name every task once")
        for name, (kinds, words) in _KINDS.items():
            value = getattr(self, name)
            is_other = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
            if value is not None and is_other:
                raise RecipeError(f"`{key_of(name)}` is {words}, found {kind_of(value)}")
        if self.device is not None:
            hold_device(self.device)
        if self.backend not in ("hf", "vllm"):
            raise RecipeError(f"backend `{self.backend}` is not one of `hf`, `vllm`")
        if self.decoding not in ("neutral", "model"):
            raise RecipeError(f"decoding `{self.decoding}` is not one of `neutral`, `model`")
        if self.decoding == "model" and self.backend == "vllm":
            raise RecipeError(
                "decoding `model` needs the backend `hf`: lm-eval's `vllm` follows no generation_config.json",
                "leave out --decoding, or use `--backend hf`",
            )
        if isinstance(self.batch_size, str) and self.batch_size != "auto":
            raise RecipeError(
                f"batch size `{self.batch_size}` is neither a number nor `auto`", "give 16, or auto"
            )
        if isinstance(self.batch_size, int) and self.batch_size < 1:
            raise RecipeError(f"batch size {self.batch_size} is below 1", "give 1 or more, or auto")
        if self.limit is not None and not (
            math.isfinite(self.limit) and (0 < self.limit < 1 or float(self.limit).is_integer())
        ):
            raise RecipeError(
                f"limit {self.limit} is neither a count nor a share",
                "give a whole number, or a share below 1",
            )
        if self.limit is not None and self.limit <= 0:
            raise RecipeError(
                f"limit {self.limit:g} leaves no documents",
                "give a whole number, or a share below 1, or leave it out to ask all of them",
            )
        if self.samples < 0:
            raise RecipeError(
                f"the number of samples is below 0: {self.samples}", "give 1 or more, or leave it out"
            )
        beyond = next((k for k in self.pass_at if not 1 <= k <= self.samples), None)
        if beyond is not None:
            raise RecipeError(
                f"pass@{beyond} of {plural(self.samples, 'drawn answer')} for each question",
                f"name k from 1 to {self.samples}"
                if self.samples
                else f"draw answers: `--samples {max(self.pass_at)}`",
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise RecipeError(
                f"temperature {self.temperature:g} is not above 0",
                "the answers that are scored are greedy as the task asks; these are drawn besides them",
            )
        if not 0 < self.top_p <= 1:
            raise RecipeError(
                f"top_p {self.top_p:g} is not above 0 and at most 1", "1 draws from every token"
            )
        if self.max_gen_toks is not None and self.max_gen_toks < 1:
            raise RecipeError(
                f"max_gen_toks {self.max_gen_toks} is below 1", "leave it out for the task's own default"
            )

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Settings:
        """Settings from plain values, as a sweep file or the command line has them.

        Parameters
        ----------
        content : mapping of str to value
            By `key_of`; what is absent or None has its default.
        """
        found = {}
        for name, own in OPTIONS.items():
            value = content.get(key_of(name))
            if value is not None:
                found[name] = own.parse(value) if own.parse else value
        return cls(**found)

    @property
    def batch(self) -> int | Literal["auto"]:
        """The batch size that is asked of the backend."""
        if self.batch_size is not None:
            return self.batch_size
        return "auto" if self.backend == "vllm" else 16

    @property
    def block(self) -> int:
        """Requests that lm-eval gets at once and batches itself, where nothing is generated.

        Blocks follow from the requests alone, so a resumed run forms the same batches as an undisturbed one
        and ends in the same samples. An engine of vLLM gets all requests at once.
        """
        if isinstance(self.batch, int):
            return max(64, 8 * self.batch)
        return 1024 if self.backend == "vllm" else 256

    def identity(self) -> dict[str, Any]:
        """The settings that decide whether two arms may be compared, as plain data."""
        names = [name for name, own in OPTIONS.items() if own.compared]
        drawn = ("samples", "temperature", "top_p") if self.samples else ()
        return {name: _plain(getattr(self, name)) for name in (*names, *drawn)} | {
            "decoding": self.decoding,  # with `model` followed by what each model's own file says
            "batch_size": self.batch,
            "model_args": dict(sorted(self.model_args)),
        }

    def metric_for(self, task: str) -> str | None:
        """The metric that the user chose for `task`."""
        return dict(self.metrics).get(task)


@dataclass(frozen=True, slots=True)
class PartSettings(Settings):
    """Settings under which one part of the documents alone is asked.

    Attributes
    ----------
    part : {"development", "report"}
    share : float
        Of the development part.
    division : int
        Seed of the division.
    holds : bool
        Whether the model is kept for the next evaluation, which may put its weights into it.
    """

    part: Literal["development", "report"] = "report"
    share: float = 0.0
    division: int = 0
    holds: bool = True

    def identity(self) -> dict[str, Any]:
        """The settings that decide whether two arms may be compared, as plain data."""
        return Settings.identity(self) | {"part": [self.part, self.share, self.division]}


OPTIONS: Mapping[str, Option] = options_of(Settings)
_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "batch_size": ((int, str), "a whole number or `auto`"),
    "limit": ((int, float), "a number"),
    "chat_template": ((bool,), "true or false"),
    "max_gen_toks": ((int,), "a whole number"),
    "samples": ((int,), "a whole number"),
    "temperature": ((int, float), "a number"),
    "top_p": ((int, float), "a number"),
    "seed": ((int,), "a whole number"),
    "allow_unsafe_code": ((bool,), "true or false"),
}


def key_of(name: str) -> str:
    """The key of a setting in a sweep file."""
    return OPTIONS[name].key or name


def flag_of(name: str) -> str:
    """The option of a setting on the command line."""
    return OPTIONS[name].flag or f"--{key_of(name).replace('_', '-')}"


def parse_perturbation(text: str) -> tuple[str, float | None]:
    """The kind of a perturbation and its rate: of ``typo=0.3`` ``typo`` and 0.3.

    Raises
    ------
    RecipeError
        It is not known, or cannot have this rate.
    """
    kind, sign, rate = text.partition("=")
    if kind not in PERTURBATIONS:
        raise RecipeError(f"`{text}` is not a perturbation; they are {', '.join(PERTURBATIONS)}")
    if not sign:
        return kind, None
    if kind not in RATED:
        raise RecipeError(
            f"`{text}`: {kind} has no rate; {' and '.join(RATED)} have one", f"write `{kind}` alone"
        )
    try:
        value = float(rate)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise RecipeError(f"`{text}`: a rate is a number above 0 and at most 1", f"write `{kind}=0.3`")
    return kind, value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def paper_settings(settings: Settings) -> Settings:
    """`settings` with the paper's tasks; generation lengths come from `defaults.KNOWN`."""
    return replace(settings, tasks=PAPER_TASKS)


def torch_device(device: str | None) -> str:
    """The device as torch names it: a bare number is a GPU, none is the GPU where there is one."""
    if device is None:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{device}" if device.isdigit() else device
