"""``tv.ties([a, b], base=…, density=0.5)`` and its like: one function for each method of the catalogue.

``methods.pyi`` lists them for type checkers; a test writes it from the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter, Signature
from keyword import iskeyword
from typing import Any, Protocol

from taskvec.errors import RecipeError
from taskvec.lazy.recipe import RecipeMerge, by_method
from taskvec.methods.catalogue import FUNCTIONS, METHODS
from taskvec.methods.method import Method as Catalogued


class Method(Protocol):
    """Merge ``models`` by a method.

    A list is one value per model for parameters that each model has, and a gradient over the layers for those
    of the whole merge. ``lambda``, a word of Python, is written ``lambda_``. The result is lazy: ``.plan()``
    says what would happen, ``.save(out)`` does it.
    """

    def __call__(
        self, models: Sequence[Any], *, base: Any = None, dtype: str | None = None, **parameters: Any
    ) -> RecipeMerge: ...


def __getattr__(name: str) -> Method:
    if name not in FUNCTIONS:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")

    def merged(
        models: Sequence[Any], *, base: Any = None, dtype: str | None = None, **parameters: Any
    ) -> RecipeMerge:
        given = {_parameter(name, key): value for key, value in parameters.items()}
        _hold_given(METHODS[name], given, base)
        return by_method(name, models, base=base, dtype=dtype, parameters=given)

    merged.__name__ = merged.__qualname__ = name
    merged.__module__ = "taskvec"
    merged.__doc__ = _doc(METHODS[name])
    merged.__signature__ = _signature(METHODS[name])  # type: ignore[attr-defined]
    globals()[name] = merged
    return merged


def __dir__() -> list[str]:
    return [*globals(), *FUNCTIONS]


def _parameter(method: str, key: str) -> str:
    """The name of a parameter: ``lambda_`` is that of ``lambda``."""
    plain = key.removesuffix("_")
    return plain if METHODS[method].parameter(key) is None and METHODS[method].parameter(plain) else key


def _hold_given(method: Catalogued, given: Mapping[str, Any], base: Any) -> None:
    """Return if nothing is missing that the method has no default for, and a base is called `base`.

    Raises
    ------
    RecipeError
        In the words of a call, where a recipe's would speak of YAML.
    """
    if "base_model" in given:
        raise RecipeError(f"`{method.name}` has no parameter `base_model`", "give it as `base=`")
    if method.base == "required" and base is None:
        which = "what the models were fine-tuned from" if method.step else "the one that t = 0 stands for"
        raise RecipeError(f"`{method.name}` needs a base model", f"give `base=`, {which}")
    for each in method.parameters:
        if each.required and each.name not in given:
            word = keyword(each.name)
            own = " for all models, or a list of one per model" if each.scope == "model" else ""
            raise RecipeError(f"`{method.name}` needs `{word}`: {each.text}", f"give `{word}=0.5`{own}")


def keyword(name: str) -> str:
    """A parameter's name as a keyword of Python."""
    return f"{name}_" if iskeyword(name) else name


def _signature(method: Catalogued) -> Signature:
    """What an editor or ``help`` shows: the parameters with their defaults."""
    only, empty = Parameter.KEYWORD_ONLY, Parameter.empty
    rows = [Parameter("models", Parameter.POSITIONAL_OR_KEYWORD)]
    rows.append(Parameter("base", only, default=empty if method.base == "required" else None))
    rows += [
        Parameter(keyword(each.name), only, default=empty if each.required else each.default)
        for each in method.parameters
    ]
    if method.importance:
        rows.append(Parameter("importance", only, default=empty))
    return Signature([*rows, Parameter("dtype", only, default=None)], return_annotation=RecipeMerge)


def _doc(method: Catalogued) -> str:
    """The method explained, with its parameters."""
    rows = [
        f"{keyword(each.name)} : {each.kind}{'' if each.scope == 'merge' else ', or one per model'}\n"
        f"    {each.text} ({each.range})"
        for each in method.parameters
    ]
    if method.importance:
        rows.append("importance : list\n    the importance map of each model")
    listed = "\n".join(["Parameters", "----------", *rows])
    return f"{method.summary}\n\n{method.formula}\n\n{listed}\n\n{Method.__doc__}"
