"""Redis as users have it: with TLS and a password, behind sentinels, as a cluster. All on free ports, ended by pid.

Any server that `tests/support/servers.py` finds will do, but for TLS, which not every build has.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from tests.support.servers import PATIENT_S, Server, find_servers, free_port, start_server

SERVICE = "front"
PASSWORD = "s3cret/with:signs"
WITHIN_S = 60.0
PROMPT = ("--repl-diskless-sync-delay", "0")  # a first replica need not wait for others


class NotHere(RuntimeError):
    """This machine has no such server; the message says what was tried."""


def until(is_true: Callable[[], Any], message: str, timeout_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if is_true():
                return
        except redis.ConnectionError:
            pass  # not there yet, or not there any more: the deadline ends it
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s: {message}"
        time.sleep(0.01)  # polling with a deadline; there is nothing to wait on in another process


@dataclass(slots=True, eq=False)
class Topology:
    """Servers that are one store. `url` is what Penstock gets; `clients` are for looking at each server with keys."""

    url: str
    servers: list[Server]
    masters: list[redis.Redis] = field(default_factory=list)
    directory: tempfile.TemporaryDirectory[str] | None = None

    def client(self, index: int) -> redis.Redis:
        """To one of the `servers`, a replica for example."""
        return _client(self.servers[index])

    def flush(self) -> None:
        for client in self.masters:
            client.flushall()

    def stop(self) -> None:
        for client in self.masters:
            client.close()
        for server in self.servers:
            server.stop()
        if self.directory is not None:
            self.directory.cleanup()


@contextmanager
def _stopped_if_it_fails(topology: Topology) -> Iterator[None]:
    try:
        yield
    except BaseException:
        topology.stop()
        raise


def _client(server: Server) -> redis.Redis:
    return redis.Redis(
        port=server.port,
        password=server.password or None,
        decode_responses=True,
        socket_timeout=PATIENT_S,
        socket_connect_timeout=PATIENT_S,
    )


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A throw-away certificate for this machine, its own authority, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise NotHere("no openssl on PATH to make a certificate with")
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", "/CN=penstock tests", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-addext", "keyUsage=critical,digitalSignature,keyCertSign", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def start_tls(*options: str) -> Topology:
    """One server with TLS and a password, and a plain port beside it for the test. `NotHere` if none can do TLS."""
    directory = tempfile.TemporaryDirectory(prefix="penstock-tls-")
    cert, key = make_certificate(Path(directory.name))
    port, said = free_port(), []
    files = ("--tls-cert-file", str(cert), "--tls-key-file", str(key), "--tls-ca-cert-file", str(cert))
    tls = ("--tls-port", str(port), *files, *(options or ("--tls-auth-clients", "no")))
    for name in find_servers():
        try:
            server = start_server(name, *tls, password=PASSWORD)
        except RuntimeError as error:
            said.append(str(error))
            continue
        quoted = PASSWORD.replace("/", "%2F").replace(":", "%3A")
        url = f"rediss://:{quoted}@127.0.0.1:{port}?ssl_ca_certs={cert}"
        return Topology(url, [server], [_client(server)], directory)
    directory.cleanup()
    raise NotHere(f"no server here can do TLS: {'; '.join(said)}")


# ── Sentinel ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True, eq=False)
class Sentinel(Topology):
    """A master, a replica, and a sentinel; `url` names another one first, which is not there."""

    @property
    def sentinel(self) -> redis.Redis:
        return _client(self.servers[-1])

    @property
    def master_port(self) -> int:
        with self.sentinel as sentinel:
            address = _ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(address[1])


def start_sentinel() -> Sentinel:
    site = Sentinel("", [start_server(None, *PROMPT)])
    with _stopped_if_it_fails(site):
        first = site.servers[0]
        site.servers.append(start_server(None, "--replicaof", "127.0.0.1", str(first.port), *PROMPT))
        with _client(site.servers[1]) as replica:
            until(partial(_is_in_step, replica), "the replica to be in step")  # or the sentinel hears of it 10 s later
        site.servers.append(_start_sentinel(first))
        site.masters.append(_client(first))
        site.url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{site.servers[-1].port}/{SERVICE}"
        with site.sentinel as sentinel:
            until(partial(_knows_a_replica, sentinel), "the sentinel to know the replica")
    return site


def _start_sentinel(master: Server) -> Server:
    directory = tempfile.TemporaryDirectory(prefix="penstock-sentinel-")
    port, config = free_port(), Path(directory.name) / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {directory.name}\n"
        f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 1\n"
        f"sentinel down-after-milliseconds {SERVICE} 500\nsentinel failover-timeout {SERVICE} 3000\n"
    )
    process = subprocess.Popen(
        [find_servers()[master.name], str(config), "--sentinel"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    return Server(master.name, port, process, directory)


def _knows_a_replica(client: redis.Redis) -> bool:
    replicas = _ask(client, "SENTINEL", "REPLICAS", SERVICE)
    return any(replica["flags"] == "slave" and replica["master-link-status"] == "ok" for replica in replicas)


# ── Cluster ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True, eq=False)
class Cluster(Topology):
    """Three masters, then the replicas. `servers` are in this order."""

    def owner(self, key: str) -> int:
        """Which of the masters serves `key`, by the first drawing of the map."""
        return key_slot(key.encode()) * 3 // REDIS_CLUSTER_HASH_SLOTS

    def node_id(self, index: int) -> str:
        return str(_ask(_client(self.servers[index]), "CLUSTER", "MYID"))

    # How `redis-cli --cluster reshard` hands over a slot, in its three steps.

    def begin_move(self, key: str, to: int) -> None:
        slot, source = key_slot(key.encode()), self.owner(key)
        _ask(self.masters[to], "CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        _ask(self.masters[source], "CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(to))

    def carry(self, *keys: str, to: int) -> None:
        giver = self.masters[self.owner(keys[0])]
        _ask(giver, "MIGRATE", "127.0.0.1", self.servers[to].port, "", 0, 1000, "KEYS", *keys)

    def end_move(self, key: str, to: int) -> None:
        slot, source = key_slot(key.encode()), self.owner(key)
        while left := _ask(self.masters[source], "CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.carry(*left, to=to)
        for index in sorted(range(3), key=lambda index: (index != to, index != source)):
            _ask(self.masters[index], "CLUSTER", "SETSLOT", slot, "NODE", self.node_id(to))


def start_cluster(*options: str, replicas_of: Sequence[int] = ()) -> Cluster:
    """`replicas_of`: masters, by their numbers, that get a replica."""
    site = Cluster("", [])
    with _stopped_if_it_fails(site):
        for _ in range(3 + len(replicas_of)):
            site.servers.append(_start_node(*options))
        clients = [_client(server) for server in site.servers]
        site.masters += clients[:3]
        site.url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in site.servers[:3])
        _introduce(clients, [server.port for server in site.servers])
        for index, client in zip(replicas_of, clients[3:], strict=True):
            _ask(client, "CLUSTER", "REPLICATE", site.node_id(index))
            until(partial(_is_in_step, client), "a replica to be in step")
            client.close()
    return site


def _introduce(clients: list[redis.Redis], ports: list[int]) -> None:
    """A third of the slots to each of the first three, and everybody to everybody."""
    for epoch, client in enumerate(clients, 1):
        _ask(client, "CLUSTER", "SET-CONFIG-EPOCH", epoch)
    for index, client in enumerate(clients[:3]):
        first, last = (-(-REDIS_CLUSTER_HASH_SLOTS * i // 3) for i in (index, index + 1))
        _ask(client, "CLUSTER", "ADDSLOTSRANGE", first, last - 1)
    for client, port in list(zip(clients, ports, strict=True))[1:]:
        bus: Any = client.config_get("cluster-port")
        _ask(clients[0], "CLUSTER", "MEET", "127.0.0.1", port, bus["cluster-port"])
    everybody = {"cluster_state:ok", f"cluster_known_nodes:{len(clients)}"}
    for client in clients:
        until(partial(_says, client, everybody), "the nodes to know each other")


def _start_node(*options: str) -> Server:
    bus = ("--cluster-port", str(free_port()))
    return start_server(None, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", *PROMPT, *bus, *options)


def _ask(client: redis.Redis, *words: Any) -> Any:
    return client.execute_command(*words)  # type: ignore[no-untyped-call]  # redis-py has no types for it


def _says(client: redis.Redis, words: set[str]) -> bool:
    return words <= set(_ask(client, "CLUSTER", "INFO").split("\r\n"))


def _is_in_step(client: redis.Redis) -> bool:
    info: Any = client.info("replication")
    return bool(info["role"] == "slave" and info["master_link_status"] == "up")


# ── one of each ──────────────────────────────────────────────────────────────────────────────────────────────────────

KINDS: dict[str, Callable[[], Topology]] = {"tls": start_tls, "sentinel": start_sentinel, "cluster": start_cluster}


class Topologies:
    """One of each kind for a test session, started at its first use."""

    def __init__(self) -> None:
        self._running: dict[str, Topology] = {}

    def get(self, kind: str) -> Topology:
        if kind not in self._running:
            self._running[kind] = KINDS[kind]()
        return self._running[kind]

    def stop(self) -> None:
        for topology in self._running.values():
            topology.stop()
