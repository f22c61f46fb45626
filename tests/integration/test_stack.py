"""The local stack of real services: rights hold, data survives kills, and nothing is left running."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from flows.sandbox.ports import LOOPBACK, find_free_ports
from flows.sandbox.processes import StackError, running_names, spawn
from flows.sandbox.stack import kill_service, load_stack, restart_service, stack_status, start_stack, stop_stack
from flows.sandbox.stack_state import LABEL_STUDIO_SERVER, PREFECT, S3, SERVICES, Stack

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_DENIED = "AccessDenied"
_OK = "ok"


@pytest.fixture(scope="module")
def s3_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("s3-stack")
    try:
        yield start_stack(root, ["cam-a", "cam-b"], services=[S3])
    finally:
        stop_stack(root)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    stop_stack(tmp_path)


def _client(stack: Stack, credentials: Path) -> S3Client:
    keys = json.loads(credentials.read_text())
    return boto3.session.Session().client(
        "s3",
        endpoint_url=stack.s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id=keys["access_key"],
        aws_secret_access_key=keys["secret_key"],
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )


def _outcome(call: Callable[..., object], **arguments: object) -> str:
    """Return 'ok', or the code with which the server refused."""
    try:
        call(Bucket="gleaner", **arguments)
    except ClientError as exc:
        return {"403": _DENIED, "404": "NoSuchKey"}.get(exc.response["Error"]["Code"], exc.response["Error"]["Code"])
    return _OK


def _put(client: S3Client, key: str) -> str:
    return _outcome(client.put_object, Key=key, Body=b"x")


def _get(client: S3Client, key: str) -> str:
    return _outcome(client.get_object, Key=key)


def test_a_device_writes_its_own_prefixes_only(s3_stack: Stack) -> None:
    """A device may write its captures, records and heartbeat, and no key that another writes."""
    device = _client(s3_stack, s3_stack.device_credentials("cam-a"))
    own = ["captures/cam-a/1.jpg", "inbox/cam-a/boot-00000001.json", "twin/cam-a/reported.json"]
    foreign = [
        "captures/cam-b/1.jpg",
        "captures/cam-a2/1.jpg",
        "captures/1.jpg",
        "inbox/cam-b/boot-00000001.json",
        "twin/cam-b/reported.json",
        "twin/cam-a/desired.json",
        "twin/cam-a/ack.json",
        "twin/cam-a/reported.json.other",
        "tuf/metadata/timestamp.json",
        "quarantine/inbox/cam-a/1.json",
    ]
    assert {key: _put(device, key) for key in own} == dict.fromkeys(own, _OK)
    assert {key: _put(device, key) for key in foreign} == dict.fromkeys(foreign, _DENIED)
    assert _put(device, "captures/cam-a/../cam-b/2.jpg") != _OK
    copied = _outcome(device.copy_object, Key="captures/cam-b/3.jpg", CopySource="gleaner/captures/cam-a/1.jpg")
    assert copied == _DENIED
    assert _outcome(device.create_multipart_upload, Key="captures/cam-b/4.jpg") == _DENIED


def test_swapped_keys_cannot_write_into_the_other_prefix(s3_stack: Stack) -> None:
    """With the keys of two devices swapped, neither can write as the other, so the mix-up is seen at once."""
    for device_id, other in (("cam-a", "cam-b"), ("cam-b", "cam-a")):
        swapped = _client(s3_stack, s3_stack.device_credentials(other))
        keys = [f"captures/{device_id}/s.jpg", f"inbox/{device_id}/b-00000001.json", f"twin/{device_id}/reported.json"]
        assert [_put(swapped, key) for key in keys] == [_DENIED] * 3


def test_a_device_reads_releases_and_its_twin_only(s3_stack: Stack) -> None:
    """A device reads releases and its own twin; no capture or record, not even its own, and no listing."""
    admin = _client(s3_stack, s3_stack.admin_credentials)
    device = _client(s3_stack, s3_stack.device_credentials("cam-a"))
    readable = ["tuf/metadata/root.json", "tuf/targets/ab.model.onnx", "twin/cam-a/desired.json", "twin/cam-a/ack.json"]
    closed = ["twin/cam-b/desired.json", "captures/cam-b/r.jpg", "captures/cam-a/r.jpg", "inbox/cam-a/r-00000001.json"]
    assert [_put(admin, key) for key in readable + closed] == [_OK] * 8

    assert {key: _get(device, key) for key in readable} == dict.fromkeys(readable, _OK)
    assert {key: _get(device, key) for key in closed} == dict.fromkeys(closed, _DENIED)
    assert _get(device, "tuf/metadata/2.root.json") == "NoSuchKey"
    for prefix in ("", "captures/cam-a/", "twin/cam-a/"):
        assert _outcome(device.list_objects_v2, Prefix=prefix) == _DENIED


def test_a_device_removes_and_administers_nothing(s3_stack: Stack) -> None:
    """A stolen key deletes nothing, not even its own captures, and cannot widen its rights."""
    device = _client(s3_stack, s3_stack.device_credentials("cam-a"))
    assert _put(device, "captures/cam-a/keep.jpg") == _OK

    assert _outcome(device.delete_object, Key="captures/cam-a/keep.jpg") == _DENIED
    several = device.delete_objects(Bucket="gleaner", Delete={"Objects": [{"Key": "captures/cam-a/keep.jpg"}]})
    assert [error.get("Code") for error in several["Errors"]] == [_DENIED]
    assert _outcome(device.put_bucket_policy, Policy="{}") == _DENIED
    assert _outcome(device.delete_bucket) == _DENIED
    assert _get(_client(s3_stack, s3_stack.admin_credentials), "captures/cam-a/keep.jpg") == _OK


def test_label_studio_shows_captures_and_changes_nothing(s3_stack: Stack) -> None:
    """Label Studio's keys read captures, also by a presigned address, list them, and do nothing else."""
    admin = _client(s3_stack, s3_stack.admin_credentials)
    keys = ["captures/cam-a/show.jpg", "inbox/cam-a/show-00000001.json"]
    assert [_put(admin, key) for key in keys] == [_OK, _OK]
    viewer = _client(s3_stack, s3_stack.label_studio_credentials)

    assert [_get(viewer, key) for key in keys] == [_OK, _DENIED]
    assert _put(viewer, "captures/cam-a/show2.jpg") == _DENIED
    assert _outcome(viewer.list_objects_v2, Prefix="captures/") == _OK
    assert _outcome(viewer.list_objects_v2, Prefix="inbox/") == _DENIED
    address = viewer.generate_presigned_url("get_object", Params={"Bucket": "gleaner", "Key": keys[0]})
    with urllib.request.urlopen(address, timeout=5) as response:
        assert response.status == 200


