"""`gleaner-agent bench`: bars are judged, noise is admitted, and the measurements themselves run."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from curate.errors import AgentError, ConfigError
from edge_agent.bench.bare import open_session
from edge_agent.bench.command import replace_table
from edge_agent.bench.gate import measure_gate
from edge_agent.bench.model import load_file, make_pictures
from edge_agent.bench.overhead import Paired, measure_overhead, summarise
from edge_agent.bench.processes import Cost
from edge_agent.bench.processes import summarise as summarise_processes
from edge_agent.bench.report import Bar, Figure, Outcome, Section, spread_of, to_document, to_markdown
from edge_agent.bench.spool import summarise as summarise_spool
from edge_agent.cli import main
from edge_agent.spool.measure import PutRate, RecoveryTime
from tests.fakes.tiny_detector import quarters, tiny_detector_bytes
from tests.fakes.tiny_model import CLASSES, tiny_model_bytes


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_model_bytes(32))
    return path


@pytest.mark.parametrize(
    ("value", "bar", "spread", "outcome"),
    [
        (0.02, Bar(0.03), 0.0, Outcome.KEPT),
        (0.04, Bar(0.03), 0.0, Outcome.MISSED),
        (0.02, Bar(0.03), 0.5, Outcome.NOISY),
        (0.9, Bar(0.8, at_least=True), 0.1, Outcome.KEPT),
        (0.7, Bar(0.8, at_least=True), 0.1, Outcome.MISSED),
        (7.0, None, 0.9, Outcome.NO_BAR),
    ],
)
def test_a_figure_keeps_its_bar_or_not(value: float, bar: Bar | None, spread: float, outcome: Outcome) -> None:
    """Bars are upper or lower limits; where the yardstick itself moved, nothing is claimed."""
    assert Figure("x", value, "ms", bar, spread=spread).outcome is outcome


def test_spread_is_relative() -> None:
    """The spread is the range of the repeats over their median; a single repeat has none."""
    assert spread_of([9.0, 10.0, 12.0]) == pytest.approx(0.3)
    assert (spread_of([5.0]), spread_of([])) == (0.0, 0.0)


def test_overhead_is_paired() -> None:
    """What slows both down cancels out: the overhead is the median of the differences, not of the times."""
    bare = (1.0, 5.0, 1.0, 9.0, 1.0)
    pair = Paired(bare, tuple(x + 0.01 for x in bare))
    section = summarise([pair, pair], 5)
    assert [figure.value for figure in section.figures] == pytest.approx([0.01, 10.0])
    assert [figure.outcome for figure in section.figures] == [Outcome.KEPT, Outcome.MISSED]


def test_processes_are_compared_by_medians() -> None:
    """One disturbed run does not decide."""
    bare = [Cost(100, 0.020, 50), Cost(100, 0.020, 50), Cost(100, 0.021, 50)]
    agent = [Cost(100, 0.021, 70), Cost(100, 0.200, 70), Cost(100, 0.0205, 70)]
    cpu, memory = summarise_processes(bare, agent, agent, 20.0).figures
    assert (cpu.value, memory.value) == pytest.approx((1.05, 1.4))
    assert (cpu.outcome, memory.outcome) == (Outcome.KEPT, Outcome.KEPT)


def test_the_spool_is_judged_by_its_share_of_the_disk() -> None:
    """A fast disk is no merit and a slow one no fault; opening a big spool has no bar."""
    room, full = PutRate(40_000, 9.0, 10.0, 0.9), PutRate(40_000, 700.0, 1000.0, 0.7)
    section = summarise_spool({"room": room, "full": full}, RecoveryTime(50_000, 3.0, 1.0, 0.9))
    assert [figure.outcome for figure in section.figures] == [Outcome.KEPT, Outcome.MISSED, Outcome.NO_BAR]


def test_both_reports_say_the_same() -> None:
    """The table and the document hold every figure with its outcome, and what was left out with its reason."""
    sections = [Section("a", (Figure("one", 0.5, "ms", Bar(1.0)),)), Section("b", left_out="no clip")]
    table = to_markdown(sections, {"machine": "test"})
    document = to_document(sections, {"machine": "test"})
    assert "| one | 0.5 ms | at most 1 ms | kept |" in table
    assert "| b | left out | | | no clip |" in table
    assert document["figures"][0]["outcome"] == "kept"
    assert document["left_out"] == {"b": "no clip"}
    json.dumps(document)


def test_the_table_has_its_place() -> None:
    """Only what stands between the marks is replaced; a document without them is refused."""
    text = "# Title\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n"
    expected = "# Title\n<!-- measured: begin -->\nnew\n<!-- measured: end -->\nafter\n"
    assert replace_table(text, "new\n") == expected
    with pytest.raises(ConfigError):
        replace_table("# Title", "new\n")


def test_any_model_of_the_right_form_can_be_measured(model_file: Path, tmp_path: Path) -> None:
    """What a file takes and gives is read from it, for classifiers and detectors; anything else is a ConfigError."""
    model = load_file(model_file)
    assert (model.spec.kind, model.spec.height, len(model.spec.class_names)) == ("classification", 32, len(CLASSES))
    (tmp_path / "detector.onnx").write_bytes(tiny_detector_bytes())
    assert load_file(tmp_path / "detector.onnx").spec.kind == "detection"
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    for name in ("noise.onnx", "absent.onnx"):
        with pytest.raises(ConfigError):
            load_file(tmp_path / name)


def test_the_capture_loop_is_measured_beside_the_session(model_file: Path, tmp_path: Path) -> None:
    """The loop's turns take longer than the session's runs of the same pictures, and every frame is timed once."""
    pictures = make_pictures(32, 32, 4)
    section = measure_overhead(
        load_file(model_file), open_session(model_file), pictures, tmp_path / "state", frames=20, repeats=2
    )
    share, milliseconds = section.figures
    assert share.value > 0.0
    assert 0.0 < milliseconds.value < 1000.0
    assert "2 x 20 frames" in share.detail


def test_the_gate_is_measured_on_a_clip(tmp_path: Path) -> None:
    """A lamp that is lit for a while gives shares between 0 and 1; a classifier and an empty file are refused."""
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 64))
    for number in range(60):
        writer.write(quarters(0.9 if 10 <= number < 40 else 0.1, 0.1, 0.1, 0.1, size=64))
    writer.release()
    (tmp_path / "detector.onnx").write_bytes(tiny_detector_bytes())
    detector = load_file(tmp_path / "detector.onnx")
    section = measure_gate(tmp_path / "clip.avi", detector, sensitivity=0.5)
    skipped, still, kept, look_ms = (figure.value for figure in section.figures)
    assert 0.5 < skipped < 1.0
    assert 0.5 < still < 1.0
    assert 0.0 <= kept <= 1.0
    assert look_ms > 0.0
    assert "60 frames" in section.figures[0].detail
    (tmp_path / "empty.avi").write_bytes(b"")
    with pytest.raises(AgentError, match="no frame"):
        measure_gate(tmp_path / "empty.avi", detector, sensitivity=0.5)


def test_the_command_leaves_out_what_it_cannot_measure(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a clip the gate is left out with the option to pass, the exit code says so, and the table is written."""
    document = tmp_path / "agent.md"
    document.write_text("<!-- measured: begin --><!-- measured: end -->")
    command = ["bench", "--model", str(model_file), "--only", "gate", "--json", "--write", str(document)]
    assert main(command) == 1
    assert "--clip" in json.loads(capsys.readouterr().out)["left_out"]["gate"]
    assert "| gate | left out |" in document.read_text()
