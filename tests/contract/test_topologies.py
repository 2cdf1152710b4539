"""Redis as users have it: URLs, TLS, sentinels, and a cluster whose slots move and whose nodes die.

What these have in common with one server the contract suite tests; here is what each has of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.connection import parse_url
from redis.crc import key_slot

from penstock.errors import ConfigError, StoreUnavailable
from penstock.event import Done
from penstock.job import Job
from penstock.transports.redis import RedisTransport, keys
from penstock.transports.redis.driver.cluster import slot_of
from penstock.transports.redis.driver.connection import ServerConnection
from penstock.transports.redis.driver.endpoint import Endpoint, Kind, parse
from penstock.transports.redis.driver.link import NoMetrics
from penstock.transports.redis.keys import PoolKeys
from penstock.transports.redis.rights import name_of, needed
from tests.support.servers import free_port
from tests.support.stores import LONG_LEASE_S, Listener, RedisStore, new_job, new_worker, run_one, tokens
from tests.support.topologies import (
    SERVICE,
    Cluster,
    NotHere,
    Topology,
    make_certificate,
    start_cluster,
    start_sentinel,
    start_tls,
    until,
)
from tests.support.waiting import LONG_S, wait_until, wait_until_async

QUEUE = "inference:queue"

# ── URLs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.text("ab{}:", max_size=8))
def test_slots_are_those_of_redis_py(key: str) -> None:
    assert slot_of(key) == key_slot(key.encode())


@given(
    st.sampled_from(["redis", "rediss"]),
    st.text(max_size=6),
    st.text(max_size=6),
    st.from_regex(r"[a-z0-9][a-z0-9.-]{0,9}", fullmatch=True),
    st.integers(1, 65535) | st.none(),
    st.integers(0, 15) | st.none(),
    st.integers(0, 15) | st.none(),
)
def test_urls_mean_what_they_mean_to_redis_py(
    scheme: str, user: str, password: str, host: str, port: int | None, db: int | None, also_db: int | None
) -> None:
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    url = f"{scheme}://{login}{host}" + (f":{port}" if port else "") + (f"/{db}" if db is not None else "")
    url += f"?db={also_db}" if also_db is not None else ""
    theirs = dict(parse_url(url))
    ours = parse(url).known[0]
    assert (ours.host, ours.port, ours.db) == (theirs["host"], theirs.get("port", 6379), theirs.get("db", 0))
    assert (ours.username, ours.password) == (theirs.get("username"), theirs.get("password"))
    assert (ours.tls is not None) == ("connection_class" in theirs)


def test_urls_are_parsed() -> None:
    one = parse("redis://me:p%40ss@h/3")
    assert (one.kind, one.known) == ("single", (Endpoint("h", 6379, db=3, username="me", password="p@ss"),))
    assert parse("unix:///run/redis.sock?db=2").known[0] == Endpoint(path="/run/redis.sock", db=2)

    guarded = parse("redis+sentinel://me:p%40ss@a:1,[::1]:2,c/the-service/4?sentinel_password=other")
    assert (guarded.kind, guarded.service) == ("sentinel", "the-service")
    assert [str(sentinel) for sentinel in guarded.known] == ["a:1", "::1:2", "c:26379"]
    assert {(sentinel.username, sentinel.password, sentinel.db) for sentinel in guarded.known} == {(None, "other", 0)}
    assert guarded.master.at("m", 9) == Endpoint("m", 9, db=4, username="me", password="p@ss", is_master=True)

    spread = parse("rediss+cluster://:pw@a:1,b?ssl_cert_reqs=none")
    assert (spread.kind, [str(node) for node in spread.known]) == ("cluster", ["a:1 (TLS)", "b:6379 (TLS)"])
    assert spread.known[1].password == "pw"
    assert "pw" not in repr(spread)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+cluster://a:1,b:2/3", "one database"),
        ("redis+cluster://a:1?db=3", "database 0"),
        ("redis+cluster://a:1,,b:2", "a host is missing"),
        ("redis+sentinel://a:1", "the name of the service"),
        ("redis+sentinel://a:1/s/three", "must be a number"),
        ("redis+other://a:1/s", "sentinel or cluster"),
        ("redis://a/three", "must be a number"),
        ("redis://a?sentinel_password=x", "no such option: sentinel_password"),
        ("redis://a?socket_timeout=1", "no such option: socket_timeout"),
        ("rediss://a?ssl_cert_reqs=perhaps", "ssl_cert_reqs"),
        ("rediss://a?ssl_ca_certs=/no/such.pem", "No such file"),
        ("redis://:hunter2/x@a", "the forms are"),
        ("redis+cluster://:hunter2/x@a:1,b:2", "a host is missing"),
    ],
)
def test_invalid_urls_are_refused(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match="the Redis URL cannot be read") as caught:
        parse(url)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _tls(*options: str) -> Iterator[Topology]:
    try:
        topology = start_tls(*options)
    except NotHere as error:
        pytest.skip(str(error))
    yield topology
    topology.stop()


@pytest.fixture
def tls() -> Iterator[Topology]:
    yield from _tls()


@pytest.fixture
def mutual_tls() -> Iterator[Topology]:
    yield from _tls("--tls-auth-clients", "yes")


async def _tick(url: str) -> None:
    transport = RedisTransport(url)
    try:
        await transport.tick("g1")
    finally:
        await transport.close()


async def test_a_stranger_s_certificate_is_refused(tls: Topology, tmp_path: Path) -> None:
    bare = tls.url.partition("?")[0]
    await _tick(tls.url)
    await _tick(tls.url.replace("127.0.0.1", "localhost"))
    await _tick(f"{bare}?ssl_cert_reqs=none")
    with pytest.raises(StoreUnavailable, match="certificate verify failed"):
        await _tick(bare)
    other, _ = make_certificate(tmp_path)
    with pytest.raises(StoreUnavailable, match="certificate verify failed"):
        await _tick(f"{bare}?ssl_ca_certs={other}")
    with pytest.raises(StoreUnavailable):  # a plain connection to a port that speaks TLS
        await _tick(bare.replace("rediss", "redis"))


async def test_a_certificate_of_the_client(mutual_tls: Topology) -> None:
    with pytest.raises(StoreUnavailable):
        await _tick(mutual_tls.url)
    cert = mutual_tls.url.partition("ssl_ca_certs=")[2]
    await _tick(f"{mutual_tls.url}&ssl_certfile={cert}&ssl_keyfile={cert.replace('cert.pem', 'key.pem')}")


# ── one server, and sentinels ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_subscription_does_not_stay_at_a_demoted_master(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    listener = await Listener().listen(transport)
    client.slaveof("127.0.0.1", 1)
    try:
        with pytest.raises(StoreUnavailable, match="READONLY"):
            await transport.tick("g1")
        await wait_until(lambda: listener.num_resets == 1 and transport.is_listening, "a new subscription")
    finally:
        client.slaveof()
    await transport.tick("g1")


async def test_a_wait_is_woken_when_its_master_is_none_any_more(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    waiting = asyncio.create_task(transport.wait("w1", 5.0))
    await wait_until(lambda: "blmove" in {c["cmd"] for c in client.client_list()}, "the worker to wait")
    client.slaveof("127.0.0.1", 1)
    try:
        with pytest.raises(StoreUnavailable, match="UNBLOCKED"):
            await asyncio.wait_for(waiting, 4.0)  # earlier than the 5 s of the pop
    finally:
        client.slaveof()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "replaced"])
async def test_a_failover_by_sentinel(is_killed: bool) -> None:
    """A master that is replaced and lives is the worse case: it takes writes for 8 s more, and all of them are lost."""
    site = await asyncio.to_thread(start_sentinel)
    transport = RedisTransport(site.url, lease_s=LONG_LEASE_S)
    try:
        listener = await Listener().listen(transport)
        await transport.enlist(new_worker("w1"))
        first, before = new_job(), site.master_port
        await transport.submit(first, "g1", 0)
        replica = ServerConnection(Endpoint(port=site.servers[1].port, is_master=True), "test", NoMetrics())
        with pytest.raises(StoreUnavailable, match="is not a master"):
            await replica.connect()
        assert site.masters[0].wait(1, 2000) == 1  # what the replica has not heard of is lost
        if is_killed:
            site.servers[0].process.kill()
        else:
            with site.sentinel as sentinel:
                sentinel.sentinel_failover(SERVICE)
        await asyncio.to_thread(until, lambda: site.master_port != before, "the sentinel to promote the replica")

        promoted = site.client(1)

        async def is_back() -> bool:
            try:
                await transport.tick("g1")
            except StoreUnavailable:
                return False
            is_there = promoted.zscore(transport._redis.pool.gateways, "g1") is not None
            return is_there and listener.num_resets >= 1 and transport.is_listening

        await wait_until_async(is_back, "the new master to be found")
        promoted.close()
        claim = await run_one(transport, "w1", first.id)
        await transport.emit("w1", [Done(first.id, claim.attempt, 0, finish_reason="stop")])
        await wait_until(lambda: listener.events and isinstance(listener.events[-1], Done), "the end to be heard")
    finally:
        await transport.close()
        site.stop()


async def test_no_sentinel_knows_the_master() -> None:
    transport = RedisTransport(f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{free_port()}/front")
    with pytest.raises(StoreUnavailable, match="no sentinel names the master of 'front'"):
        await transport.open()
    await transport.close()


# ── a cluster ────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.from_regex(r"[A-Za-z0-9._-]{0,64}", fullmatch=True), st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True))
def test_a_script_touches_one_slot(pool_name: str, id_: str) -> None:
    pool = PoolKeys(pool_name)
    of_pool = [pool.queue, pool.workers, pool.gateways, pool.about, pool.clock, pool.dead, pool.worker(id_)]
    of_request = [keys.job(id_), keys.log(id_), keys.channel(id_)]
    for names in (of_pool, of_request):
        assert len({key_slot(name.encode()) for name in names}) == 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Slots move in it: each test has a pool of its own."""
    site = start_cluster()
    yield site
    site.stop()


