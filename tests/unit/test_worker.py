"""What the flow process registers with Prefect."""

from __future__ import annotations

from datetime import timedelta

from prefect.client.schemas.schedules import IntervalSchedule

from curate.settings import ScheduleSettings
from flows._wiring import DEPLOYMENT
from flows.worker import plan_deployments


def intervals(schedule: ScheduleSettings) -> dict[str | None, timedelta | None]:
    """How often each flow runs by itself."""
    found: dict[str | None, timedelta | None] = {}
    for deployment in plan_deployments(schedule):
        assert deployment.name == DEPLOYMENT
        schedules = [each.schedule for each in deployment.schedules or []]
        found[deployment.flow_name] = next((s.interval for s in schedules if isinstance(s, IntervalSchedule)), None)
    return found


def test_every_flow_runs_as_often_as_the_settings_say() -> None:
    """Each flow is registered once, the drift watch and the measuring of savings among them."""
    assert intervals(ScheduleSettings(drift_s=3600, savings_s=7200)) == {
        "ingest-captures": timedelta(seconds=60),
        "collect-annotations": timedelta(seconds=300),
        "supervise-rollout": timedelta(seconds=600),
        "watch-drift": timedelta(hours=1),
        "measure-savings": timedelta(hours=2),
        "curation-round": timedelta(days=1),
        "import-labels": None,
    }


def test_measuring_may_be_left_to_people() -> None:
    """Without an interval the savings are measured only when somebody asks."""
    assert intervals(ScheduleSettings(savings_s=None))["measure-savings"] is None
