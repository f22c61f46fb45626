"""The one place that builds real services from settings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from curate.annotation.backend import AnnotationBackend
from curate.annotation.label_studio import LabelStudioBackend
from curate.catalog.store import Catalog
from curate.settings import Settings, load_settings
from curate.storage.ports import BlobStore
from curate.storage.s3 import S3BlobStore


@dataclass(frozen=True)
class Services:
    """What a flow reaches the world through."""

    settings: Settings
    store: BlobStore
    catalog: Catalog
    annotation: AnnotationBackend


@lru_cache(maxsize=1)
def services() -> Services:
    """Connect once a process.

    Raises:
        ConfigError: the settings are wrong.
        CatalogError: the catalog cannot be opened.
    """
    settings = load_settings()
    return Services(
        settings=settings,
        store=S3BlobStore(settings.bucket),
        catalog=Catalog.open(settings.catalog_url),
        annotation=LabelStudioBackend(settings.label_studio, settings.labels),
    )
