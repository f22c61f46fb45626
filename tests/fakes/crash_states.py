"""Every state that a power cut may leave on the disk, for code whose file operations pass through `os`.

A recorder watches one folder. It notes each fsync, rename, link, removal and new folder as it happens, and by looking
at the folder before each of them what was created and written in between. From the record every crash is played:
after each operation, with each legal loss of what was not yet synced.

The model is deliberately weaker than any file system we know, in the spirit of the abstract persistence model of
ALICE (Pillai et al., "All File Systems Are Not Created Equal", OSDI'14); bounding the length of a run and visiting
all of its crashes is the idea of CrashMonkey and ACE (Mohan et al., OSDI'18):

- The content of a file survives only up to its own last fsync. What was written later may be there, or missing, or
  torn: cut off in the middle, or with its full length and zeros (delayed allocation).
- An entry of a folder (a creation, link, rename, removal, subfolder) survives only an fsync of that folder. Of those
  that came later any subset may survive, in any order, except that operations on one name keep theirs. A file's own
  fsync does not save its name, and a new folder is lost with all it holds when its parent was never synced.
- One operation on entries is atomic, a rename between two folders too; that one needs an fsync of both.

ext4, XFS, btrfs and F2FS with their journals keep the order of all operations of one disk; the states they can leave
are those where the survivors are the first ones, and they are visited before the others where a bound cuts the list.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = 0
Place = tuple[int, str]
"""A folder's node and a name in it."""
Tree = Mapping[str, bytes | None]
"""Content by path below the root; None for a folder."""


@dataclass(frozen=True)
class EntryChange:
    """One atomic operation on entries: `node` leaves `gone`, if any, and stands at `there`, if any."""

    node: int
    gone: Place | None
    there: Place | None

    @property
    def places(self) -> tuple[Place, ...]:
        """The entries it touches."""
        return tuple(place for place in (self.gone, self.there) if place is not None)


@dataclass(frozen=True)
class Write:
    """A file holds this now."""

    node: int
    content: bytes


@dataclass(frozen=True)
class Sync:
    """An fsync of a file or of a folder returned."""

    node: int


@dataclass(frozen=True)
class Mark:
    """The program said something: what it promised up to here must hold from here on."""

    value: Any


Operation = EntryChange | Write | Sync | Mark


