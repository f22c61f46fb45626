"""How fast the catalog admits what cameras sent, and how fast it gives a million embeddings back.

    python benchmarks/catalog.py [--folder DIR] [--catalog-url postgresql://...] [--write benchmarks/catalog.md]

Runs `gleaner bench catalog` in a process of its own for each line of the tables. Needs 6 GB of disk below the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from edge_agent.bench.command import replace_table
from edge_agent.machine import processor_name

GIB = 1024**3
RECORDS = 20_000
PICTURES = ((160, 120), (320, 240), (640, 480))
EMBEDDINGS = ((100_000, 256), (1_000_000, 256))


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where bucket and catalog lie meanwhile")
    parser.add_argument("--catalog-url", help="measure one line of each table on this empty database, too")
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--write", type=Path, help="put the tables between the marks in this Markdown file")
    arguments = parser.parse_args()
    place = [] if arguments.folder is None else ["--folder", str(arguments.folder)]
    few = ["--records", str(arguments.records), "--embeddings", str(arguments.records)]
    admitted = [_measure([*place, *few, "--width", str(w), "--height", str(h)]) for w, h in PICTURES]
    read = [
        _measure([*place, "--records", "1000", "--embeddings", str(rows), "--dim", str(dim)])
        for rows, dim in EMBEDDINGS
    ]
    if arguments.catalog_url:
        both = _measure([*place, *few, "--catalog-url", arguments.catalog_url])
        admitted.append(both)
        read.append(both)
    tables = "\n".join([_machine(), "", *_admission_table(admitted), "", *_reading_table(read), ""])
    print(tables)
    if arguments.write is not None:
        arguments.write.write_text(replace_table(arguments.write.read_text("utf-8"), tables), "utf-8")


def _measure(options: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "flows.cli", "bench", "catalog", "--json", *options]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return dict(json.loads(found.stdout))


def _machine() -> str:
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    cores = f"{processor_name()}, {os.cpu_count()} cores"
    return f"- machine: {cores}, Python {platform.python_version()}; load after: {loads}"


def _admission_table(found: list[dict[str, Any]]) -> list[str]:
    rows = [
        f"| {each['database']} | {each['width']} x {each['height']}, {each['picture_bytes'] / 1024:.0f} KiB"
        f" | {each['admitted']:,} | {each['admission']['wall_s']:.1f} | {each['admission']['cpu_s']:.1f}"
        f" | {each['records_per_s']:,.0f} | {each['records_per_cpu_s']:,.0f} | {each['picture']['cpu_s'] * 1e3:.2f} |"
        for each in found
    ]
    head = "| database | picture | captures | seconds | processor s | a second | a processor s | one picture, ms |"
    return [head, "|---|---|---|---|---|---|---|---|", *rows]


def _reading_table(found: list[dict[str, Any]]) -> list[str]:
    rows = [
        f"| {each['database']} | {each['embeddings']:,} x {each['dim']} | {each['reading']['wall_s']:.1f}"
        f" | {each['reading']['cpu_s']:.1f} | {each['peak_bytes'] / GIB:.2f} GiB |"
        for each in found
    ]
    return ["| database | embeddings | seconds | processor s | peak memory |", "|---|---|---|---|---|", *rows]


if __name__ == "__main__":
    main()
