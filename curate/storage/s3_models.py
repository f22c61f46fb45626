"""What botocore has to know to speak S3, and no more: of its own the descriptions take 13 MiB, and a camera has few.

botocore reads JSON files that describe every operation of a service, with manuals, and the endpoints of every service
there is, and keeps all of it. A session may be given another loader; this one forgets while it reads.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from botocore.loaders import JSONFileLoader, Loader

OPERATIONS: Final = frozenset(
    {"CreateBucket", "DeleteObject", "GetObject", "HeadBucket", "HeadObject", "ListObjectsV2", "PutObject"}
)
"""What the store asks of S3."""
_SERVICES: Final = frozenset({"s3", "sts"})
"""Whose endpoints are kept: the bucket's, and where a role's credentials come from; others follow the usual pattern."""
_READERS: Final[dict[str, Callable[[Path], bytes]]] = {
    ".json": Path.read_bytes,
    ".json.gz": lambda path: gzip.decompress(path.read_bytes()),
}


def make_lean_loader() -> Loader:
    """Return a loader for a botocore session's component `data_loader`."""
    return Loader(file_loader=_LeanFiles())


class _LeanFiles(JSONFileLoader):
    def load_file(self, file_path: str) -> Any:
        """Return the file's content without what nobody here asks for; None when there is no such file."""
        for suffix, read in _READERS.items():
            path = Path(f"{file_path}{suffix}")
            if path.is_file():
                return _trim(Path(file_path), json.loads(read(path), object_hook=_without_manual))
        return None


def _trim(path: Path, document: Any) -> Any:
    if path.name == "endpoints":
        return _trim_endpoints(document)
    if path.name == "service-2" and path.parts[-3] == "s3":
        return _trim_service(document)
    return document


def _trim_endpoints(document: dict[str, Any]) -> dict[str, Any]:
    for partition in document["partitions"]:
        partition["services"] = {name: place for name, place in partition["services"].items() if name in _SERVICES}
    return document


def _trim_service(document: dict[str, Any]) -> dict[str, Any]:
    operations = {name: operation for name, operation in document["operations"].items() if name in OPERATIONS}
    shapes = document["shapes"]
    needed: dict[str, Any] = {}
    waiting = list(_shapes_in(operations))
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed[name] = shapes[name]
            waiting += _shapes_in(shapes[name])
    return document | {"operations": operations, "shapes": needed}


def _shapes_in(part: Any) -> list[str]:
    """Return the names of the shapes that a part of a service's description refers to."""
    if isinstance(part, list):
        return [name for item in part for name in _shapes_in(item)]
    if not isinstance(part, dict):
        return []
    named = [part["shape"]] if isinstance(part.get("shape"), str) else []
    return [*named, *(name for item in part.values() for name in _shapes_in(item))]


def _without_manual(part: dict[str, Any]) -> dict[str, Any]:
    if isinstance(part.get("documentation"), str):  # of a member with that name it would be an object
        part["documentation"] = ""  # botocore asks for some, and reads none
    return part
