"""Searches for inputs that a Python target does not take well.

``run_python.py TARGET [arguments of libFuzzer]``
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
with atheris.instrument_imports(include=["taskvec", "yaml"]):
    import python_targets

target = sys.argv.pop(1)
atheris.Setup(sys.argv, lambda data: python_targets.check(target, data))
atheris.Fuzz()
