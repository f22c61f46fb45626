"""paho's client, which holds no more of a message in memory than it may be long."""

from __future__ import annotations

from typing import Any, Final

import paho.mqtt.client as paho

_PIECE_BYTES: Final = 64 * 1024
_HEAD_BYTES: Final = 2 + 65535 + 2
"""Before a message's payload: its topic, with its length, and its number."""


class BoundedClient(paho.Client):
    """A client for which too long a message arrives cut off, still longer than `max_message_bytes`.

    MQTT 3 lets anybody who may publish send 256 MB, which paho puts together before it tells of any of it. Dropping the
    connection instead would have the broker deliver it again for ever.
    """

    def __init__(self, *args: Any, max_message_bytes: int, **options: Any) -> None:
        """As paho's."""
        super().__init__(*args, **options)
        self._most_bytes = _HEAD_BYTES + max_message_bytes + 1

    def _sock_recv(self, bufsize: int) -> bytes:
        # Whatever is read next is put behind what is there, and only the whole is looked at: its end is not needed.
        del self._in_packet["packet"][self._most_bytes :]
        return super()._sock_recv(min(bufsize, _PIECE_BYTES))
