"""What comes back: open streams, fed by the channel and mended from the log."""

from penstock.relay.relay import Relay
from penstock.relay.stream import Meter, Reader, Stream, Turn

__all__ = ["Meter", "Reader", "Relay", "Stream", "Turn"]
