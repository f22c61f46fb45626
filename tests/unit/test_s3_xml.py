"""What a bucket says in XML, and what somebody else says in its place."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.storage.s3_xml import read_leaves

LAUGHS = b"""<!DOCTYPE Error [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><Error><Code>&b;</Code></Error>"""
OUTSIDE = b"""<!DOCTYPE Error [<!ENTITY a SYSTEM "file:///etc/passwd">]><Error><Code>&a;</Code></Error>"""


def test_names_and_texts_come_in_order() -> None:
    """Elements that hold no others are told with their text, wherever they lie, with namespaces left aside."""
    document = b"""<?xml version="1.0" encoding="UTF-8"?>
        <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
        <Contents><Key>a&amp;b\xc3\xa9</Key><Size>1</Size></Contents> <Contents><Key/><Size>2</Size></Contents>
        </ListBucketResult>"""
    assert read_leaves(document, "ListBucketResult") == [
        ("Name", "b"),
        ("Key", "a&b\u00e9"),
        ("Size", "1"),
        ("Key", ""),
        ("Size", "2"),
    ]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"not xml",
        b"<html><body>Sign in<br></body></html>",
        b"<html><Error><Code>NoSuchKey</Code></Error></html>",
        b"<Error><Code>NoSuchKey</Code>",
        b"<Error>\xff\xfe</Error>",
        b'<?xml version="1.0" encoding="rot13"?><Reebe><Pbqr/></Reebe>',
        LAUGHS,
        OUTSIDE,
    ],
)
def test_what_is_no_such_document_is_none(document: bytes) -> None:
    """Pages, cut answers, other encodings and whoever brings entities are told apart from S3's own word."""
    assert read_leaves(document, "Error") is None


def test_a_bomb_costs_no_memory() -> None:
    """Entities that would expand to gigabytes are refused at the first declaration."""
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<!DOCTYPE Error [<!ENTITY e0 "ha">{levels}]><Error><Code>&e11;</Code></Error>'.encode()
    tracemalloc.start()
    try:
        assert read_leaves(bomb, "Error") is None
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_depth_costs_no_stack() -> None:
    """Elements in elements, ten thousand deep, are read like any others."""
    assert read_leaves(b"<Error>" + b"<a>" * 10_000 + b"</a>" * 10_000 + b"</Error>", "Error") == [("a", "")]


@given(st.binary(max_size=200) | st.text("<>/&;!?ErroCd[]\"' ", max_size=80).map(str.encode))
def test_nothing_breaks_the_reader(document: bytes) -> None:
    """Any bytes at all are a document or none."""
    leaves = read_leaves(document, "Error")
    assert leaves is None or isinstance(leaves, list)
