"""The example configurations: complete, valid, and honest about the defaults. `agent.yaml` has tests of its own."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic_core import PydanticUndefined

from curate.catalog.labels import load_label_spec
from curate.errors import ConfigError
from curate.settings import CONFIG_VARIABLE, Settings, load_settings

CONFIGS = Path(__file__).parents[2] / "configs"
SECRETS = {"access_key", "secret_key", "token"}
ABSENT_SECTIONS = "device_settings."
"""Its sections are absent by default; configs/agent.yaml shows what they hold."""
SHOWN_BY_EXAMPLE = {"label_studio.token_file"}
"""Optional, because there is another way; the file shows this one."""


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GLEANER_")]:
        monkeypatch.delenv(name)


def _document() -> dict[str, Any]:
    document = yaml.safe_load((CONFIGS / "curate.yaml").read_text())
    assert isinstance(document, dict)
    return document


def _section_of(annotation: Any) -> Any:
    """The settings class behind an annotation such as `Section` or `Section | None`."""
    candidates = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    for kind in candidates:
        if isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind)):
            return kind
    return None


def _fields(section: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and default (PydanticUndefined without one) of each setting."""
    if issubclass(section, BaseModel):
        for name, info in section.model_fields.items():
            yield name, info.annotation, info.get_default(call_default_factory=True)
        return
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        yield field.name, hints[field.name], field.default


def _leaves(section: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every setting that is not a section, by its dotted name."""
    for name, annotation, default in _fields(section):
        inner = _section_of(annotation)
        if inner is None or at == ABSENT_SECTIONS:
            yield f"{at}{name}", annotation, default
        else:
            yield from _leaves(inner, f"{at}{name}.")


def _look_up(document: dict[str, Any], dotted: str) -> Any:
    value: Any = document
    for part in dotted.split("."):
        value = value[part]
    return value


LEAVES = {name: (annotation, default) for name, annotation, default in _leaves(Settings)}


def test_curate_yaml_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by GLEANER_CONFIG and started from the repository's root, configs/curate.yaml is a valid configuration."""
    monkeypatch.chdir(CONFIGS.parent)
    monkeypatch.setenv(CONFIG_VARIABLE, "configs/curate.yaml")
    settings = load_settings()
    assert settings.labels == load_label_spec(CONFIGS / "labels.yaml")


@pytest.mark.parametrize("dotted", sorted(name for name in LEAVES if name.rpartition(".")[2] not in SECRETS))
def test_curate_yaml_shows_every_setting_with_its_default(dotted: str) -> None:
    """Each setting stands in configs/curate.yaml, and its value is the default of the code where there is one."""
    annotation, default = LEAVES[dotted]
    shown: Any = TypeAdapter(annotation).validate_python(_look_up(_document(), dotted))
    if default is not PydanticUndefined and dotted not in SHOWN_BY_EXAMPLE:
        assert shown == default


def test_curate_yaml_holds_no_secret_but_names_each() -> None:
    """Secret settings have no value in the file, and a comment in their section says where they come from."""
    comments = [line for line in (CONFIGS / "curate.yaml").read_text().splitlines() if line.strip().startswith("#")]
    for dotted in (name for name in LEAVES if name.rpartition(".")[2] in SECRETS):
        with pytest.raises(KeyError):
            _look_up(_document(), dotted)
        assert any(dotted.rpartition(".")[2] in line and "environment only" in line for line in comments), dotted


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable changes one setting of a section and leaves the file's others."""
    monkeypatch.setenv(CONFIG_VARIABLE, str(CONFIGS / "curate.yaml"))
    monkeypatch.setenv("GLEANER_ROUND__BUDGET", "17")
    settings = load_settings()
    assert (settings.round.budget, settings.round.poll_interval_s) == (17, 2.0)


def test_a_typing_mistake_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown key, at any level, is refused with its place."""
    wrong = _document()
    wrong["selection"]["audit_shre"] = 0.1
    path = tmp_path / "curate.yaml"
    path.write_text(yaml.safe_dump(wrong))
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    with pytest.raises(ConfigError, match=r"selection\.audit_shre"):
        load_settings()


def test_a_file_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GLEANER_CONFIG that leads nowhere is an error, not a silent start from defaults."""
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "missing.yaml"))
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_settings()


def test_labels_yaml_loads() -> None:
    """configs/labels.yaml describes a classification with distinct classes."""
    spec = load_label_spec(CONFIGS / "labels.yaml")
    assert spec.kind == "classification"
    assert len(set(spec.class_names)) == len(spec.class_names) >= 2
