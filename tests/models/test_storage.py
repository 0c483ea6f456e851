"""Storage forms: a logical tensor, its stored parts and their bytes."""

from __future__ import annotations

import math

import pytest

from taskvec.dtypes import TYPES, numpy_dtype
from taskvec.models.model import TensorInfo
from taskvec.models.storage import FORMS, Form, logical, plain, stored_bytes


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (3, 5, 2)])
def test_a_plain_tensor_is_one_stored_tensor_of_its_own_name(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = logical("x.weight", dtype, shape)
    nbytes = math.prod(shape) * numpy_dtype(dtype).itemsize // (2 if dtype == "F4" else 1)
    assert tensor.parts == (TensorInfo("x.weight", dtype, shape, nbytes, ""),)
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == (dtype, shape, nbytes)
    assert stored_bytes(dtype, shape) == nbytes


def test_a_form_of_several_stored_tensors_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(name: str, shape: tuple[int, ...]) -> tuple[TensorInfo, ...]:
        scales = plain(f"{name}_scale_inv", "F32", tuple(-(-size // 128) for size in shape))
        return plain(name, "F8_E4M3", shape), scales

    monkeypatch.setitem(FORMS, "blocks", Form("F32", parts))
    tensor = logical("x.weight", "blocks", (576, 7168))
    assert [part.name for part in tensor.parts] == ["x.weight", "x.weight_scale_inv"]
    assert tensor.parts[1].shape == (5, 56)
    assert tensor.nbytes == stored_bytes("blocks", (576, 7168)) == 576 * 7168 + 4 * 5 * 56


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(KeyError):
        logical("x", "F6_E2M3", (2,))


def test_two_elements_of_half_a_byte_share_one() -> None:
    assert logical("x", "F4", (3, 8)).nbytes == stored_bytes("F4", (3, 8)) == 12
