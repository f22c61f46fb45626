"""The parts of a configuration that a local stack decides."""

from __future__ import annotations

from typing import Any

from flows.sandbox.stack_state import Stack, persist_text

PROJECT_TITLE = "Gleaner demo"


def label_studio_config(stack: Stack) -> dict[str, Any]:
    """Return the `label_studio` section for a local stack, without secrets.

    Writes the token into a file of its own, readable by this user only.
    """
    token_file = stack.root / "credentials" / "label-studio.token"
    persist_text(token_file, stack.secrets.label_studio_token, mode=0o600)
    return {
        "url": stack.label_studio_url,
        "token_file": str(token_file),
        "project_title": PROJECT_TITLE,
        "storage": {
            "bucket": stack.bucket,
            "endpoint_url": stack.s3_endpoint,
            "credentials_file": str(stack.label_studio_credentials),
        },
    }