_pools = count(1)


@pytest.fixture
async def transport(cluster: Cluster) -> AsyncIterator[RedisTransport]:
    transport = RedisTransport(cluster.url, lease_s=LONG_LEASE_S, pool=f"p{next(_pools)}")
    await transport.open()
    await transport.enlist(new_worker("w1"))
    yield transport
    await transport.close()


def _has_heard(listener: Listener, num: int, kind: type = object) -> bool:
    return sum(isinstance(event, kind) for event in listener.events) == num


def _elsewhere(cluster: Cluster, key: str) -> int:
    return (cluster.owner(key) + 1) % 3


def _jobs_at(cluster: Cluster, node: int, num: int, *, is_there: bool = True) -> list[Job]:
    """New jobs whose keys lie at this node, or at the others."""
    made = (new_job() for _ in range(1000))
    return list(islice((job for job in made if (cluster.owner(keys.job(job.id)) == node) == is_there), num))


async def test_requests_are_spread_over_all_nodes_and_received_from_all(
    cluster: Cluster, transport: RedisTransport
) -> None:
    listeners = [await Listener().listen(transport)]
    others = [RedisTransport(cluster.url) for _ in range(3)]  # each listens at another node, mostly
    for other in others:
        listeners.append(await Listener().listen(other))
    jobs = [new_job() for _ in range(30)]
    for place, job in enumerate(jobs, 1):
        assert await transport.submit(job, "g1", 30) == place
    assert {cluster.owner(keys.job(job.id)) for job in jobs} == {0, 1, 2}
    for job in jobs:
        assert cluster.masters[cluster.owner(keys.job(job.id))].exists(keys.job(job.id))
    ids = await transport.take("w1", 30)
    claims = await transport.claim("w1", ids)
    assert [claim.job.id for claim in claims] == ids == [job.id for job in jobs]
    assert await transport.emit("w1", [tokens(claim, 0, "a") for claim in claims]) == set()
    ends = [Done(claim.job.id, claim.attempt, 1, finish_reason="stop") for claim in claims]
    assert await transport.emit("w1", ends) == set()
    for listener in listeners:
        await wait_until(partial(_has_heard, listener, 90), "every event at every node")
    assert await transport.take("w1", 0) == []
    for other in others:
        await other.close()


