"""What signer and verifier must agree on beyond TUF itself: names, and how an envelope carries bytes."""

from __future__ import annotations

import base64
import binascii

from curate.contracts.release import Envelope
from curate.errors import ContractError

ASSIGNMENT_PAYLOAD_TYPE = "application/vnd.gleaner.assignment.v1+json"
"""DSSE payload type of an assignment; signed with the payload, so no other document can pass for one."""

ASSIGNMENT_KEYS_FIELD = "x-gleaner-assignment-keys"
"""Field of the signed TUF root: key id to public key, those that may sign assignments. It rotates with the root."""


def manifest_target(release_id: str) -> str:
    """Name of the release's manifest in the TUF repository."""
    return f"{release_id}.manifest.json"


def model_target(release_id: str, variant: str) -> str:
    """Name of one variant of the release's model."""
    return f"{release_id}.model-{variant}.onnx"


def golden_target(release_id: str) -> str:
    """Name of the release's golden inputs and answers."""
    return f"{release_id}.golden.npz"


def decode_base64(text: str) -> bytes:
    """Return the bytes of strict base64.

    Raises:
        ContractError: the text is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ContractError("not valid base64") from exc


def envelope_payload(envelope: Envelope) -> bytes:
    """Return the payload's raw bytes, unverified.

    Raises:
        ContractError: the payload is not base64.
    """
    return decode_base64(envelope.payload)
