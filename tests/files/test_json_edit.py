"""config.json is edited as text: the value changes, and no other byte."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import taskvec as tv
from taskvec.files import json_edit, names
from taskvec.run import publish

TEXT = """{
  "a": 1,
\t"b_config" : {"dtype": "bfloat16", "x":[1,2, {"y":"}"}]},\r
  "torch_dtype": "bfloat16"
}
"""

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    data=st.dictionaries(st.text(), values, max_size=5),
    value=values,
    key=st.text(),
    indent=st.sampled_from([None, 0, 2, "\t"]),
    is_ascii=st.booleans(),
)
def test_any_value_of_any_object(
    data: dict[str, Any], value: Any, key: str, indent: Any, is_ascii: bool
) -> None:
    text = json.dumps(data, indent=indent, ensure_ascii=is_ascii)
    for name in {*data, key}:
        assert json.loads(json_edit.replace(text, (name,), value)) == {**data, name: value}
        assert list(json.loads(json_edit.replace(text, (name,), value))) == list({**data, name: value})
    for name, old in data.items():
        assert json_edit.replace(text, (name,), old) == text


def test_the_rest_stays_as_it_is() -> None:
    assert json_edit.replace(TEXT, ("torch_dtype",), "float32") == TEXT.replace(
        '"torch_dtype": "bfloat16"', '"torch_dtype": "float32"'
    )
    edited = json_edit.edited(TEXT, {"b_config.dtype": "float32", "new": [1]})
    assert edited == TEXT.replace('"dtype": "bfloat16"', '"dtype": "float32"', 1).replace(
        '"torch_dtype": "bfloat16"', '"torch_dtype": "bfloat16",\n  "new": [1]'
    )


@pytest.mark.parametrize(("text", "expected"), [("{}", '{"t": false}'), ('{"a":1}', '{"a":1, "t": false}')])
def test_a_key_is_added(text: str, expected: str) -> None:
    assert json_edit.replace(text, ("t",), False) == expected


def test_true_is_not_one() -> None:
    assert json_edit.replace('{"a": 1}', ("a",), True) == '{"a": true}'


@pytest.mark.parametrize(
    ("name", "is_own"),
    [
        ("README.md", True), ("readme.MD", True), ("sub/README.md", False), ("taskvec.json", True),
        (".taskvec/plan.json", True), ("config.json", False), ("sub/taskvec.json", False),
    ],
)  # fmt: skip
def test_what_an_output_has_of_its_own(name: str, is_own: bool) -> None:
    assert names.is_own(name) == is_own


def test_a_file_is_shared_or_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 10_000)
    for name in "ab":
        (tmp_path / name).mkdir()
    publish.share(source, tmp_path / "a", "sub/shared")
    assert (tmp_path / "a" / "sub" / "shared").read_bytes() == source.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(18, "cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    publish.share(source, tmp_path / "b", "sub/shared")
    assert (tmp_path / "b" / "sub" / "shared").read_bytes() == source.read_bytes()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.relative_to(tmp_path).as_posix() for path in files) == [
        "a/sub/shared",
        "b/sub/shared",
        "source",
    ]


def test_a_failing_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "source").write_text("x")
    with pytest.raises(tv.OutputError, match="place"):
        publish.share(tmp_path / "source", tmp_path, "place")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["source"]
