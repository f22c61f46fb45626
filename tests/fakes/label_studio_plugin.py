"""A pytest plugin: a real Label Studio beside a real S3 server, one of each a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from curate.storage.s3 import S3BlobStore
from flows.sandbox.stack import start_stack, stop_stack
from flows.sandbox.stack_state import LABEL_STUDIO_SERVER, S3
from tests.fakes.label_studio_server import LabelStudioServer, picture


@pytest.fixture(scope="session")
def label_studio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudioServer]:
    """Start both servers once, with captures in the bucket."""
    root = tmp_path_factory.mktemp("label-studio-stack")
    try:
        stack = start_stack(root, ["cam-1"], services=[S3, LABEL_STUDIO_SERVER])
        store = S3BlobStore(stack.s3_settings())
        for number in range(3):
            store.put(f"captures/cam-1/{number}.png", picture(), content_type="image/png")
        server = LabelStudioServer(stack)
        yield server
        for backend in server.opened:
            backend.close()
    finally:
        stop_stack(root)
