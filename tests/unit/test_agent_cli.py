"""The agent's command line: it teaches, and it never shows a trace."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest
import yaml

from edge_agent.cli import main
from edge_agent.config.sections import LogConfig
from edge_agent.logs import configure_logging
from edge_agent.state_lock import exclusive_state


def write_config(folder: Path, **changes: object) -> str:
    document: dict[str, object] = {
        "device_id": "cam-1",
        "state_dir": "state",
        "camera": {"camera_id": "front", "path": "frames"},
        "bucket": {"kind": "folder", "path": "bucket"},
        "trust": {"root_file": "root.json"},
    }
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump(document | changes))
    return str(path)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """--help shows the commands, the first steps and the exit codes."""
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("run", "status", "check", "first steps", "exit codes"))


def test_a_wrong_configuration_is_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong setting or a missing file is exit code 2 with message and hint, and no trace."""
    assert main(["check", "--config", write_config(tmp_path, colour="red")]) == 2
    assert main(["run", "--config", str(tmp_path / "absent.yaml")]) == 2
    text = capsys.readouterr().err
    assert "colour" in text
    assert "hint:" in text
    assert "Traceback" not in text


def test_check_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each thing out of reach is named with a hint; with everything there, the exit code is 0."""
    config = write_config(tmp_path)
    assert main(["check", "--config", config]) == 2
    errors = capsys.readouterr().err
    assert "camera" in errors
    assert "trust" in errors
    for name in ("frames", "bucket"):
        (tmp_path / name).mkdir()
    (tmp_path / "root.json").write_text("{}")
    assert main(["check", "--config", config]) == 0
    assert "nothing is assigned to cam-1 yet" in capsys.readouterr().out


def test_check_tells_an_unreachable_bucket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store that does not answer is exit code 1 and says where to look."""
    (tmp_path / "frames").mkdir()
    (tmp_path / "root.json").write_text("{}")
    (tmp_path / "keys.json").write_text('{"access_key": "a", "secret_key": "b"}')
    bucket = {
        "kind": "s3",
        "bucket": "gleaner",
        "endpoint_url": "http://127.0.0.1:9",
        "credentials_file": "keys.json",
        "connect_timeout_s": 1.0,
    }
    assert main(["check", "--config", write_config(tmp_path, bucket=bucket)]) == 1
    errors = capsys.readouterr().err
    assert "does not answer" in errors
    assert "endpoint_url" in errors


def test_status_without_an_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Asking an agent that does not run is exit code 1 and says how to start it, also when it died."""
    config = write_config(tmp_path)
    assert main(["status", "--config", config]) == 1
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "api.json").write_text('{"url": "http://127.0.0.1:9"}')
    assert main(["status", "--config", config]) == 1
    assert capsys.readouterr().err.count("gleaner-agent run") == 2


def test_a_second_agent_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], restored_logging: None) -> None:
    """Two agents on one state folder: the second says so and exits 1."""
    with exclusive_state(tmp_path / "state"):
        assert main(["run", "--config", write_config(tmp_path)]) == 1
    assert "another agent" in capsys.readouterr().err


@pytest.fixture
def restored_logging() -> object:
    """Put the process's logging back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield None
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def test_logs_are_json_lines(tmp_path: Path, restored_logging: None) -> None:
    """Every record is one JSON object with its extra fields, tracebacks and warnings included."""
    path = tmp_path / "logs" / "agent.log"
    configure_logging(LogConfig(file=path))
    logging.getLogger("edge_agent.test").info("swapped\nhere", extra={"release_id": "r-1", "path": Path("/x")})
    try:
        int("no")
    except ValueError:
        logging.getLogger("edge_agent.test").exception("failed")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["message"] for line in lines[:2]] == ["swapped\nhere", "failed"]
    assert (lines[0]["release_id"], lines[0]["path"], lines[0]["level"]) == ("r-1", "/x", "info")
    assert "ValueError: invalid literal" in lines[1]["traceback"]
    assert "DeprecationWarning" in lines[2]["message"]
