"""What every test shares: no network, a cache of its own, and ready-made checkpoints."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from support.models import Trio, write_trio

# huggingface_hub reads these once, at import: set before any test can import it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HOME"] = os.path.join(tempfile.gettempdir(), f"taskvec-tests-{os.getpid()}", "huggingface")
# Digests of input files are kept there.
os.environ["XDG_CACHE_HOME"] = os.path.join(tempfile.gettempdir(), f"taskvec-tests-{os.getpid()}", "cache")
for _name in (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_ENDPOINT",
    "HF_HUB_CACHE",
    "TASKVEC_CPU",
    "FORCE_COLOR",
):
    os.environ.pop(_name, None)
# Timings never decide a test, and chance does not either: HYPOTHESIS_PROFILE=random looks for more.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
# A shell's background job ignores Ctrl-C, and so would the processes that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-transcripts",
        action="store_true",
        help="renew tests/data/transcripts, the table in docs/commands.md and the recording, do not compare",
    )
    parser.addoption(
        "--update-lists",
        action="store_true",
        help="write the lists of methods that follow from the catalogue instead of comparing",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a large package, unless ``-m pretrained`` asks for it."""
    if "pretrained" in config.option.markexpr:
        return
    large = [item for item in items if item.get_closest_marker("pretrained")]
    if large:
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]


@pytest.fixture
def trio(tmp_path: Path) -> Trio:
    """Three compatible bf16 checkpoints of one shard each."""
    return write_trio(tmp_path)


@pytest.fixture
def sharded_trio(tmp_path: Path) -> Trio:
    """Three compatible bf16 checkpoints of two, three and one shards."""
    return write_trio(tmp_path / "sharded", shards=(2, 3, 1))
