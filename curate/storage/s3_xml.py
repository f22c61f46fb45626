"""Reading what S3 says in XML, from whoever answers. Pure, bounded by its input, and nothing is ever expanded."""

from __future__ import annotations

from xml.parsers.expat import ExpatError, ParserCreate


class _DoctypeError(Exception):
    """S3 declares no document type: whoever does wants entities expanded."""


class _Leaves:
    def __init__(self) -> None:
        self.root = ""
        self.found: list[tuple[str, str]] = []
        self._text: list[str] | None = None

    def start(self, name: str, _attributes: dict[str, str]) -> None:
        self.root = self.root or name
        self._text = []

    def end(self, name: str) -> None:
        if self._text is not None:
            self.found.append((name, "".join(self._text)))
        self._text = None

    def text(self, piece: str) -> None:
        if self._text is not None:
            self._text.append(piece)

    def refuse(self, *_declaration: object) -> None:
        raise _DoctypeError


def read_leaves(document: bytes, root: str) -> list[tuple[str, str]] | None:
    """Return name and text of each element that holds no other, in order; None when this is no such document.

    S3's answers need no more: below their root they are a list, or a list of lists with names of their own.
    """
    leaves = _Leaves()
    parser = ParserCreate("UTF-8")  # whatever the document calls itself
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = leaves.refuse
    parser.StartElementHandler = leaves.start
    parser.EndElementHandler = leaves.end
    parser.CharacterDataHandler = leaves.text
    try:
        parser.Parse(document, True)
    except (ExpatError, _DoctypeError):
        return None
    return leaves.found if leaves.root == root else None
