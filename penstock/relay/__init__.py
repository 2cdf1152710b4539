"""What comes back: open streams, fed by the channel and mended from the log."""

from penstock.relay.relay import Relay
from penstock.relay.stream import Meter, Stream

__all__ = ["Meter", "Relay", "Stream"]