@dataclass(frozen=True)
class CrashState:
    """One possible disk after a power cut."""

    tree: Tree
    operations_done: int
    marks: int
    """How many marks had been made."""

    def materialise(self, root: Path) -> None:
        """Replace what lies under `root` by this state."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        for name, content in sorted(self.tree.items()):
            path = root / name
            if content is None:
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(content)


@dataclass
class Recording:
    """What was done under one folder, from an empty or settled start."""

    operations: list[Operation] = field(default_factory=list)
    folders: set[int] = field(default_factory=lambda: {ROOT})
    settling: set[int] = field(default_factory=set)
    """Numbers of operations after which there was no crash: what a test arranged came all at once."""

    @property
    def marks(self) -> list[Any]:
        """What the program said, in order."""
        return [operation.value for operation in self.operations if isinstance(operation, Mark)]

    def crash_states(self, *, limit_each: int, rng: random.Random) -> Iterator[CrashState]:
        """Yield the distinct states of every crash; of one with more than `limit_each`, the ordered and a sample."""
        seen: set[tuple[int, int]] = set()
        marks = 0
        for done in range(len(self.operations) + 1):
            if done and isinstance(self.operations[done - 1], Mark):
                marks += 1
            if done in self.settling:
                continue
            for tree in _Crash(self, done).states(limit_each, rng):
                key = (marks, hash(tuple(sorted(tree.items()))))
                if key not in seen:
                    seen.add(key)
                    yield CrashState(tree, done, marks)


class _Crash:
    """A power cut after the first `done` operations."""

    def __init__(self, recording: Recording, done: int) -> None:
        self._folders = recording.folders
        operations = recording.operations[:done]
        synced: dict[int, int] = {op.node: at for at, op in enumerate(operations) if isinstance(op, Sync)}
        self._certain: list[EntryChange] = []
        self._pending: list[EntryChange] = []
        self._contents: dict[int, list[bytes]] = {}
        """By file: what it may hold."""
        durable: dict[int, bytes] = {}
        for at, op in enumerate(operations):
            if isinstance(op, EntryChange):
                is_certain = all(synced.get(parent, -1) > at for parent, _ in op.places)
                (self._certain if is_certain else self._pending).append(op)
                self._contents.setdefault(op.node, [b""])
            elif isinstance(op, Write):
                if synced.get(op.node, -1) > at:
                    durable[op.node] = op.content
                    self._contents[op.node] = [op.content]
                else:
                    base = durable.get(op.node, b"")
                    self._contents[op.node] = [*self._contents.get(op.node, [b""]), *torn(base, op.content)]
        self._order = {id(op): at for at, op in enumerate(operations)}

    def states(self, limit: int, rng: random.Random) -> Iterator[Tree]:
        """Yield what may be on the disk."""
        produced = 0
        for survivors in self._survivors(limit, rng):
            entries = self._entries(survivors)
            paths = _paths(entries, self._folders)
            files = sorted({node for node in paths.values() if node not in self._folders})
            choices = [list(dict.fromkeys(self._contents.get(node, [b""]))) for node in files]
            for contents in itertools.islice(itertools.product(*choices), limit):
                held = dict(zip(files, contents, strict=True))
                yield {path: None if node in self._folders else held[node] for path, node in paths.items()}
                produced += 1
                if produced >= limit:
                    return

    def _survivors(self, limit: int, rng: random.Random) -> Iterator[Sequence[EntryChange]]:
        """Yield the legal subsets of what was not synced, the ordered ones first, without end of the bound."""
        pending = self._pending
        for count in range(len(pending), -1, -1):
            yield pending[:count]
        if 2 ** len(pending) <= 4 * limit:
            masks: Sequence[int] = range(2 ** len(pending))
        else:
            masks = [rng.getrandbits(len(pending)) for _ in range(limit)]
        for mask in masks:
            chosen = [op for bit, op in enumerate(pending) if mask >> bit & 1]
            if self._keeps_order_of_names(chosen):
                yield chosen

    def _keeps_order_of_names(self, chosen: Sequence[EntryChange]) -> bool:
        """Of the pending operations on one name the survivors must be the first."""
        taken = {id(op) for op in chosen}
        lost: set[Place] = set()
        for op in self._pending:
            if id(op) not in taken:
                lost.update(op.places)
            elif lost.intersection(op.places):
                return False
        return True

    def _entries(self, survivors: Sequence[EntryChange]) -> dict[Place, int]:
        entries: dict[Place, int] = {}
        for op in sorted([*self._certain, *survivors], key=lambda op: self._order[id(op)]):
            if op.gone is not None:
                entries.pop(op.gone, None)
            if op.there is not None:
                entries[op.there] = op.node
        return entries


def torn(base: bytes, content: bytes) -> list[bytes]:
    """Return what a file may hold after `content` was written over the durable `base` without an fsync."""
    kept = base if content.startswith(base) else b""
    new = content[len(kept) :]
    half = len(new) // 2
    return [kept, kept + new[:half], kept + bytes(len(new)), kept + new[:half] + bytes(len(new) - half), content]


def _paths(entries: Mapping[Place, int], folders: set[int]) -> dict[str, int]:
    """Return what can be reached from the root, by path."""
    children: dict[int, list[tuple[str, int]]] = {}
    for (parent, name), node in entries.items():
        children.setdefault(parent, []).append((name, node))
    found: dict[str, int] = {}
    waiting = [("", ROOT)]
    while waiting:
        prefix, parent = waiting.pop()
        for name, node in children.get(parent, ()):
            found[prefix + name] = node
            if node in folders:
                waiting.append((f"{prefix}{name}/", node))
    return found


class Recorder:
    """Watches one folder. Thread-safe; what several threads do is put into one order."""

    def __init__(self, root: Path) -> None:
        self.recording = Recording()
        self._root = root
        self._lock = threading.RLock()
        self._nodes: dict[str, int] = {"": ROOT}
        self._inodes: dict[int, int] = {root.stat().st_ino: ROOT}
        self._contents: dict[int, bytes] = {}
        self._next_node = 1

    def mark(self, value: Any) -> None:
        """Note what the program promises from now on."""
        with self._lock:
            self.look()
            self.recording.operations.append(Mark(value))

    def settle(self, mark: Any = None) -> None:
        """Take everything as it is for durable: the test put it there. The mark, if any, says what."""
        with self._lock:
            start = len(self.recording.operations) + 1
            self.look()
            operations = self.recording.operations
            operations += [Sync(node) for node in sorted(set(self._nodes.values()))]
            operations += [] if mark is None else [Mark(mark)]
            self.recording.settling.update(range(start, len(operations)))

    def look(self) -> None:
        """Note what was created and written since the last look."""
        operations = self.recording.operations
        found = dict(self._walk())
        missing = [path for path in self._nodes if path and path not in found]
        assert not missing, f"removed behind the recorder's back: {missing}"
        for path, item in found.items():
            node = self._node_of(path, item)
            if node in self.recording.folders:
                continue
            content = Path(item.path).read_bytes()
            if content != self._contents.get(node, b""):
                operations.append(Write(node, content))
            self._contents[node] = content

    def _walk(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        waiting = [("", str(self._root))]
        while waiting:
            prefix, folder = waiting.pop(0)
            with os.scandir(folder) as listing:
                items = sorted(listing, key=lambda item: item.name)
            for item in items:
                yield prefix + item.name, item
                if item.is_dir(follow_symlinks=False):
                    waiting.append((f"{prefix}{item.name}/", item.path))

    def _node_of(self, path: str, item: os.DirEntry[str]) -> int:
        if path in self._nodes:
            return self._nodes[path]
        node = self._inodes.get(item.inode())
        if node is None:
            node, self._next_node = self._next_node, self._next_node + 1
            self._inodes[item.inode()] = node
            if item.is_dir(follow_symlinks=False):
                self.recording.folders.add(node)
        self._nodes[path] = node
        self.recording.operations.append(EntryChange(node, None, self._place(path)))
        return node

    def _place(self, path: str) -> Place:
        parent, _, name = path.rpartition("/")
        return self._nodes[parent], name

    def _path(self, path: Any) -> str | None:
        """Return the path below the root, or None for one elsewhere."""
        full = Path(os.path.abspath(os.fspath(path)))  # noqa: PTH100 - resolve() would follow links
        return full.relative_to(self._root).as_posix() if full.is_relative_to(self._root) else None

    # -- one method a system call --------------------------------------------------------------------------------

    def synced(self, call: Callable[..., Any], handle: Any) -> None:
        """fsync and fdatasync."""
        with self._lock:
            self.look()
            call(handle)
            number = handle if isinstance(handle, int) else handle.fileno()
            node = self._inodes.get(os.fstat(number).st_ino)
            if node is not None:
                self.recording.operations.append(Sync(node))

    def moved(self, call: Callable[..., Any], source: Any, target: Any, **options: Any) -> None:
        """rename and replace."""
        with self._lock:
            self.look()
            call(source, target, **options)
            old, new = self._path(source), self._path(target)
            assert (old is None) == (new is None), "a rename into or out of the watched folder"
            if old is None or new is None or old == new:
                return
            self._forget_inode(new)
            change = EntryChange(self._nodes[old], self._place(old), self._place(new))
            for path in [path for path in self._nodes if path == old or path.startswith(f"{old}/")]:
                self._nodes[new + path[len(old) :]] = self._nodes.pop(path)
            self.recording.operations.append(change)

    def removed(self, call: Callable[..., Any], path: Any, **options: Any) -> None:
        """unlink, remove and rmdir."""
        with self._lock:
            self.look()
            call(path, **options)
            name = self._path(path)
            if name is not None:
                place = self._place(name)
                self._forget_inode(name)
                self.recording.operations.append(EntryChange(self._nodes.pop(name), place, None))

    def added(self, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        """mkdir and link: what they made is found by looking."""
        with self._lock:
            self.look()
            call(*args, **options)
            self.look()

    def _forget_inode(self, path: str) -> None:
        """The number of a file without a name may be given to the next file."""
        node = self._nodes.get(path)
        if node is not None and list(self._nodes.values()).count(node) == 1:
            self._inodes = {inode: known for inode, known in self._inodes.items() if known != node}


_WATCHED: Mapping[str, str] = {
    "fsync": "synced",
    "fdatasync": "synced",
    "replace": "moved",
    "rename": "moved",
    "unlink": "removed",
    "remove": "removed",
    "rmdir": "removed",
    "mkdir": "added",
    "link": "added",
}


@contextlib.contextmanager
def recorded(root: Path) -> Iterator[Recorder]:
    """Record what the body does under `root`; what lies there already counts as durable."""
    recorder = Recorder(root)
    recorder.settle()
    recorder.recording.settling.add(0)

    def watched(method: Callable[..., None], call: Callable[..., Any]) -> Callable[..., None]:
        return lambda *args, **options: method(call, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name, method in _WATCHED.items():
            patch.setattr(os, name, watched(getattr(recorder, method), getattr(os, name)))
        yield recorder
    recorder.look()
