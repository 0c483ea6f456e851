"""Settings: what a user may write, what it means, and what is refused with the way out."""

from __future__ import annotations

import pickle
import re
import types
import typing
from collections.abc import Iterable

import pytest

import taskvec as tv
from taskvec.dtypes import TORCH_NAMES, parse_dtype
from taskvec.option import options_of
from taskvec.settings import Options, Settings, format_alpha, parse_alphas, parse_size, written


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5GB", 5_000_000_000), ("512MiB", 512 << 20), ("1.5k", 1500), (" 2 TiB ", 2 << 40), ("7", 7), (7, 7),
        ("4000000B", 4_000_000), (".5kb", 500), ("1kib", 1024),
    ],
)  # fmt: skip
def test_sizes(text: str | int, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "5XB", "GB", "5 i", "1e3", "9" * 400, 0, -5, True, "1.5.2MB"]
)
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(tv.RecipeError):
        parse_size(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "meant"), [("5B", "5GB"), ("2.5 b", "2.5GB"), ("13b", "13GB")])
def test_billions_are_not_taken_for_bytes(text: str, meant: str) -> None:
    with pytest.raises(tv.RecipeError, match="stands for bytes") as caught:
        parse_size(text)
    hint = caught.value.hint or ""
    assert f"`{meant}`" in hint
    assert parse_size(meant) == float(meant.removesuffix("GB")) * 1e9


@pytest.mark.parametrize(
    ("given", "alphas"),
    [
        ("-1,0, 0.5", (-1.0, 0.0, 0.5)), (0.3, (0.3,)), (2, (2.0,)), ([1, 0.5], (1.0, 0.5)),
        ("1e-3", (0.001,)), ("-0", (0.0,)),
    ],
)  # fmt: skip
def test_alphas(given: object, alphas: tuple[float, ...]) -> None:
    assert parse_alphas(given) == alphas  # type: ignore[arg-type]
    assert "-0" not in map(format_alpha, parse_alphas(given))  # type: ignore[arg-type]


def test_alphas_may_repeat_where_each_has_its_vector() -> None:
    assert parse_alphas("0.5,0.5", distinct=False) == (0.5, 0.5)
    with pytest.raises(tv.RecipeError, match="twice"):
        parse_alphas("0.5,0.5")


@pytest.mark.parametrize(
    ("alpha", "text"),
    [(1.0, "1"), (-0.5, "-0.5"), (1e-7, "1e-07"), (0.1 + 0.2, "0.30000000000000004"), (1e22, "1e+22")],
)
def test_alphas_are_written_shortest(alpha: float, text: str) -> None:
    assert format_alpha(alpha) == text
    assert float(text) == alpha


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("bfloat16", "BF16"), ("torch.float16", "F16"), ("fp32", "F32"), ("DOUBLE", "F64"), ("BF16", "BF16"),
        ("f8_e4m3", "F8_E4M3"), ("float8_e5m2", "F8_E5M2"),
    ],
)  # fmt: skip
def test_types(word: str, name: str) -> None:
    assert parse_dtype(word) == name
    assert parse_dtype(TORCH_NAMES[name]) == name


def test_a_wrong_type_names_the_nearest() -> None:
    with pytest.raises(tv.RecipeError, match="bfloat17") as caught:
        parse_dtype("bfloat17")
    assert caught.value.hint == "did you mean `bfloat16`?"


@pytest.mark.parametrize(
    "options",
    [
        {"rounding": "up"}, {"seed": -1}, {"seed": 2**64}, {"seed": 1.5}, {"threads": 0}, {"threads": 2.0},
        {"max_memory": "x"}, {"max_shard_size": 0}, {"out_dtype": "int8"},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_honoured(options: dict) -> None:
    with pytest.raises(tv.RecipeError) as caught:
        tv.Settings.of(options)  # type: ignore[arg-type]
    assert caught.value.hint


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("int8", "`taskvec convert` writes `int8-channel`"),
        ("fp8", "`taskvec convert` writes `fp8-block`, `fp8-channel`"),
        ("bfloat", "did you mean `bfloat16`?"),
        ("xx", "choose one of bfloat16, float16, float32, float64"),
    ],
)
def test_types_that_are_cut_short(word: str, hint: str) -> None:
    with pytest.raises(tv.RecipeError) as caught:
        tv.Settings(out_dtype=word)
    assert caught.value.hint == hint


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"unknown setting `trheads`; did you mean `threads`\?"):
        tv.Settings.of({"trheads": 2})  # type: ignore[typeddict-unknown-key]


def test_settings_are_plain_values() -> None:
    settings = tv.Settings.of({"force": "non-finite", "max_memory": "1GiB", "out_dtype": "fp16"})
    assert (settings.force, settings.max_memory, settings.out_dtype) == (("non-finite",), 1 << 30, "F16")
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert tv.Settings.of(settings) is settings
    assert hash(settings) == hash(
        tv.Settings.of({"force": ["non-finite"], "max_memory": 1 << 30, "out_dtype": "F16"})
    )


def test_the_keywords_are_the_fields() -> None:
    def alternatives(hint: object) -> set[object]:
        return set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}

    keywords, values = typing.get_type_hints(Options), typing.get_type_hints(Settings)
    assert list(keywords) == list(values) == list(options_of(Settings))
    for name, value in values.items():
        wanted = alternatives(str | Iterable[str] if value == tuple[str, ...] else value)
        assert wanted <= alternatives(keywords[name]), name


def test_every_field_is_explained() -> None:
    explained = re.findall(r"^    (\w+) : ", tv.Settings.__doc__ or "", re.MULTILINE)
    assert explained == list(options_of(Settings))


def test_what_changes_the_output_is_recorded() -> None:
    assert written(tv.Settings(threads=3, overwrite=True, seed=7)) == {}
    values = {
        "out_dtype": "F32",
        "rounding": "stochastic",
        "seed": 0,
        "max_shard_size": 5,
        "force": ["shape"],
    }
    assert written(tv.Settings.of({**values, "out_dtype": "float32"})) == values  # type: ignore[typeddict-item]
