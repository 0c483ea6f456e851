"""How an extra is installed, as every hint says it: from where taskvec itself came."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from importlib.metadata import Distribution


def install(*extras: str) -> str:
    """The command that adds extras to the taskvec that is running.

    Taskvec from a package index is asked of that index by its name. A checkout, wheel or archive (PEP 610:
    ``direct_url.json`` tells) is named by its path or address, since an index may not have it. What was never
    installed (``PYTHONPATH``) is to be installed from its checkout.

    Parameters
    ----------
    extras
        Names under ``[project.optional-dependencies]``.

    Returns
    -------
    str
        ``pip install 'taskvec[eval]'``, or ``uv pip install`` where uv has installed taskvec.
    """
    from importlib import (
        metadata,  # with `email` and more behind it: time that a run without a hint need not take
    )

    wanted = f"[{','.join(extras)}]"
    try:
        distribution = metadata.distribution("taskvec")
        recorded = distribution.read_text("direct_url.json")
        origin = json.loads(recorded) if recorded else {}
        pip = "uv pip" if (distribution.read_text("INSTALLER") or "").strip() == "uv" else "pip"
        if not _is_running(distribution, origin):
            return _from_checkout("pip", wanted)
        if not recorded:
            return f"{pip} install 'taskvec{wanted}'"
        url = origin["url"]
        if not urlsplit(url).scheme:
            raise ValueError(url)
        if "vcs_info" in origin:
            vcs = origin["vcs_info"]
            return f"{pip} install 'taskvec{wanted} @ {vcs['vcs']}+{url}@{vcs['commit_id']}'"
        if urlsplit(url).scheme != "file":
            return f"{pip} install 'taskvec{wanted} @ {url}'"
        path = Path(unquote(urlsplit(url).path))
        if not path.exists():
            return _from_checkout(pip, wanted)
        editable = "--editable " if origin.get("dir_info", {}).get("editable") else ""
        return f"{pip} install {editable}{shlex.quote(f'{path}{wanted}')}"
    except metadata.PackageNotFoundError:
        return _from_checkout("pip", wanted)
    except (ValueError, KeyError, TypeError, AttributeError, OSError):  # a damaged record of the installation
        return _from_checkout("pip", wanted)


def _is_running(distribution: Distribution, origin: dict[str, object]) -> bool:
    """Whether the installed taskvec is the one that was imported, and not one before it on the path."""
    here = Path(__file__).resolve().parent
    if Path(str(distribution.locate_file("taskvec"))).resolve() == here:
        return True
    place = Path(unquote(urlsplit(str(origin.get("url", ""))).path))
    return bool(origin) and here.is_relative_to(place.resolve())


def _from_checkout(pip: str, wanted: str) -> str:
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        return f"{pip} install {shlex.quote(f'{checkout}{wanted}')}"
    return f"{pip} install '.{wanted}' in a checkout of taskvec"
