"""Open streams, fed by the channel and repaired from the log."""

from penstock.gateway.relay.relay import Relay
from penstock.gateway.relay.stream import Reader, RelayStream, StreamMeter, Turn, run_push, wait_changed

__all__ = ["Reader", "Relay", "RelayStream", "StreamMeter", "Turn", "run_push", "wait_changed"]
