"""What MQTT messages look like: topics, payloads, and what Home Assistant has to know. Pure.

Home Assistant's discovery: home-assistant.io/integrations/mqtt, "MQTT Discovery"; one retained message an entity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

ONLINE: Final = "online"
OFFLINE: Final = "offline"
PRESS: Final = "dismiss"
MAX_SUMMARY: Final = 255
"""Home Assistant takes no longer state."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Every topic of one device."""

    prefix: str
    device_id: str

    @property
    def availability(self) -> str:
        """`online` or `offline`, retained; the broker itself says `offline` when the device falls silent."""
        return f"{self.prefix}/{self.device_id}/availability"

    @property
    def state(self) -> str:
        """How the device is, retained."""
        return f"{self.prefix}/{self.device_id}/state"

    @property
    def feedback(self) -> str:
        """Where verdicts come in."""
        return f"{self.prefix}/{self.device_id}/feedback"

    @property
    def reply(self) -> str:
        """Where each verdict is answered."""
        return f"{self.feedback}/reply"

    def prediction(self, camera_id: str) -> str:
        """Where a camera's answers go."""
        return f"{self.prefix}/{self.device_id}/{camera_id}/prediction"

    def image(self, camera_id: str) -> str:
        """Where a camera's pictures go."""
        return f"{self.prefix}/{self.device_id}/{camera_id}/image"

    def dismiss(self, camera_id: str) -> str:
        """Where the last answer that was told of a camera is dismissed."""
        return f"{self.prefix}/{self.device_id}/{camera_id}/dismiss"


def summarise(document: Mapping[str, Any]) -> str:
    """Return a prediction in a few words: its label, or how many of what."""
    if "label" in document:
        return str(document["label"])[:MAX_SUMMARY]
    counts = Counter(str(box["label"]) for box in document.get("boxes", ()) if box["shown"])
    return ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))[:MAX_SUMMARY] or "nothing"


def discovery_messages(
    topics: Topics, cameras: Sequence[str], *, discovery_prefix: str, agent_version: str, with_images: bool
) -> dict[str, dict[str, Any]]:
    """Return Home Assistant's configuration messages by topic: they make the device and its cameras show up."""
    shared = {
        "availability_topic": topics.availability,
        "device": {
            "identifiers": [f"gleaner_{topics.device_id}"],
            "name": topics.device_id,
            "manufacturer": "Gleaner",
            "model": "edge agent",
            "sw_version": agent_version,
        },
        "origin": {"name": "gleaner-agent", "sw_version": agent_version},
    }
    entities = _device_entities(topics)
    for camera_id in cameras:
        entities |= _camera_entities(topics, camera_id, with_images=with_images)
    return {
        f"{discovery_prefix}/{component}/gleaner_{topics.device_id}/{name}/config": shared
        | {"unique_id": f"gleaner_{topics.device_id}_{name}"}
        | entity
        for (component, name), entity in entities.items()
    }


def _device_entities(topics: Topics) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        ("binary_sensor", "problem"): {
            "name": "Problem",
            "device_class": "problem",
            "state_topic": topics.state,
            "value_template": "{{ 'OFF' if value_json.healthy else 'ON' }}",
            "json_attributes_topic": topics.state,
            "entity_category": "diagnostic",
        },
        ("sensor", "pending"): {
            "name": "Captures waiting",
            "state_topic": topics.state,
            "value_template": "{{ value_json.pending }}",
            "state_class": "measurement",
            "entity_category": "diagnostic",
        },
        ("sensor", "release"): {
            "name": "Model",
            "state_topic": topics.state,
            "value_template": "{{ value_json.release_id or 'none' }}",
            "entity_category": "diagnostic",
        },
    }


def _camera_entities(topics: Topics, camera_id: str, *, with_images: bool) -> dict[tuple[str, str], dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {
        ("sensor", f"{camera_id}_answer"): {
            "name": f"{camera_id} answer",
            "state_topic": topics.prediction(camera_id),
            "value_template": "{{ value_json.summary }}",
            "json_attributes_topic": topics.prediction(camera_id),
        },
        ("button", f"{camera_id}_dismiss"): {
            "name": f"{camera_id} dismiss the last answer",
            "command_topic": topics.dismiss(camera_id),
            "payload_press": PRESS,
            "qos": 1,
        },
    }
    if with_images:
        found["camera", f"{camera_id}_picture"] = {"name": f"{camera_id} picture", "topic": topics.image(camera_id)}
    return found
