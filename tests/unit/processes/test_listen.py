"""The listening sockets: where they are bound, and the one sentence when they cannot be."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from penstock.errors import ConfigError
from penstock.processes.listen import listen_for_clients, listen_for_operators
from penstock.settings import Settings


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another socket listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_socket_for_clients_listens_where_the_settings_point() -> None:
    with listen_for_clients(Settings(port=0)) as listener, socket.create_connection(listener.getsockname()):
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_taken_port_names_the_settings_and_the_reason(taken: int) -> None:
    with pytest.raises(ConfigError) as raised:
        listen_for_clients(Settings(port=taken))
    assert raised.value.message == (
        f"cannot listen on 127.0.0.1 port {taken} (PENSTOCK_HOST, PENSTOCK_PORT): Address already in use"
    )


def test_a_gateway_without_keys_does_not_listen_for_everyone() -> None:
    with pytest.raises(ConfigError, match=r"without API keys everyone who can reach 0\.0\.0\.0"):
        listen_for_clients(Settings(host="0.0.0.0", port=0))  # noqa: S104 - it is refused


def test_a_taken_port_for_operators_is_an_error_if_it_was_set(taken: int) -> None:
    with pytest.raises(ConfigError, match=rf"port {taken} \(PENSTOCK_METRICS_HOST, PENSTOCK_METRICS_PORT\)"):
        listen_for_operators(Settings(metrics_port=taken))


def test_without_a_set_port_for_operators_a_free_one_is_taken(taken: int) -> None:
    settings = Settings(metrics_port=taken)
    settings.model_fields_set.discard("metrics_port")  # as if it were the default
    with listen_for_operators(settings) as listener:
        assert listener.getsockname()[1] not in (0, taken)


@pytest.mark.parametrize("listen", [listen_for_clients, listen_for_operators])
def test_a_host_that_is_not_an_address_is_an_error(listen: Callable[[Settings], socket.socket]) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 999\.0\.0\.1 port"):
        listen(Settings(host="999.0.0.1", port=0, metrics_port=0))
