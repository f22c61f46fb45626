"""Our signature against the one of Amazon's own library."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from unittest import mock

from botocore import auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials
from hypothesis import given
from hypothesis import strategies as st

from curate.storage.sigv4 import Credentials, Request, encode_path, encode_query, sign

names = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=12)


@given(
    method=st.sampled_from(["GET", "PUT", "HEAD", "DELETE"]),
    key=st.lists(names.filter(lambda name: name.strip(".")), min_size=1, max_size=4).map("/".join),
    query=st.dictionaries(names, names, max_size=4),
    headers=st.dictionaries(
        st.sampled_from(["Content-Type", "If-None-Match", "Range", "X-Amz-Meta-A"]),
        st.text("abc=/ *\"'-0", min_size=1, max_size=20),
    ),
    body=st.binary(max_size=40),
    token=st.none() | st.text("abcXYZ/+=", min_size=1, max_size=30),
    region=st.sampled_from(["us-east-1", "eu-central-1", "weed"]),
    at=st.integers(0, 7_000_000_000).map(lambda at_s: datetime.fromtimestamp(at_s, UTC)),
)
def test_it_signs_as_botocore_does(
    method: str,
    key: str,
    query: dict[str, str],
    headers: dict[str, str],
    body: bytes,
    token: str | None,
    region: str,
    at: datetime,
) -> None:
    """Whatever the key, the query, the headers and the time, the proof is the one that Amazon's own library gives."""

    path, canonical = encode_path(f"/bucket/{key}"), encode_query(query)
    request = Request(method, "s3.example.com:8333", path, canonical, headers, body)
    ours = sign(request, Credentials("access", "secret", token), region=region, at=at)

    url = f"https://s3.example.com:8333{path}{'?' if canonical else ''}{canonical}"
    theirs = AWSRequest(method, url, {**headers, "Host": "s3.example.com:8333"}, body)
    with mock.patch.object(auth, "get_current_datetime", return_value=at):
        auth.S3SigV4Auth(BotoCredentials("access", "secret", token), "s3", region).add_auth(theirs)
    assert ours["Authorization"] == theirs.headers["Authorization"]
    assert ours["X-Amz-Content-SHA256"] == theirs.headers["X-Amz-Content-SHA256"] == hashlib.sha256(body).hexdigest()
    assert ours["X-Amz-Date"] == theirs.headers["X-Amz-Date"]
