"""Parameter values of a recipe, by mergekit's rules: scalars, gradients over the layers, filters on names.

A value is a scalar, a list of scalars (a gradient), ``{filter, value}``, or a list of those. Of a list of
filters the first that matches decides; a filter is found anywhere in the tensor's name, ``*`` and no filter
match all. Where none matches, the next wider scope is asked: source, slice, module, the recipe itself, the
default.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskvec.methods.method import Parameter
from taskvec.regex import regex
from taskvec.text import Key, kind_of, nearest, shown

Scalar = bool | int | float | str
Scope = Mapping[str, "Setting"]

_DECIMAL = regex(r"[-+]?[0-9]{1,9}([.,][0-9]{1,9})?")
_TRUE = frozenset({"true", "yes", "on", "1", "y", "t"})
_FALSE = frozenset({"false", "no", "off", "0", "n", "f"})


class SettingError(ValueError):
    """A value that cannot be used: what is wrong, the way out, and where below the parameter it stands."""

    def __init__(self, message: str, hint: str | None = None, path: Sequence[Key] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.path = tuple(path)


@dataclass(frozen=True, slots=True)
class Branch:
    """A scalar or gradient, and the tensors that it is for."""

    filter: str | None
    values: tuple[Scalar, ...]
    gradient: bool
    path: tuple[Key, ...]
    """Where the value stands below its parameter."""

    def matches(self, name: str) -> bool:
        """Whether it is for the tensor of that name."""
        return self.filter is None or self.filter in name


@dataclass(frozen=True, slots=True)
class Setting:
    """The value of one parameter in one place of a recipe."""

    branches: tuple[Branch, ...]

    @property
    def varies(self) -> bool:
        """Whether it has a gradient, and so depends on the layer."""
        return any(branch.gradient for branch in self.branches)

    @property
    def filters(self) -> tuple[str, ...]:
        """The filters that tell tensors apart."""
        return tuple(branch.filter for branch in self.branches if branch.filter is not None)

    def leaves(self) -> Iterator[tuple[tuple[Key, ...], Scalar]]:
        """Every scalar, with its path below the parameter."""
        for branch in self.branches:
            for index, value in enumerate(branch.values):
                yield ((*branch.path, index) if branch.gradient else branch.path), value


# --- reading ----------------------------------------------------------------------------------------------
def parse(value: Any) -> Setting:
    """The setting that a plain value of a recipe stands for.

    Raises
    ------
    SettingError
        The value has none of the four forms.
    """
    if isinstance(value, Mapping):
        return Setting((_conditional(value, ()),))
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return Setting(tuple(_conditional(item, (index,)) for index, item in enumerate(value)))
    return Setting((_branch(None, value, ()),))


def _conditional(value: Any, path: tuple[Key, ...]) -> Branch:
    if not isinstance(value, Mapping):
        raise SettingError(
            f"{kind_of(value)} among filters",
            "the last entry may leave out its filter: `- value: 0.5`",
            path,
        )
    for key in value:
        if key not in ("filter", "value"):
            near = nearest(key, ("filter", "value"))
            raise SettingError(
                f"unknown key `{shown(key)}`",
                f"did you mean `{near}`?" if near else "the keys are `filter` and `value`",
                (*path, key),
            )
    if "value" not in value:
        raise SettingError("a filter without `value`", "write `{filter: mlp, value: 0.5}`", path)
    name = value.get("filter")
    if name is not None and not isinstance(name, str):
        raise SettingError(
            f"a filter is text, found {kind_of(name)}", "it is looked for in tensor names", (*path, "filter")
        )
    return _branch(None if name in (None, "", "*") else name, value["value"], (*path, "value"))


def _branch(name: str | None, value: Any, path: tuple[Key, ...]) -> Branch:
    if isinstance(value, list):
        if not value:
            raise SettingError("an empty list", "a gradient has at least one number", path)
        for index, item in enumerate(value):
            if not isinstance(item, bool | int | float | str):
                raise SettingError(
                    f"{kind_of(item)} in a gradient", "a gradient is a list of numbers", (*path, index)
                )
        return Branch(name, tuple(value), True, path)
    if not isinstance(value, bool | int | float | str):
        raise SettingError(
            f"{kind_of(value)} where a value belongs",
            "write a number, a list of numbers, or `{filter: …, value: …}`",
            path,
        )
    return Branch(name, (value,), False, path)


# --- values of one parameter ------------------------------------------------------------------------------
def coerce(parameter: Parameter, value: Scalar) -> Scalar:
    """`value` as the parameter's type, within its bounds.

    Numbers may be text (YAML 1.1 reads ``1e-5`` as text); truth values may be 0 and 1.

    Raises
    ------
    SettingError
        Another type, not finite, or out of bounds.
    """
    if parameter.kind == "bool":
        return _truth(parameter, value)
    if parameter.kind == "choice":
        if value in parameter.choices:
            return value
        near = nearest(str(value), parameter.choices)
        raise SettingError(
            f"`{parameter.name}` is {parameter.range}, found {kind_of(value)}",
            f"did you mean `{near}`?" if near else None,
        )
    number = _number(parameter, value)
    low, high = parameter.low, parameter.high
    if low is not None and (number < low or (parameter.above and number == low)):
        raise SettingError(
            f"`{parameter.name}` is a {parameter.range}, found {_plain(number)}",
            _bound_hint(parameter, number),
        )
    if high is not None and number > high:
        raise SettingError(
            f"`{parameter.name}` is a {parameter.range}, found {_plain(number)}",
            _bound_hint(parameter, number),
        )
    return number


def _bound_hint(parameter: Parameter, number: float) -> str | None:
    # Between 1 and 2 a share of everything is meant more often than one of 1.5 %.
    if parameter.high == 1.0 and 2.0 <= number <= 100.0:
        return f"a share of {_plain(number)} % is written {_plain(number / 100)}"
    return "1 is the whole" if parameter.high == 1.0 and number > 1.0 else None


def _plain(number: float) -> str:
    return f"{number:g}" if abs(number) < 1e6 else f"{float(number):.6g}"


def _truth(parameter: Parameter, value: Scalar) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise SettingError(
        f"`{parameter.name}` is true or false, found {kind_of(value)}", "write `true` or `false`"
    )


def _number(parameter: Parameter, value: Scalar) -> int | float:
    number: Any = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = None
    if number is None or isinstance(number, bool):
        raise SettingError(f"`{parameter.name}` is a number, found {kind_of(value)}", _number_hint(value))
    if isinstance(number, int) and abs(number) > 2**63:
        number = math.inf
    if not math.isfinite(number):
        raise SettingError(f"`{parameter.name}` is not finite: {shown(value)}", "write a finite number")
    if parameter.kind == "int":
        if number != int(number):
            raise SettingError(
                f"`{parameter.name}` is a whole number, found {_plain(number)}", f"write {number:.0f}"
            )
        return int(number)
    return float(number)


def _number_hint(value: Scalar) -> str:
    """What to write instead of a value that is not a number: a percentage, a decimal comma, a quoted list."""
    text = value.strip() if isinstance(value, str) else ""
    if text.startswith("["):
        return "a gradient is a list: remove the quotes around it"
    share = text.removesuffix("%").rstrip()
    if _DECIMAL.fullmatch(share):
        number = float(share.replace(",", "."))
        return f"write {_plain(number / 100 if text.endswith('%') else number)}"
    return "write a number such as 0.5, or a list of them as a gradient"


def evaluate(parameter: Parameter, setting: Setting, name: str, position: float) -> Scalar | None:
    """The value for one tensor; ``None`` where no filter matches.

    Parameters
    ----------
    parameter : Parameter
    setting : Setting
    name : str
        The tensor's name, for filters.
    position : float
        Where in its slice the layer is, 0 for the first and 1 for the last; 0 outside of layers.

    Raises
    ------
    SettingError
        A gradient of whole numbers that is not whole here.
    """
    for branch in setting.branches:
        if branch.matches(name):
            values = [coerce(parameter, value) for value in branch.values]
            if not branch.gradient:
                return values[0]
            return _interpolated(parameter, values, position, branch.path)
    return None


def _interpolated(
    parameter: Parameter, values: Sequence[Scalar], position: float, path: tuple[Key, ...]
) -> Scalar:
    last = len(values) - 1
    if parameter.kind in ("bool", "choice"):
        return values[int(position * last)]
    scaled = position * last
    left = int(scaled)
    share = scaled - left
    right = min(last, left + 1)
    first, second = values[left], values[right]
    assert isinstance(first, int | float)
    assert isinstance(second, int | float)
    number = (1 - share) * first + share * second
    if parameter.kind == "int":
        if abs(number - round(number)) > 1e-9:
            raise SettingError(
                f"`{parameter.name}` is a whole number, and this gradient gives {_plain(number)} on the way",
                "name the layers with filters instead",
                path,
            )
        return round(number)
    return number


def lookup(parameter: Parameter, scopes: Sequence[Scope | None], name: str, position: float) -> Scalar | None:
    """The value of a parameter for one tensor: the first scope that has one, else the default.

    ``None`` for a required parameter that no scope gives a value to, or a default of none.
    """
    for scope in scopes:
        if scope and parameter.name in scope:
            value = evaluate(parameter, scope[parameter.name], name, position)
            if value is not None:
                return value
    return parameter.default