async def test_large_objects_are_read_on_connections_of_their_own(cluster: Cluster, transport: RedisTransport) -> None:
    store = transport._redis
    for job in _jobs_at(cluster, 0, 1) + _jobs_at(cluster, 1, 1):
        name = keys.job(job.id)
        assert store._routes.bulk(name) is store._routes.bulk(name) is not store.conn(name)


async def test_a_slot_that_has_moved_is_followed(cluster: Cluster, transport: RedisTransport) -> None:
    pool = transport._redis.pool
    job, waiting = new_job(), asyncio.create_task(transport.wait("w1", 8.0))
    await transport.submit(job, "g1", 0)
    await waiting
    (claim,) = await transport.claim("w1", [job.id])
    waiting = asyncio.create_task(transport.wait("w1", 8.0))
    to_queue, to_job = _elsewhere(cluster, pool.queue), _elsewhere(cluster, keys.job(job.id))
    cluster.begin_move(pool.queue, to_queue)
    cluster.end_move(pool.queue, to_queue)  # while a worker waits there
    cluster.begin_move(keys.job(job.id), to_job)
    cluster.end_move(keys.job(job.id), to_job)
    assert await transport.emit("w1", [tokens(claim, 0, "a")]) == set()
    assert not (await transport.renew(new_worker("w1"), [job.id])).gone
    assert await transport.emit("w1", [Done(job.id, claim.attempt, 1, finish_reason="stop")]) == set()
    next_ = new_job()
    assert await transport.submit(next_, "g1", 1) == 1
    await asyncio.wait_for(waiting, LONG_S)  # it has followed the queue
    await wait_until_async(lambda: _holds(transport, [next_.id]), "the first job to be off the list")
    assert cluster.masters[to_queue].exists(pool.worker("w1"))


