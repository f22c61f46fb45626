"""What the flows are handed, with real parts on one folder of this disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from curate.annotation.label_studio import LabelStudioBackend
from curate.annotation.settings import LabelStudioSettings
from curate.catalog.store import Catalog
from curate.settings import Settings
from curate.storage.local import LocalBlobStore
from curate.storage.s3_settings import S3Settings
from flows._wiring import Services

LABELS = Path(__file__).parents[2] / "configs" / "labels.yaml"


@contextmanager
def local_services(folder: Path, **settings: Any) -> Iterator[Services]:
    """A catalog and a store below `folder`, and a Label Studio that nobody may talk to; `settings` add to the rest."""
    label_studio = LabelStudioSettings(url="http://127.0.0.1:9", token=SecretStr("0" * 40))
    given = Settings(
        catalog_url=f"sqlite:///{folder / 'catalog.db'}",
        cache_dir=folder / "cache",
        key_dir=folder / "keys",
        bucket=S3Settings(bucket="gleaner"),
        label_studio=label_studio,
        **{"labels_file": LABELS} | settings,
    )
    with Catalog.open(given.catalog_url) as catalog:
        store = LocalBlobStore(folder / "bucket")
        yield Services(given, store, catalog, lambda: LabelStudioBackend(label_studio, given.labels))
