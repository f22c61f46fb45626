"""What the agent tells systemd: that it is ready, how it is, and that its cameras' threads still turn (sd_notify(3)).

Without systemd nothing is sent and nothing fails.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Final

log = logging.getLogger(__name__)

_IDLE_INTERVAL_S: Final = 10.0
"""How often the state is told when no watchdog asks."""


class SystemdNotifier:
    """Sends messages to the service manager that started this process, if one did."""

    def __init__(self, environment: Mapping[str, str] = os.environ, *, process_id: int | None = None) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._watchdog_s = _watchdog_s(environment, os.getpid() if process_id is None else process_id)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    @property
    def watchdog_s(self) -> float | None:
        """Silence after which systemd ends this process, in seconds; None when it does not watch."""
        return self._watchdog_s

    def notify(self, **fields: str) -> None:
        """Send fields such as `READY="1"` in one message. Never raises and never waits."""
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in fields.items())
        # A leading @ stands for the null byte of an abstract address.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as sender:
                sender.connect(address)
                sender.send(message.encode())
        except OSError as exc:
            log.debug("systemd was not told: %s", exc)


class Watchdog:
    """Tells systemd that the agent is alive, only while it is: one that hangs is ended and started anew."""

    def __init__(
        self, notifier: SystemdNotifier, *, find_stuck: Callable[[float], list[str]], describe: Callable[[], str]
    ) -> None:
        """`find_stuck(limit_s)` names what has not moved for so long; `describe` is shown by `systemctl status`."""
        self._notifier = notifier
        self._find_stuck = find_stuck
        self._describe = describe
        self._was_stuck = False

    @property
    def interval_s(self) -> float:
        """How often `turn` is called: a third of what systemd waits for."""
        return _IDLE_INTERVAL_S if self._notifier.watchdog_s is None else self._notifier.watchdog_s / 3.0

    def turn(self) -> bool:
        """Tell how the agent is; False when something is stuck, so that systemd is not told that it is alive."""
        stuck = self._find_stuck(self._notifier.watchdog_s or 3.0 * _IDLE_INTERVAL_S)
        if stuck:
            if not self._was_stuck:
                log.error("the agent does not get on", extra={"stuck": stuck})
            self._notifier.notify(STATUS=f"stuck: {', '.join(stuck)}")
        else:
            self._notifier.notify(STATUS=self._describe(), WATCHDOG="1")
        self._was_stuck = bool(stuck)
        return not stuck

    def run(self, stop: threading.Event) -> None:
        """Turn until told to stop. Without systemd it only waits."""
        while not stop.is_set():
            if self._notifier.is_wanted:
                try:
                    self.turn()
                except Exception:
                    log.exception("watchdog turn failed")
            stop.wait(self.interval_s)


def _watchdog_s(environment: Mapping[str, str], process_id: int) -> float | None:
    """Return what `WatchdogSec=` says, when it is meant for this process (sd_watchdog_enabled(3))."""
    if environment.get("WATCHDOG_PID", str(process_id)) != str(process_id):
        return None
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdigit() and int(text) > 0 else None
