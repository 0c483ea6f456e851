"""No secret is shown or written: every kind of address, every verb, with credentials of all kinds planted."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from support.blob_server import SECRET as BLOB_SECRET
from support.blob_server import running_blobs
from support.command_line import invoke
from support.evaluation_models import tiny
from support.hub_fixtures import TOKEN as HUB_TOKEN
from support.hub_uploads import SIGNATURE
from support.s3_server import KEY, S3, SECRET, TOKEN
from support.search_spaces import judged
from support.store_fixtures import quick, s3, s3_server
from support.web_server import running_web

__all__ = ["quick", "s3", "s3_server"]

ROLES = ("target", "donor", "reference")
# Planted in the environment in every test, beside what the kind of address needs.
PLANTED = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_SESSION_TOKEN": TOKEN,
    "HF_TOKEN": HUB_TOKEN,
    "GOOGLE_SERVICE_ACCOUNT_PATH": "/planted-google-path.json",
    "AZURE_STORAGE_SAS_TOKEN": "sig=planted-azure-signature",
}
SECRETS = (
    KEY, SECRET, TOKEN, HUB_TOKEN, SIGNATURE, BLOB_SECRET,
    "planted-google-key", "planted-azure-signature", "planted-given-secret", "planted-given-token",
)  # fmt: skip


@dataclass
class Place:
    """Models at addresses of one kind, and what is written there.

    Attributes
    ----------
    models : list of str
        Addresses of target, donor and reference.
    absent : str
        One at which there is nothing, or that refuses.
    out : str
        Below it outputs can be written; empty where they go to a folder.
    words : list of str
        What every command is given.
    written : callable
        The bytes that are there.
    """

    models: list[str]
    absent: str
    out: str = ""
    words: list[str] = field(default_factory=list)
    written: Callable[[], list[bytes]] = list


def at_s3(store: S3) -> Place:
    models = [store.put("models", role, getattr(tiny(), role)) for role in ROLES]
    store.client.create_bucket(Bucket="results")
    # given as well, as wrong ones would be: the right ones are in the environment of the server's client
    words = ["--storage-option", f"secret_access_key={SECRET}", "--storage-option",
             f"token={TOKEN}"]  # fmt: skip

    def written() -> list[bytes]:
        listed = store.client.list_objects_v2(Bucket="results").get("Contents", ())
        get = store.client.get_object
        return [get(Bucket="results", Key=each["Key"])["Body"].read() for each in listed]

    return Place(models, "s3://no-such-bucket/x", "s3://results", words, written)


def at_blobs(scheme: str, held: ExitStack) -> Place:
    blobs = held.enter_context(running_blobs(scheme))
    for role in ROLES:
        for path in getattr(tiny(), role).iterdir():
            blobs.put(f"models/{role}/{path.name}", path.read_bytes())
    options = dict(blobs.options)
    if scheme == "gs":
        account = json.loads(options["service_account_key"])
        options["service_account_key"] = json.dumps({**account, "private_key_id": "planted-google-key"})
    words = [word for key, value in options.items() for word in ("--storage-option", f"{key}={value}")]
    models = [f"{scheme}://models/{role}" for role in ROLES]
    return Place(models, f"{scheme}://models/absent", f"{scheme}://results", words,
                 lambda: list(blobs.below("results/").values()))  # fmt: skip


def at_web(held: ExitStack) -> Place:
    web = held.enter_context(running_web())
    models = [web.put(role, getattr(tiny(), role)) for role in ROLES]
    words = ["--storage-option", "secret_access_key=planted-given-secret", "--storage-option",
             "token=planted-given-token"]  # fmt: skip
    return Place(models, f"{web.url}/absent", "", words)


@pytest.fixture(params=["s3", "gs", "az", "https"])
def place(
    request: pytest.FixtureRequest,
    quick: None,  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Place]:
    with ExitStack() as held:
        if request.param == "s3":
            made = at_s3(request.getfixturevalue("s3"))
        elif request.param == "https":
            made = at_web(held)
        else:
            made = at_blobs(request.param, held)
        for name, value in PLANTED.items():
            if not (request.param in ("gs", "az") and name.startswith(("GOOGLE", "AZURE"))):
                monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield made


def recipes(models: list[str], folder: Path) -> dict[str, Path]:
    """Files that name the models: a merge, a mixture, spaces of an experiment."""
    target, donor, reference = models
    transfer = {"target": target, "donor": donor, "reference": reference}
    found = {
        "merge": {"merge_method": "linear", "parameters": {"weight": 0.5}, "dtype": "float32",
                  "models": [{"model": donor}, {"model": reference}]},
        "moe": {"base_model": target, "gate_mode": "random", "dtype": "float32",
                "experts": [{"source_model": donor}, {"source_model": reference}],
                "shared_experts": [{"source_model": target, "residual_scale": 0.1}]},
        "search": {"transfer": {**transfer, "alpha": {"search": {"low": 0, "high": 2}}}, **judged(),
                   "compare": {"random": 0, "alphas": [1]}},
        "sweep": {**transfer, "alphas": [1], "controls": {"random": 0, "permuted": 0}, "perturb": [],
                  "tasks": ["tiny_choice"], "evaluation": judged()["evaluation"]},
    }  # fmt: skip
    for name, content in found.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return {name: folder / f"{name}.yaml" for name in found}


def commands(place: Place, models: list[str], folder: Path) -> dict[str, list[object]]:
    """A command of every verb that names models, in an order in which each has what it reads."""
    target, donor, reference = models
    three = ["--target", target, "--donor", donor, "--reference", reference]
    files = recipes(models, folder)

    def out(name: str) -> str:
        return f"{place.out}/{name}" if place.out else str(folder / f"out-{name}")

    plan, vector, shard = folder / "plan.json", out("vector"), ["--max-shard-size", "40kB"]
    tasks = ["--tasks", "tiny_choice", "--include-path", tiny().tasks, "--limit", 4, "--device", "cpu"]
    return {
        "inspect": ["inspect", target],
        "check": ["check", target, donor, reference],
        "diff": ["diff", donor, reference],
        "dry run": ["transfer", *three, "-o", out("transfer"), "--dry-run"],
        "transfer": ["transfer", *three, "-o", out("transfer"), *shard],
        "verify": ["verify", out("transfer")],
        "verify, read": ["verify", out("transfer"), "--rehash"],
        "part": ["transfer", *three, "-o", out("parts"), *shard, "--part", "0/2"],
        "finish": ["finish", out("parts")],
        "last part": ["transfer", *three, "-o", out("parts"), *shard, "--part", "1/2"],
        "extract": ["extract", donor, reference, "-o", vector],
        "extract, a part": ["extract", donor, reference, "-o", out("pieces"), "--part", "0/1"],
        "extract an adapter": ["extract", donor, reference, "--lora", "2", "-o", out("lora")],
        "apply": ["apply", reference, vector, "-o", out("apply")],
        "merge": ["merge", files["merge"], out("merge")],
        "average": ["average", donor, reference, "-o", out("average")],
        "moe": ["moe", files["moe"], out("moe")],
        "convert": ["convert", target, "--out-dtype", "float16", "-o", out("convert")],
        "tokens": ["tokens", target, "--from", donor, "-o", out("tokens")],
        "plan": ["plan", "transfer", *three, "--to", out("planned"), "-o", plan],
        "run": ["run", plan],
        "eval": ["eval", target, *tasks, "-o", folder / "eval"],
        "importance, dry run": ["importance", target, *tasks, "-o", folder / "importance", "--dry-run"],
        "importance": ["importance", target, *tasks, "-o", folder / "importance"],
        "sweep, dry run": ["sweep", files["sweep"], "-o", folder / "sweep", "--dry-run"],
        "sweep": ["sweep", files["sweep"], "-o", folder / "sweep"],
        "search, dry run": ["search", files["search"], "-o", folder / "search", "--dry-run"],
        "search": ["search", files["search"], "-o", folder / "search", "--budget", 1],
    }


# A part is missing.
NOT_MET = {"finish": (2,)}
# They run models, which takes a while, and reach these as any other verb: done at one kind of address.
EVALUATION = ("eval", "importance", "sweep", "search")


def hidden(place: Place, folder: Path, *told: str) -> None:
    every = [text.encode() for text in told] + place.written()
    every += [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    for secret in SECRETS:
        assert not [data for data in every if secret.encode() in data], f"{secret} is shown or written"


@pytest.mark.timeout(900)
def test_no_verb_shows_or_writes_a_secret(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="taskvec")
    made = commands(place, place.models, tmp_path)
    for name, words in made.items():
        if name in EVALUATION and not place.models[0].startswith("s3://"):
            continue
        outcome = invoke(capsys, *words, *place.words, "--verbose")
        assert outcome.code in NOT_MET.get(name, (0,)), f"{name}: {outcome.err}"
        hidden(place, tmp_path, outcome.out, outcome.err, caplog.text)


@pytest.mark.timeout(900)
def test_no_failure_shows_or_writes_a_secret(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The donor is not found, or may not be read."""
    caplog.set_level(logging.DEBUG, logger="taskvec")
    made = commands(place, [place.absent, place.absent, place.absent], tmp_path)
    for name, words in made.items():
        outcome = invoke(capsys, *words, *place.words, "--verbose")
        # what an experiment would take can be told without its models
        assert outcome.code in ((0, 2) if name == "sweep, dry run" else (1, 2)), f"{name}: {outcome.out}"
        hidden(place, tmp_path, outcome.out, outcome.err, caplog.text)