async def _holds(transport: RedisTransport, ids: list[str]) -> bool:
    return await transport.take("w1", 0) == ids


async def test_a_slot_that_is_on_its_way_is_asked_for_at_both_ends(cluster: Cluster, transport: RedisTransport) -> None:
    job = new_job()
    await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", job.id)
    key, log = keys.job(job.id), keys.log(job.id)
    to = _elsewhere(cluster, key)
    cluster.begin_move(key, to)
    assert await transport.emit("w1", [tokens(claim, 0, "a")]) == set()  # still at the old one
    cluster.carry(key, to=to)
    finishing = asyncio.create_task(
        transport.emit("w1", [Done(job.id, claim.attempt, 1, finish_reason="stop")])
    )  # hash and log are apart: TRYAGAIN
    await asyncio.sleep(0.1)
    assert not finishing.done()
    cluster.carry(log, to=to)  # both are at the new one, which serves them to who was sent there: ASK
    assert await finishing == set()
    record = await transport.read(job.id)
    assert record is not None
    assert record.state == "done"
    cluster.end_move(key, to)
    again = await transport.read(job.id)
    assert again is not None
    assert again.events == record.events
    assert cluster.masters[to].exists(key)


async def test_a_url_of_the_wrong_topology_is_an_error(cluster: Cluster, real: RedisStore) -> None:
    with pytest.raises(StoreUnavailable, match="cluster support disabled"):
        await _tick(real.url.replace("redis://", "redis+cluster://"))
    wrong = next(server for i, server in enumerate(cluster.servers) if i != cluster.owner(QUEUE))
    with pytest.raises(StoreUnavailable, match=r"redis\+cluster://"):
        await _tick(wrong.url)


