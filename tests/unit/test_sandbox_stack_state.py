"""Ports, secrets and rights of the local stack: what a restart keeps, and what each identity may do."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.storage.access import device_policy, label_studio_policy
from flows.sandbox.ports import LOOPBACK, find_free_ports, is_port_free
from flows.sandbox.processes import StackError
from flows.sandbox.stack_access import s3_config
from flows.sandbox.stack_state import (
    PORTS,
    SERVICES,
    Stack,
    complete_secrets,
    credentials_path,
    load_stack_file,
    persist_stack,
    plan_ports,
)

_PORT_NAMES = [name for names in PORTS.values() for name in names]
_SOME_PORTS = st.dictionaries(st.sampled_from(_PORT_NAMES), st.integers(1024, 1064))


def _stack(root: Path, devices: tuple[str, ...] = ("cam-1",)) -> Stack:
    ports = {name: 20_000 + index for index, name in enumerate(_PORT_NAMES)}
    known = complete_secrets(None, devices)
    return Stack(root=root, bucket="gleaner", devices=devices, services=SERVICES, ports=ports, secrets=known)


def test_free_ports_are_different_and_free_and_a_taken_one_is_seen() -> None:
    """Found ports can be listened on, and a port that somebody listens on is not free."""
    ports = find_free_ports(20)
    assert len(set(ports)) == 20
    with socket.socket() as sock:
        sock.bind((LOOPBACK, ports[0]))
        sock.listen()
        assert not is_port_free(ports[0])
    assert is_port_free(ports[0])


@given(known=_SOME_PORTS, asked=_SOME_PORTS, taken=st.sets(st.integers(1024, 1064)))
def test_settled_ports_are_unique_free_and_as_asked(
    known: dict[str, int], asked: dict[str, int], taken: set[int]
) -> None:
    """Of stopped services, no settled port is taken or shared, and every asked one is honoured or refused."""
    try:
        settled = plan_ports(known, asked, running=(), is_free=lambda port: port not in taken)
    except StackError:
        assert (
            set(asked.values()) & taken
            or len({*asked.values()}) < len(asked)
            or set(asked.values()) & {*known.values()}
        )
        return
    assert len(set(settled.values())) == len(settled)
    assert not set(settled.values()) & taken
    assert {name: settled[name] for name in asked} == asked
    assert all(settled[name] in (known.get(name), asked.get(name)) for name in settled)


def test_a_running_service_keeps_its_ports_and_refuses_others() -> None:
    """Ports of a running service stay although they are taken, by itself, and cannot be changed under it."""
    known = {"prefect": 4200}
    assert plan_ports(known, {}, running={"prefect"}, is_free=lambda port: False) == known
    with pytest.raises(StackError, match="runs on port 4200"):
        plan_ports(known, {"prefect": 4201}, running={"prefect"}, is_free=lambda port: True)


def test_secrets_are_generated_once_and_only_added_to() -> None:
    """More devices bring more keys; nothing that was given out before changes."""
    first = complete_secrets(None, ["cam-1"])
    second = complete_secrets(first, ["cam-1", "cam-2"])

    assert second.model_copy(update={"s3": first.s3}) == first
    assert {name: second.s3[name] for name in first.s3} == first.s3
    assert set(second.s3) - set(first.s3) == {"device-cam-2"}
    assert len({key.secret_key for key in second.s3.values()}) == 4


def test_a_stack_survives_the_disk_and_its_secrets_are_private(tmp_path: Path) -> None:
    """What was persisted loads as the same value; files with secrets are readable by their owner only."""
    stack = _stack(tmp_path)
    persist_stack(stack)

    assert load_stack_file(tmp_path) == stack
    private = [tmp_path / "secrets.json", *(credentials_path(tmp_path, name) for name in stack.secrets.s3)]
    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o600] * len(private)
    public = (tmp_path / "stack.json").read_text()
    assert not [key for key in stack.secrets.s3.values() if key.secret_key in public]
    assert stack.secrets.label_studio_token not in public + repr(stack)


def test_a_damaged_stack_file_is_an_error_that_quotes_no_secret(tmp_path: Path) -> None:
    """A file that cannot be read is refused with a hint, without its content."""
    stack = _stack(tmp_path)
    persist_stack(stack)
    secrets = tmp_path / "secrets.json"
    secrets.write_text(secrets.read_text()[:-20])

    with pytest.raises(StackError) as refused:
        load_stack_file(tmp_path)
    assert refused.value.hint is not None
    assert stack.secrets.label_studio_token not in str(refused.value)
    assert refused.value.__cause__ is None


def test_an_unknown_device_has_no_credentials(tmp_path: Path) -> None:
    """Asking for keys of a device the stack was not started with is an error, not a missing file later."""
    with pytest.raises(StackError, match="cam-9"):
        _stack(tmp_path).device_credentials("cam-9")


def _resources(policy: dict[str, Any], action: str) -> set[str]:
    return {arn for part in policy["Statement"] if action in part["Action"] for arn in part["Resource"]}


def test_a_device_may_write_its_own_prefixes_and_nothing_else() -> None:
    """A device's policy names put and get only, and every written resource carries its own name."""
    policy = device_policy("gleaner", "cam-1")

    assert {action for part in policy["Statement"] for action in part["Action"]} == {"s3:PutObject", "s3:GetObject"}
    assert _resources(policy, "s3:PutObject") == {
        "arn:aws:s3:::gleaner/captures/cam-1/*",
        "arn:aws:s3:::gleaner/inbox/cam-1/*",
        "arn:aws:s3:::gleaner/twin/cam-1/reported.json",
    }
    assert _resources(policy, "s3:GetObject") == {"arn:aws:s3:::gleaner/tuf/*", "arn:aws:s3:::gleaner/twin/cam-1/*"}


def test_label_studio_may_only_read_captures() -> None:
    """Label Studio's policy holds no write, and no object outside the captures."""
    policy = label_studio_policy("gleaner")
    assert {action for part in policy["Statement"] for action in part["Action"]} == {"s3:GetObject", "s3:ListBucket"}
    assert _resources(policy, "s3:GetObject") == {"arn:aws:s3:::gleaner/captures/*"}


def test_every_identity_has_its_own_keys_and_exactly_one_policy() -> None:
    """The server's file gives each identity its own keys and the policy of its name, and no action beside."""
    known = complete_secrets(None, ["cam-1", "cam-2"])
    config = s3_config("gleaner", ["cam-1", "cam-2"], {name: key.model_dump() for name, key in known.s3.items()})

    names = [identity["name"] for identity in config["identities"]]
    assert sorted(names) == ["admin", "device-cam-1", "device-cam-2", "label-studio"]
    assert [identity["policyNames"] for identity in config["identities"]] == [[name] for name in names]
    assert [identity["actions"] for identity in config["identities"]] == [[]] * 4
    assert [policy["name"] for policy in config["policies"]] == names
    assert all(json.loads(policy["content"])["Version"] == "2012-10-17" for policy in config["policies"])
