"""Stored tensors that no packed weight takes: each is a weight of its own, or nobody can say what it is for.

A packed weight means what all of its parts together say. A tensor next to it that is not one of them may
change what it means (a scale of the columns, a second code book), so that only known ones may lie there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from taskvec.dtypes import FLOAT_DTYPES
from taskvec.models.model import TensorInfo
from taskvec.models.quantised.record import NARROW_FLOATS, UnreadableError, shown
from taskvec.models.quantised.rules import PARTS_ALONE
from taskvec.regex import regex

_INTEGER_CODES = frozenset({"I8", "U8", "I32", "U32"})
# Types that no plain weight has: powers of two, float8 of another kind, two numbers a byte.
_NEVER_PLAIN = frozenset({"F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4"})
# What a module may have besides its packed weight.
_OWN = regex(r"(?:.*_)?bias")
# Of MLX and GPTQ; AWQ has scales of an activation besides.
_CODES_OWN = frozenset({"scales", "biases"})
_OWN_BY_NAME = regex(r"_(?:.*_)?(?:bias|norm|ln)")
_WORDS = regex(r"scale|scaling|abs_?max|amax|quant|zero|(?:^|_)inv(?:_|$)", re.IGNORECASE)
_PARTS = regex(rf"{_WORDS.pattern}|weight|g_?idx|shape|biases|blocks|packed|state|scb", re.IGNORECASE)


class Leftovers:
    """The tensors of a checkpoint with packed weights that are not part of one.

    Parameters
    ----------
    packed : mapping of str to TensorInfo
        The packed weights by their logical names.
    """

    def __init__(self, packed: Mapping[str, TensorInfo]) -> None:
        self.packed = packed
        self.modules = {name.removesuffix(".weight"): name for name in packed}

    def hold_plain(self, info: TensorInfo) -> None:
        """Return if a tensor is one of its own.

        Raises
        ------
        UnreadableError
            It is a part of a packed weight whose other half is missing, or lies next to one and is not
            known as a part of it.
        """
        if info.name.endswith(PARTS_ALONE):
            raise UnreadableError(
                f"{shown(info)} belongs to no packed weight: the other part is missing or of another type"
            )
        is_codes = is_matrix(info, _INTEGER_CODES) and info.name.endswith(("weight", "_packed", "_blocks"))
        if is_codes or is_matrix(info, NARROW_FLOATS):
            raise UnreadableError(
                f"{shown(info)} has no scales next to it, as other weights of the checkpoint have"
            )
        if info.dtype in _NEVER_PLAIN:
            raise UnreadableError(f"{shown(info)} is not a weight by itself, and belongs to no packed one")
        weight = self._beside(info)
        if weight is not None:
            raise UnreadableError(
                f"{shown(info)} says something of `{weight}`, and is not a known part of such a weight"
            )

    def _beside(self, info: TensorInfo) -> str | None:
        """The packed weight that a tensor seems to say something of."""
        name = info.name
        parent, _, leaf = name.rpartition(".")
        if leaf in _CODES_OWN and not parent.endswith(".act"):
            return f"{parent}.weight"
        above, _, middle = parent.rpartition(".")
        if parent in self.packed or above in self.packed:
            return parent if parent in self.packed else above
        if parent in self.modules:
            return None if _OWN.fullmatch(leaf) and self._is_bias(info, parent) else self.modules[parent]
        if above in self.modules and _PARTS.search(middle):
            return self.modules[above]
        return self._longer_than(info, leaf) or self._far(name)

    def _is_bias(self, info: TensorInfo, module: str) -> bool:
        """Whether a tensor has the type and the axes of the bias of a packed weight."""
        *lead, rows, columns = self.packed[self.modules[module]].shape
        return info.dtype in FLOAT_DTYPES and info.shape in ((*lead, rows), (*lead, columns))

    def _longer_than(self, info: TensorInfo, leaf: str) -> str | None:
        """A packed weight whose name this one's begins with: `q_proj.weight` of `q_proj_scale`."""
        name = info.name
        for found in re.finditer("[_:]", leaf):
            end = len(name) - len(leaf) + found.start()
            if name[:end] not in self.modules:
                continue
            rest = name[end:]
            is_own = _OWN_BY_NAME.fullmatch(rest) and (rest != "_bias" or self._is_bias(info, name[:end]))
            if not is_own:
                return self.modules[name[:end]]
        return self._module_longer_than(name[: -len(leaf) - 1])

    def _module_longer_than(self, parent: str) -> str | None:
        """The same of the module that holds a tensor: `q_proj.weight` of `q_proj_quantizer.amax`."""
        start = parent.rpartition(".")[0]
        for found in re.finditer("[_:]", parent[len(start) :]):
            end = len(start) + found.start()
            if parent[:end] in self.modules and _WORDS.search(parent[end:]):
                return self.modules[parent[:end]]
        return None

    def _far(self, name: str) -> str | None:
        """A packed weight whose name follows a word for scales: `scales.layers.0.q.weight`."""
        head, _, rest = name.partition(".")
        if not _WORDS.search(head):
            return None
        return rest if rest in self.packed else self.modules.get(rest)


def is_matrix(info: TensorInfo, dtypes: frozenset[str]) -> bool:
    """Whether a tensor is of two axes or more, and of one of these types."""
    return info.dtype in dtypes and len(info.shape) > 1
