"""What comes back: open streams, fed by the channel and repaired from the log."""

from penstock.gateway.relay.relay import Relay
from penstock.gateway.relay.stream import Meter, Reader, Stream, Turn

__all__ = ["Meter", "Reader", "Relay", "Stream", "Turn"]
