"""Where models are evaluated: what a device may be called, and the options of several workers."""

from __future__ import annotations

import re
from typing import Any

from taskvec.arguments import number, path, texts
from taskvec.errors import RecipeError
from taskvec.text import kind_of, shown

# What torch and lm-eval call devices; a bare number is a GPU.
_DEVICE = re.compile(r"\d+|cpu|mps(?::0)?|(?:cuda|xpu|npu|hpu)(?::\d+)?")


def hold_device(device: Any) -> None:
    """Return if a device is called as torch calls one.

    Raises
    ------
    RecipeError
    """
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise RecipeError(
            f"`{shown(device)}` is not a device" if isinstance(device, str) else
            f"a device is a text, found {kind_of(device)}",
            "give cpu, cuda, cuda:1, mps, xpu, or the number of a GPU",
        )  # fmt: skip


def hold_machines(devices: Any, jobs: Any, threads: Any, scratch: Any, budget: Any, ray: Any) -> None:
    """Return if what says where candidates and arms are evaluated is of the right kind.

    Raises
    ------
    RecipeError
        The message names the argument.
    """
    for device in texts(devices, "devices"):  # one text is one device
        hold_device(device)
    if jobs is None:
        raise RecipeError("`jobs` is a whole number, found nothing", "leave it out: it is 1")
    for name, value in (("jobs", jobs), ("threads", threads), ("scratch_budget", budget)):
        number(value, name, least=1)
    for name, value in (("scratch", scratch), ("ray", ray)):
        if value is not None:
            path(value, name)
