"""Our messages are the protocol's: field by field those of a client that nobody here wrote, and those of our file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from tritonclient.grpc import service_pb2

from edge_agent.interfaces.protos import open_inference_pb2

PROTOS = Path(open_inference_pb2.__file__).parent
OURS = open_inference_pb2.DESCRIPTOR.message_types_by_name


def fields_of(message: Any) -> dict[str, tuple[int, int, bool]]:
    """Number, type and whether it repeats, by name."""
    return {field.name: (field.number, field.type, field.is_repeated) for field in message.fields}


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_field_is_the_protocols(name: str) -> None:
    """Every field of ours has the number and the type that tritonclient gives it, in nested messages too."""
    theirs = service_pb2.DESCRIPTOR.message_types_by_name[name]
    assert fields_of(OURS[name]).items() <= fields_of(theirs).items()
    for nested in OURS[name].nested_types:
        assert fields_of(nested).items() <= fields_of(theirs.nested_types_by_name[nested.name]).items()


def test_what_was_generated_is_the_file(tmp_path: Path) -> None:
    """open_inference_pb2.py was generated from open_inference.proto as it is now."""
    found = tmp_path / "set"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}", f"--descriptor_set_out={found}"]
    subprocess.run([*command, "open_inference.proto"], check=True)
    (described,) = FileDescriptorSet.FromString(found.read_bytes()).file
    for message in described.message_type:
        expected = {field.name: field.number for field in message.field}
        assert {field.name: field.number for field in OURS[message.name].fields} == expected
    assert {message.name for message in described.message_type} == set(OURS)
