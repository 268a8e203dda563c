"""Clients of the binary TCP protocol, as workers/WIRE_PROTOCOL.md specifies it.

`Client` for ordinary programs, `AsyncClient` for asyncio; both drive `protocol.Protocol`, which
does no I/O. Standard library only.
"""

from gateway.client.aio import AsyncClient, Subscription
from gateway.client.backoff import Backoff
from gateway.client.payloads import Position
from gateway.client.subscription import Gap, Message
from gateway.client.sync import Client

__all__ = ["AsyncClient", "Backoff", "Client", "Gap", "Message", "Position", "Subscription"]
