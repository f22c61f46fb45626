"""One JSON object a line, so that a device's log can be searched by field; and nobody waits for whoever takes it."""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from edge_agent.config.sections import LogConfig

MAX_WAITING: Final = 1000
"""Records that wait for a slow disk or a full pipe; further ones are dropped and counted."""
_FLUSH_S: Final = 1.0
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON: time, level, logger, message, the `extra` fields, the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its newline."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class UnhurriedHandler(logging.Handler):
    """Writes on a thread of its own: a log that does not take a line must not stop the thread that answers frames."""

    def __init__(self, target: logging.Handler) -> None:
        super().__init__()
        self._target = target
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(MAX_WAITING)
        self._dropped = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on without waiting."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Give what waits a moment to be written."""
        deadline_s = time.monotonic() + _FLUSH_S
        while self._queue.unfinished_tasks and time.monotonic() < deadline_s:
            time.sleep(0.01)

    def close(self) -> None:
        """Write what waits, as far as that goes quickly, and end."""
        self.flush()
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        super().close()

    def _write(self) -> None:
        while (record := self._queue.get()) is not None:
            self._target.handle(record)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                self._target.handle(_tell_dropped(dropped))
            self._queue.task_done()
        self._target.close()


def _tell_dropped(count: int) -> logging.LogRecord:
    detail = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "dropped": count}
    return logging.makeLogRecord(detail | {"msg": "the log did not keep up"})


def configure_logging(config: LogConfig) -> None:
    """Send every record of this process, warnings included, as JSON lines where the configuration says.

    Raises:
        OSError: the log file cannot be opened.
    """
    handler: logging.Handler
    if config.file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        config.file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(
            config.file, maxBytes=config.max_bytes, backupCount=1, encoding="utf-8"
        )
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[UnhurriedHandler(handler)], level=config.level.upper(), force=True)
    logging.captureWarnings(True)
    # They tell steps of their own that mean nothing to a device's owner.
    for noisy in ("tuf", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each odd answer, and a captive portal gives many
