"""One JSON object a line, so that a device's log can be searched by field."""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
from datetime import UTC, datetime
from typing import Final

from edge_agent.config.sections import LogConfig

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
    logging.basicConfig(handlers=[handler], level=config.level.upper(), force=True)
    logging.captureWarnings(True)
    # They tell steps of their own that mean nothing to a device's owner.
    for noisy in ("botocore", "urllib3", "boto3", "tuf", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
