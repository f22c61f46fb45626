"""The one place that builds real services from settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from curate.annotation.backend import AnnotationBackend
from curate.catalog.store import Catalog
from curate.settings import Settings, load_settings
from curate.storage.image_cache import ImageCache
from curate.storage.ports import BlobStore
from curate.storage.s3 import S3BlobStore

DEPLOYMENT = "fleet"
"""Every flow has one deployment of this name: `curation-round/fleet`."""


@dataclass(frozen=True)
class Services:
    """What a flow reaches the world through."""

    settings: Settings
    store: BlobStore
    catalog: Catalog
    open_annotation: Callable[[], AnnotationBackend]

    @cached_property
    def images(self) -> ImageCache:
        """Pictures that were fetched before."""
        return ImageCache(self.settings.cache_dir / "images", self.settings.image_cache_bytes)

    @cached_property
    def annotation(self) -> AnnotationBackend:
        """The annotation tool; connected at first use, since most flows never ask it."""
        return self.open_annotation()


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
        open_annotation=lambda: _open_label_studio(settings),
    )


def _open_label_studio(settings: Settings) -> AnnotationBackend:
    from curate.annotation.label_studio import LabelStudioBackend  # noqa: PLC0415 (its client takes a second to load)

    return LabelStudioBackend(settings.label_studio, settings.labels)
