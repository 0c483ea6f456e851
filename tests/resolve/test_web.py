"""Models on a web server, and a server that refuses, stalls and breaks off."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

import taskvec as tv
from support.models import Trio, write_trio
from support.s3_server import KEY, SECRET, TOKEN
from support.web_server import Fault, Web
from taskvec.errors import Error, HubError, NotFoundError
from taskvec.resolve.store import fetch


@pytest.fixture
def local(tmp_path: Path) -> Trio:
    return write_trio(tmp_path / "source", shards=(2, 3, 1), hidden=128, intermediate=512, vocabulary=400)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("tags", ["strong", "weak", "none", "other"])
def test_transfer(web: Web, local: Trio, tmp_path: Path, tags: str) -> None:
    web.tags = tags
    addresses = [web.put(f"some folder/{name}", folder) for name, folder in zip("tdr", local, strict=True)]
    models = [tv.open(at) for at in addresses]
    assert not weights(tmp_path / "scratch")
    read = {path for method, path, given in web.requests if method == "GET" and given is None}
    assert not [path for path in read if path.endswith(".safetensors")]
    tv.transfer(*models, tmp_path / "out")
    tv.transfer(*local, tmp_path / "local")
    assert weights(tmp_path / "out") == weights(tmp_path / "local")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        local.target / "tokenizer.json"
    ).read_bytes()


def test_a_vector_and_the_files_that_its_manifest_names(web: Web, local: Trio, tmp_path: Path) -> None:
    tv.extract(local.donor, local.reference, tmp_path / "vector")
    tv.apply(local.target, web.put("vector", tmp_path / "vector"), out=tmp_path / "out")
    tv.transfer(*local, tmp_path / "local")
    assert weights(tmp_path / "out") == weights(tmp_path / "local")


def test_a_single_file(web: Web, local: Trio) -> None:
    (name,) = weights(local.reference)
    model = tv.open(f"{web.put('r', local.reference)}/{name}").materialise()
    assert weights(model.location) == weights(local.reference)


@pytest.mark.parametrize("tags", ["strong", "weak", "none"])
def test_a_file_that_changed(web: Web, local: Trio, tags: str) -> None:
    web.tags = tags
    model = tv.open(web.put("r", local.reference))
    (name,) = model.file_sizes
    data = web.files[f"/r/{name}"]
    web.files[f"/r/{name}"] = data + b" " if tags == "none" else bytes([data[0] ^ 1]) + data[1:]
    with pytest.raises(HubError, match=f"`{name}` of `{web.url}/r` has changed"):
        model.materialise()


def test_a_server_without_ranges(web: Web, local: Trio) -> None:
    web.ranges = False
    with pytest.raises(HubError, match="does not send parts of files") as caught:
        tv.open(web.put("r", local.reference))
    assert caught.value.hint


def test_nothing_there(web: Web) -> None:
    with pytest.raises(NotFoundError, match="there is nothing at"):
        tv.open(f"{web.url}/none")


def test_a_byte_that_changes_on_the_way(web: Web, local: Trio) -> None:
    model = tv.open(web.put("r", local.reference))
    web.faults.append(Fault(".safetensors", flip=True, method="GET", times=1))
    with pytest.raises(HubError, match="arrived damaged"):
        model.materialise()
    assert not weights(model.location)
    assert weights(model.materialise().location) == weights(local.reference)


def test_a_server_that_refuses_what_it_does_not_have(web: Web, local: Trio) -> None:
    """As an object store does that may be read and not listed."""
    address = web.put("r", local.reference)
    names = {path.name for path in local.reference.iterdir()}
    web.missing = 403
    assert weights(tv.open(address).materialise().location) == weights(local.reference)
    assert {*tv.open(address).other_files} < names
    with pytest.raises(HubError, match="is forbidden"):
        tv.open(f"{web.url}/none")


# --- faults that pass ---


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_passing_refusal_is_tried_again(web: Web, local: Trio, status: int) -> None:
    model = tv.open(web.put("r", local.reference))
    web.faults.append(Fault(".safetensors", status=status, times=2))
    assert weights(model.materialise().location) == weights(local.reference)
    assert web.faults[0].times == 0


def test_a_body_that_breaks_off_is_taken_up_again(
    web: Web, local: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "PIECE", 100_000)
    model = tv.open(web.put("r", local.reference))
    web.requests.clear()
    web.faults += [Fault(".safetensors", cut=cut, times=1) for cut in (0, 1, 50_000, 99_999)]
    assert weights(model.materialise().location) == weights(local.reference)
    assert all(fault.times == 0 for fault in web.faults)


def test_a_stalled_server_is_asked_again(web: Web, local: Trio) -> None:
    with tv.storage({"read_timeout": "1s"}):
        model = tv.open(web.put("r", local.reference))
        web.faults.append(Fault(".safetensors", stall=3.0, times=1))
        assert weights(model.materialise().location) == weights(local.reference)


# --- faults that stay ---


@pytest.mark.parametrize(
    ("fault", "kind", "message", "hint"),
    [
        (Fault(status=401), HubError, "needs valid credentials", "login"),
        (Fault(status=403), HubError, "is forbidden", "login"),
        (Fault(status=404), NotFoundError, "is not found", "check the address"),
        (Fault(status=410), HubError, "answered 410", "run the same command again"),
        (Fault(status=429), HubError, "takes no more requests", "wait some minutes"),
        (Fault(status=500), HubError, "answered 500", "run the same command again"),
        (Fault(status=503), HubError, "takes no more requests", "wait some minutes"),
        (Fault(cut=100), HubError, "the connection was cut off", "check the network"),
        (Fault(stall=2.0), HubError, "no answer in time", "check the network"),
    ],
)
def test_a_fault_that_stays_is_named(
    web: Web, local: Trio, fault: Fault, kind: type[Error], message: str, hint: str
) -> None:
    with tv.storage({"read_timeout": "500ms"}):
        model = tv.open(web.put("r", local.reference))
        (name,) = model.file_sizes
        fault.where = ".safetensors"
        web.faults.append(fault)
        with pytest.raises(kind, match=message) as caught:
            model.materialise()
    assert hint in str(caught.value.hint)
    assert f"`{name}`" in str(caught.value)
    assert not weights(model.location)
    web.faults.clear()
    assert weights(model.materialise().location) == weights(local.reference)


def test_no_connection(local: Trio, web: Web) -> None:
    address = web.put("r", local.reference).replace(web.url, "http://127.0.0.1:9")
    with pytest.raises(HubError, match="no connection"):
        tv.open(address)
    with pytest.raises(HubError, match=r"the host of .* is not known"):
        tv.open("https://no-such-host.invalid/r")


# --- object stores ---

OPTIONS = {
    "s3": {"endpoint": "URL", "region": "eu", "access_key_id": KEY, "secret_access_key": SECRET},
    "gs": {"google_base_url": "URL", "skip_signature": "true"},
    "az": {"endpoint": "URL", "account_name": "me", "sas_token": f"sig={TOKEN}"},
}


@pytest.mark.parametrize("scheme", OPTIONS)
def test_object_stores(web: Web, local: Trio, tmp_path: Path, scheme: str) -> None:
    for name, folder in zip("tdr", local, strict=True):
        web.put(f"box/some/{name}", folder)
    addresses = [f"{scheme}://box/some/{name}" for name in "tdr"]
    options = {key: web.url if value == "URL" else value for key, value in OPTIONS[scheme].items()}
    with tv.storage({**options, "allow_http": "true"}):
        tv.transfer(*addresses, tmp_path / "out")
    tv.transfer(*local, tmp_path / "local")
    assert weights(tmp_path / "out") == weights(tmp_path / "local")
    manifest = (tmp_path / "out" / "taskvec.json").read_text()
    assert addresses[0] in manifest
    assert TOKEN not in manifest


@pytest.mark.parametrize(
    ("scheme", "key", "value"),
    [
        ("s3", "timeout", "planted"),
        ("s3", "root_certificate", "planted"),
        ("gs", "service_account", "/planted.json"),
        ("gs", "service_account_key", '{"private_key": "planted"}'),
        ("az", "account_key", "planted no base64"),
        ("https", "timeout", "planted"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_an_option_with_a_wrong_value_is_not_repeated(scheme: str, key: str, value: str) -> None:
    options = {"region": "eu", "account_name": "me", "access_key_id": KEY, "secret_access_key": SECRET}
    only = {name: each for name, each in options.items() if (name == "account_name") == (scheme == "az")}
    given = only if scheme in ("s3", "az") else {}
    with tv.storage({**given, key: value}), pytest.raises(HubError, match="as it is set up") as caught:
        tv.open(f"{scheme}://host/model")
    said = f"{caught.value.hint} {''.join(traceback.format_exception(caught.value))}"
    assert "--storage-option" in str(caught.value.hint)
    assert "planted" not in said


# --- the words of object stores ---


def refusal(code: str) -> bytes:
    """What S3 answers; it repeats keys and tokens."""
    return (
        f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message>"
        f"<AWSAccessKeyId>{KEY}</AWSAccessKeyId><Token-0>{TOKEN}</Token-0></Error>"
    ).encode()


@pytest.mark.parametrize(
    ("status", "code", "message", "hint"),
    [
        (400, "ExpiredToken", "token for .* has expired", "get a new one"),
        (403, "InvalidAccessKeyId", "does not accept these credentials", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "does not accept these credentials", "AWS_SECRET_ACCESS_KEY"),
        (403, "AccessDenied", "is forbidden", "list and read"),
        (403, "RequestTimeTooSkewed", "clock is wrong", "clock"),
        (404, "NoSuchBucket", "there is no bucket `box`", "endpoint"),
        (400, "AuthorizationHeaderMalformed", "in another region", "AWS_REGION"),
        (301, "PermanentRedirect", "in another region", "AWS_REGION"),
        (503, "SlowDown", "takes no more requests", "wait some minutes"),
        (500, "InternalError", "answered 500 InternalError", "run the same command again"),
    ],
)
def test_refusals_of_a_store(web: Web, status: int, code: str, message: str, hint: str) -> None:
    web.faults.append(Fault(status=status, body=refusal(code)))
    options = {
        "endpoint": web.url,
        "region": "eu",
        "allow_http": "true",
        "access_key_id": KEY,
        "secret_access_key": SECRET,
        "session_token": TOKEN,
    }
    with tv.storage(options), pytest.raises(Error, match=message) as caught:
        tv.open("s3://box/model")
    said = f"{caught.value.hint} {''.join(traceback.format_exception(caught.value))}"
    assert hint in str(caught.value.hint)
    for secret in (KEY, SECRET, TOKEN):
        assert secret not in said


# --- Ctrl-C ---


def run_alone(*words: str, home: Path) -> subprocess.Popen[bytes]:
    """The command line in a process of its own, that knows nothing of this one."""
    environment = {"PATH": "", "HOME": str(home), "PYTHONPATH": str(Path(tv.__file__).parents[1])}
    command = [sys.executable, "-m", "taskvec", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("verb", ["inspect", "convert"])
def test_ctrl_c_is_answered_while_a_server_stalls(web: Web, local: Trio, tmp_path: Path, verb: str) -> None:
    address = web.put("r", local.reference)
    # the header alone comes in the first request; a run fetches the file from its beginning again
    (name,) = weights(local.reference)
    first, later = "bytes=0-131071", f"bytes=0-{len(weights(local.reference)[name]) - 1}"
    wanted = first if verb == "inspect" else later
    web.faults.append(Fault(".safetensors", stall=60.0, method="GET", given=wanted))
    out = ("-o", str(tmp_path / "out"), "--out-dtype", "float32") if verb == "convert" else ()
    child = run_alone(verb, address, "--json", *out, home=tmp_path)
    try:
        while not any(given == wanted for _, _, given in web.requests):
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        # a call that is waited for takes the read timeout, 30 s, six times over
        said, _ = child.communicate(timeout=25)
    finally:
        child.kill()
    assert child.returncode == 130
    assert json.loads(said)["error"]["message"] == "interrupted"
    assert not [*tmp_path.rglob("parts-*")]
    web.faults.clear()
    again = run_alone(verb, address, "--json", *out, home=tmp_path)
    assert again.communicate()[0]
    assert again.returncode == 0