@pytest.mark.timeout(30)
async def test_the_death_of_one_node_is_not_the_death_of_the_others() -> None:
    """Without a replica, and without full coverage: what is elsewhere goes on."""
    site = await asyncio.to_thread(start_cluster, "--cluster-require-full-coverage", "no")
    transport = RedisTransport(site.url, lease_s=LONG_LEASE_S)
    try:
        victim = _elsewhere(site, QUEUE)
        listeners = [await Listener().listen(transport)]
        others = [RedisTransport(site.url) for _ in range(5)]
        listeners += [
            await Listener().listen(other) for other in others
        ]  # one of them at least is at the node that dies
        await transport.enlist(new_worker("w1"))
        doomed, safe = _jobs_at(site, victim, 4), _jobs_at(site, victim, 8, is_there=False)
        for job in (*doomed[:2], *safe[:4], *doomed[2:], *safe[4:]):
            await transport.submit(job, "g1", 0)
        ids = await transport.take("w1", 12)
        claims = await transport.claim("w1", ids[:6])
        site.servers[victim].process.kill()
        site.servers[victim].process.wait()
        lost = {job.id for job in doomed}

        renewal = await transport.renew(new_worker("w1"), ids[:6])
        assert (renewal.is_lost, renewal.gone, set(renewal.held)) == (False, (), set(ids))
        more = await transport.claim("w1", ids[6:])
        assert {claim.job.id for claim in more} == set(ids[6:]) - lost
        alive = [claim for claim in claims + more if claim.job.id not in lost]
        assert await transport.emit("w1", [tokens(claim, 0, "a") for claim in alive]) == set()
        with pytest.raises(StoreUnavailable):
            await transport.emit("w1", [tokens(claim, 0, "a") for claim in claims])
        await wait_until(
            lambda: transport.is_listening and all(other.is_listening for other in others),
            "every listener to be at a node that lives",
        )
        ends = [Done(claim.job.id, claim.attempt, 1, finish_reason="stop") for claim in alive]
        assert await transport.emit("w1", ends) == set()
        for listener in listeners:
            await wait_until(partial(_has_heard, listener, len(ends), Done), "the ends of all that live")
        for other in others:
            await other.close()
    finally:
        await transport.close()
        site.stop()


# ── a user with exactly the rights that are listed ───────────────────────────────────────────────────────────────────


def _limit(site: Topology, kind: Kind, servers: range) -> str:
    """A user on these servers who may do what `rights` lists and no more; the URL for that user."""
    rules = ["~inference:*", "~{inference:*", "&*"]
    rules += dict.fromkeys(f"+{name_of(words).lower()}" for words in needed(PoolKeys(), kind))
    for index in servers:
        with site.client(index) as client:
            client.execute_command("ACL", "SETUSER", "app", "reset", "on", ">pw", *rules)
    return site.url.replace("//", "//app:pw@")


async def _answer_one(transport: RedisTransport) -> None:
    listener = await Listener().listen(transport)
    await transport.enlist(new_worker("w1"))
    await transport.watch("w1", lambda job_id, reason: None)
    await transport.tick("g1")
    job = new_job()
    await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", job.id)
    await transport.emit("w1", [tokens(claim, 0, "a")])
    assert not (await transport.renew(new_worker("w1"), [job.id])).is_lost
    assert await transport.emit("w1", [Done(job.id, claim.attempt, 1, finish_reason="stop")]) == set()
    await wait_until(lambda: listener.events and isinstance(listener.events[-1], Done), "its end is heard")


@pytest.mark.timeout(60)
async def test_the_rights_listed_suffice_behind_sentinels() -> None:
    site = start_sentinel()
    transport = RedisTransport(_limit(site, "sentinel", range(2)))
    try:
        await _answer_one(transport)
        site.sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)  # type: ignore[no-untyped-call]
        until(lambda: site.master_port == site.servers[1].port, "the other server to be the master")

        async def answers() -> bool:
            try:
                await _answer_one(transport)
            except (StoreUnavailable, AssertionError, ValueError):  # what the old master has just taken is lost with it
                return False
            return True

        await wait_until_async(answers, "the new master is used")
    finally:
        await transport.close()
        site.stop()


@pytest.mark.timeout(60)
async def test_the_rights_listed_suffice_on_a_cluster() -> None:
    site = start_cluster()
    transport = RedisTransport(_limit(site, "cluster", range(3)))
    try:
        for _ in range(5):  # at several nodes
            await _answer_one(transport)
        await transport.submit(first := new_job(), "g1", 0)
        source, to = site.owner(QUEUE), (site.owner(QUEUE) + 1) % 3
        site.begin_move(QUEUE, to)
        with site.client(source) as client:
            held = [name for name in client.scan_iter() if QUEUE in name]
        site.carry(*held, to=to)
        await transport.submit(job := new_job(), "g1", 0)  # the source says ASK for what it has not any more
        site.end_move(QUEUE, to)
        assert await transport.waiting() == [first.id, job.id]
    finally:
        await transport.close()
        site.stop()
