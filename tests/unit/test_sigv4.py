"""The signature that S3 checks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from curate.storage.sigv4 import Credentials, Request, encode_path, encode_query, sign

AMAZONS = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
"""The keys of the examples in Amazon's documentation, which open nothing."""
MAY_2013 = datetime(2013, 5, 24, tzinfo=UTC)


@pytest.mark.parametrize(
    ("request_", "signature"),
    [
        (
            Request("GET", "", "/test.txt", headers={"Range": "bytes=0-9"}),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            Request(
                "PUT",
                "",
                encode_path("/test$file.text"),
                headers={"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
                body=b"Welcome to Amazon S3.",
            ),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (
            Request("GET", "", "/", encode_query({"lifecycle": ""})),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            Request("GET", "", "/", encode_query({"prefix": "J", "max-keys": "2"})),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
    ids=["get-range", "put", "get-lifecycle", "list"],
)
def test_amazons_own_examples(request_: Request, signature: str) -> None:
    """The examples of "Authenticating Requests: Using the Authorization Header" are signed as they are there."""
    request = Request(
        request_.method,
        "examplebucket.s3.amazonaws.com",
        request_.path,
        request_.query,
        request_.headers,
        request_.body,
    )
    headers = sign(request, AMAZONS, region="us-east-1", at=MAY_2013)
    assert headers["Authorization"].endswith(f"Signature={signature}")


def test_a_time_of_another_zone_is_the_same_moment() -> None:
    """What is signed is the moment, whichever zone it is given in."""
    request = Request("GET", "h", "/")
    elsewhere = MAY_2013.astimezone(timezone(timedelta(hours=9)))
    assert sign(request, AMAZONS, region="r", at=elsewhere) == sign(request, AMAZONS, region="r", at=MAY_2013)


def test_credentials_show_no_secret() -> None:
    """Printed, credentials name who asks and nothing more."""
    assert "hunter2" not in repr(Credentials("AK", "hunter2", "hunter2-token"))