def test_keys_are_needed_and_must_be_right(s3_stack: Stack, tmp_path: Path) -> None:
    """A request without a signature, and one signed with a wrong secret, is refused."""
    admin = _client(s3_stack, s3_stack.admin_credentials)
    assert _put(admin, "tuf/metadata/root.json") == _OK
    connection = http.client.HTTPConnection(LOOPBACK, s3_stack.ports["s3"], timeout=5)
    connection.request("GET", "/gleaner/tuf/metadata/root.json")
    assert connection.getresponse().status == 403
    connection.close()

    forged = tmp_path / "forged.json"
    keys = json.loads(s3_stack.admin_credentials.read_text())
    forged.write_text(json.dumps({**keys, "secret_key": "guessed"}))
    assert _get(_client(s3_stack, forged), "tuf/metadata/root.json") == "SignatureDoesNotMatch"


def test_a_device_is_added_while_the_server_runs(s3_stack: Stack) -> None:
    """A later start with one more device gives it keys that work at once, without a restart of the server."""
    before = {status.name: status.pid for status in stack_status(s3_stack.root)}
    stack = start_stack(s3_stack.root, ["cam-c"], services=[S3])

    assert stack.devices == ("cam-a", "cam-b", "cam-c")
    assert {status.name: status.pid for status in stack_status(s3_stack.root)} == before
    assert _put(_client(stack, stack.device_credentials("cam-c")), "captures/cam-c/1.jpg") == _OK
    assert _put(_client(stack, stack.device_credentials("cam-c")), "captures/cam-a/1.jpg") == _DENIED
    assert _put(_client(stack, stack.device_credentials("cam-a")), "captures/cam-a/1.jpg") == _OK


