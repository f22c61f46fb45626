"""The agent's command line: it teaches, and it never shows a trace."""

from __future__ import annotations

import http.server
import json
import logging
import threading
import warnings
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from edge_agent.cli import main
from edge_agent.config.sections import LogConfig
from edge_agent.logs import configure_logging
from edge_agent.state_lock import exclusive_state
from edge_agent.switches import Switches


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
    """--help shows the commands, the first steps and the exit codes; each command has help of its own."""
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(
        word in text
        for word in ("run", "status", "check", "doctor", "explain", "switch", "bench", "first steps", "exit codes")
    )


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


def test_check_looks_at_every_camera(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One camera that is missing does not hide how the others are."""
    (tmp_path / "b").mkdir()
    cameras = [{"camera_id": name, "path": name} for name in ("a", "b", "c")]
    main(["check", "--config", write_config(tmp_path, camera=None, cameras=cameras)])
    told = capsys.readouterr()
    assert "camera b: " in told.out
    assert ("camera a: " in told.err, "camera c: " in told.err) == (True, True)


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


@pytest.mark.parametrize("answer", [(404, {"error": "no"}), (200, {"status": "ok", "proof": "0"}), (200, ["ok"])])
def test_a_stranger_on_the_agent_s_port_is_told_no_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: tuple[int, object]
) -> None:
    """An address file that outlived its agent may name a port that another program has by now: it never gets the
    token, whatever it answers."""
    (tmp_path / "tokens").write_text("0123456789abcdef-token")
    config = write_config(tmp_path, api={"token_file": "tokens"})
    stranger = RunningAgent(tmp_path, defaultdict(lambda: answer))
    try:
        assert main(["status", "--config", config]) == 1
    finally:
        stranger.close()
    assert "gleaner-agent run" in capsys.readouterr().err
    assert stranger.requests
    assert [request for request in stranger.requests if request[3] is not None] == []


def test_a_second_agent_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], restored_logging: None) -> None:
    """Two agents on one state folder: the second says so and exits 1."""
    with exclusive_state(tmp_path / "state"):
        assert main(["run", "--config", write_config(tmp_path)]) == 1
    assert "another agent" in capsys.readouterr().err


class RunningAgent:
    """An HTTP server where a configuration expects its agent; it answers what it was given and remembers requests."""

    def __init__(self, folder: Path, answers: dict[str, tuple[int, object]]) -> None:
        self.requests: list[tuple[str, str, bytes, str | None]] = []
        agent = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                agent.requests.append((self.command, self.path, body, self.headers.get("Authorization")))
                status, document = answers[self.path]
                payload = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_PUT = do_GET

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        (folder / "state").mkdir(exist_ok=True)
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        (folder / "state" / "api.json").write_text(json.dumps({"url": url, "instance": "0" * 32}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_explain_is_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the running agent tells of a prediction is printed as readable lines; its refusal is a message, no trace."""
    told = {"prediction_id": "b-1", "kept": False, "arms": [{"arm": "random", "probability": 0.02, "kept": False}]}
    answers = {"/v1/predictions/b-1/explain": (200, told), "/v1/predictions/b-9/explain": (404, {"error": "unknown"})}
    agent = RunningAgent(tmp_path, answers)
    try:
        assert main(["explain", "--config", write_config(tmp_path), "b-1"]) == 0
        assert yaml.safe_load(capsys.readouterr().out) == told
        assert main(["explain", "--config", write_config(tmp_path), "b-9"]) == 1
    finally:
        agent.close()
    assert "error: unknown" in capsys.readouterr().err


def test_a_switch_is_flipped_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A running agent is asked to flip its switch; without one the file is changed, and the next start reads it."""
    config = write_config(tmp_path)
    assert main(["switch", "--config", config, "capture", "off"]) == 0
    assert main(["switch", "--config", config, "metered", "on"]) == 0
    state = Switches(tmp_path / "state" / "switches.json").state()
    assert (state.capture_allowed, state.metered) == (False, True)
    agent = RunningAgent(tmp_path, {"/v1/switches": (200, {"capture_allowed": True, "metered": True})})
    try:
        assert main(["switch", "--config", config, "capture", "on"]) == 0
    finally:
        agent.close()
    ((method, path, body, _),) = agent.requests
    assert (method, path, json.loads(body)) == ("PUT", "/v1/switches", {"capture_allowed": True})
    assert not Switches(tmp_path / "state" / "switches.json").state().capture_allowed
    assert '"capture_allowed": true' in capsys.readouterr().out


def test_doctor_tells_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Findings are lines for people or JSON for programs; something that fails makes the exit code 1."""
    config = write_config(tmp_path, camera={"camera_id": "front", "path": "frames"}, api={"port": 0})
    assert main(["doctor", "--config", config]) == 1
    text = capsys.readouterr().out
    assert "fail  trust:" in text
    assert "      -> " in text
    assert main(["doctor", "--config", config, "--json"]) == 1
    findings = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"name", "level", "text", "advice"} == set(findings[0])


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
    logging.getLogger().handlers[-1].flush()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["message"] for line in lines[:2]] == ["swapped\nhere", "failed"]
    assert (lines[0]["release_id"], lines[0]["path"], lines[0]["level"]) == ("r-1", "/x", "info")
    assert "ValueError: invalid literal" in lines[1]["traceback"]
    assert "DeprecationWarning" in lines[2]["message"]
