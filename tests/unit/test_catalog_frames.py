"""Tables for reports count what is there."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from curate.catalog.frames import captures_by_arm, captures_over_time, samples_frame
from curate.catalog.models import SampleStatus
from tests.catalog_builders import NOW, imported, samples


def test_a_frame_holds_one_row_a_sample() -> None:
    """Rows come in the samples' order with aware times and readable words, also without any sample."""
    frame = samples_frame([*samples(2), imported(1)])
    assert list(frame["sample_id"]) == ["c-0", "c-1", "imported-1"]
    assert list(frame["arms"]) == ["random+uncertain", "uncertain", ""]
    assert set(frame["status"]) == {SampleStatus.POOL.value}
    assert frame["captured_at"][0] == samples(1)[0].captured_at
    assert samples_frame([]).empty


def test_captures_count_under_each_of_their_arms() -> None:
    """One capture kept by two arms counts under both, by device."""
    table = captures_by_arm([*samples(3), *samples(1, device="cam-2")])
    assert table.loc["cam-1"].to_dict() == {"random": 2, "uncertain": 3}
    assert table.loc["cam-2"].to_dict() == {"random": 1, "uncertain": 1}
    assert captures_by_arm([]).empty


def test_captures_over_time_show_silence_as_zero() -> None:
    """Counts go by bin and device; a bin in which nothing came is there with 0."""
    one, two = samples(2)
    times = [
        replace(one, captured_at=NOW),
        replace(two, captured_at=NOW + timedelta(minutes=9)),
        replace(one, captured_at=NOW + timedelta(minutes=25), device_id="cam-2"),
    ]
    table = captures_over_time(times, timedelta(minutes=10))
    assert table["cam-1"].tolist() == [2, 0, 0]
    assert table["cam-2"].tolist() == [0, 0, 1]
    assert captures_over_time([], timedelta(minutes=10)).empty
