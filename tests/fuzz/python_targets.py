"""What must hold of any bytes where Python reads a file of this kind: a value, or an error of the one family.

``.ci/fuzz`` searches for bytes of which it does not; ``tests/test_fuzz.py`` tries those that are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from taskvec import errors
from taskvec.compat.config import check_config
from taskvec.compat.functions import compare_configs
from taskvec.files import manifest
from taskvec.files.json import parse_object
from taskvec.models.adapter_config import check_config as check_adapter
from taskvec.models.adapter_config import scale_of
from taskvec.models.adapter_names import core
from taskvec.recipe.load import load

SEEDS = Path(__file__).parent / "seeds"


def recipe(data: bytes) -> None:
    """A recipe as text: what is read is read the same again."""
    text = data.decode("utf-8", "replace")
    if "\n" not in text:  # a name of a file
        return
    first = load(text)
    assert repr(load(text)) == repr(first)


def manifest_file(data: bytes) -> None:
    """A manifest: no name in it leads out of the folder."""
    read = manifest.parse(data, Path("taskvec.json"))
    for file in manifest.files(read, Path("taskvec.json")):
        assert not Path(file.name).is_absolute()
        assert ".." not in Path(file.name).parts
        assert file.bytes >= 0


def adapter(data: bytes) -> None:
    """An adapter's configuration, and names of its factors, under ``names``."""
    config = parse_object(data, "adapter_config.json")
    names = config.pop("names", [])
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str):
            assert core(core(name)) == core(name)
    check_adapter(config, "adapter")
    assert isinstance(scale_of(config, "model.layers.0.self_attn.q_proj", 8, "adapter"), float)


def config(data: bytes) -> None:
    """Two configurations of models under ``one`` and ``other``: nothing is wrong between equal ones."""
    both = parse_object(data, "config.json")
    one, other = both.get("one"), both.get("other")
    if isinstance(one, dict) and isinstance(other, dict):
        check_config("target", one, [("donor", other)])
        check_config("target", other, [("donor", one)])
        again = json.loads(json.dumps(one))
        if one and again == one:  # an empty one is told; NaN differs from itself
            assert not compare_configs("target", one, [("donor", again)])


TARGETS: dict[str, Callable[[bytes], None]] = {
    "recipe": recipe,
    "manifest": manifest_file,
    "adapter": adapter,
    "config": config,
}


def check(target: str, data: bytes) -> None:
    """Try one input.

    Raises
    ------
    AssertionError
        A promise is broken.
    Exception
        Of any kind but those that taskvec raises on purpose.
    """
    try:
        TARGETS[target](data)
    except errors.EngineError:
        raise
    except errors.Error as error:
        assert str(error)  # noqa: PT017