def test_what_the_server_acknowledged_survives_its_kill(root: Path) -> None:
    """Every upload that was answered with 200 is there, unchanged, after SIGKILL and restart on the same port."""
    stack = start_stack(root, ["cam-a"], services=[S3])
    acknowledged: dict[str, bytes] = {}
    killed = threading.Event()

    def upload() -> None:
        client = _client(stack, stack.device_credentials("cam-a"))
        while not killed.is_set():
            key, body = f"captures/cam-a/{len(acknowledged):04d}.jpg", os.urandom(4096)
            try:
                client.put_object(Bucket="gleaner", Key=key, Body=body)
            except (ClientError, BotoCoreError):
                killed.wait(0.1)  # a store that has just started may refuse its first writes
            else:
                acknowledged[key] = body

    uploader = threading.Thread(target=upload)
    uploader.start()
    deadline_s = time.monotonic() + 60
    while len(acknowledged) <= 10:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert kill_service(root, S3)
    killed.set()
    uploader.join(timeout=30)
    assert [status.state for status in stack_status(root)] == ["stopped"]
    assert restart_service(root, S3) == stack

    admin = _client(stack, stack.admin_credentials)
    for key, body in acknowledged.items():
        assert admin.get_object(Bucket="gleaner", Key=key)["Body"].read() == body
    assert _put(_client(stack, stack.device_credentials("cam-a")), "captures/cam-a/after.jpg") == _OK


def test_a_start_that_is_killed_half_way_can_be_stopped_and_repeated(root: Path) -> None:
    """After SIGKILL of the starting command, `down` leaves nothing running and `up` works on the same folder."""
    script = (
        "import sys; from pathlib import Path; from flows.sandbox.stack import start_stack;"
        "start_stack(Path(sys.argv[1]), ['cam-a'], services=['s3'])"
    )
    starter = subprocess.Popen([sys.executable, "-c", script, str(root)])
    deadline_s = time.monotonic() + 60
    while S3 not in running_names(root):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    starter.kill()
    starter.wait()

    stopped = stop_stack(root)
    assert S3 in stopped
    assert running_names(root) == ()
    stack = start_stack(root, ["cam-a"], services=[S3])
    assert _put(_client(stack, stack.device_credentials("cam-a")), "captures/cam-a/1.jpg") == _OK


def test_a_service_that_fails_is_explained_and_takes_the_others_down(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When one service ends at its start, the error quotes its log with a hint, and nothing is left running."""
    broken = tmp_path_factory.mktemp("bin") / "label-studio"
    broken.write_text("#!/bin/sh\necho the disk is made of cheese\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("GLEANER_LABEL_STUDIO_BIN", str(broken))

    with pytest.raises(StackError, match="made of cheese") as failed:
        start_stack(root, services=[S3, LABEL_STUDIO_SERVER])
    assert failed.value.hint is not None
    assert running_names(root) == ()


def test_a_given_port_that_is_taken_is_refused(root: Path) -> None:
    """A port that somebody else listens on is named in the error before anything starts."""
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port}"):
            start_stack(root, services=[S3], ports={"s3": port})
    assert running_names(root) == ()


def test_the_whole_stack_starts_is_idempotent_survives_kills_and_stops(root: Path) -> None:
    """All services work on given ports; a second start changes nothing; killed ones return; `down` stops everything."""
    port = find_free_ports(1)[0]
    stack = start_stack(root, ["cam-a"], ports={"prefect": port})
    before = {status.name: (status.state, status.pid) for status in stack_status(root)}
    assert {name: state for name, (state, _) in before.items()} == dict.fromkeys(SERVICES, "ready")
    assert stack.prefect_api_url == f"http://{LOOPBACK}:{port}/api"

    assert start_stack(root, ["cam-a"]) == stack == load_stack(root)
    assert {status.name: (status.state, status.pid) for status in stack_status(root)} == before

    for name in (PREFECT, LABEL_STUDIO_SERVER):
        assert kill_service(root, name)
    assert start_stack(root, ["cam-a"]) == stack
    assert [status.state for status in stack_status(root)] == ["ready"] * 3

    spawn(root, "agent-cam-a", ["sleep", "60"])
    spawn(root, "agent-cam-b", ["sleep", "60"])
    assert kill_service(root, "agent-cam-b")
    others = {status.name: status.state for status in stack_status(root) if status.name not in SERVICES}
    assert others == {"agent-cam-a": "ready", "agent-cam-b": "stopped"}
    assert set(stop_stack(root)) == {*SERVICES, "agent-cam-a"}
    assert running_names(root) == ()
    assert [status.state for status in stack_status(root)] == ["stopped"] * 3
    assert stop_stack(root) == ()
