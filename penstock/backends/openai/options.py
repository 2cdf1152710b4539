"""From the backend's options to tiers and declarations. Raises `ValueError` that names the option.

An option never contains a key, only the name of the environment variable that holds it; no message repeats a URL,
since URLs may contain secrets all the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import httpx2

from penstock.backends.base import OPTIONAL_FIELDS
from penstock.backends.openai.breaker import Breaker
from penstock.backends.openai.engines import ENGINES, EngineName, Resume
from penstock.backends.openai.replicas import Replica, Tier
from penstock.backends.openai.tokenizer import FORMS
from penstock.extras import problem_of
from penstock.tasks import SCORE, TASKS

# Where images may be: what the engines are known to take, any URL, in the request itself, or nowhere.
Images = Literal["engine", "any", "data", "none"]

KINDS = ("generate", "embed", SCORE)
NO_CHECK = "none"
ENGINE = "engine"  # in `accepts`: the fields that the engines are known to honour
MAX_REPLICAS = 64  # of one tier; each is a label of metrics

_IMAGES: dict[Images, tuple[str, ...]] = {"any": ("images", "image_urls"), "data": ("images",), "none": ()}
_NEXT_URL = re.compile(r"\+(?=https?://)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Upstream:
    """A row of the table `upstreams`: one server, or replicas of it whose URLs are joined by `+`. It becomes a tier.

    `model`: the upstream's name for the model, "" for ours. `key_env`: the environment variable with the key. `slots`:
    requests at one replica at once, None for any number. Raises `ValueError` that begins with the field's name.
    """

    url: str
    model: str = ""
    key_env: str = ""
    engine: EngineName = "any"
    slots: int | None = None

    def __post_init__(self) -> None:
        if not self.url:
            raise ValueError("url is missing")
        if self.slots is not None and self.slots < 1:
            raise ValueError("slots must be at least 1")
        _urls(self.url)
        _read_key(self.key_env)


def build_tiers(upstreams: Sequence[Upstream], *, health: str, max_failures: int, eject_s: float) -> list[Tier]:
    """A tier for each upstream, in order. `health`: a path instead of the engines' own, "none" for no checks."""
    if health not in ("", NO_CHECK) and not health.startswith("/"):
        raise ValueError("health must be a path that begins with /, or none")
    if not upstreams:
        raise ValueError("upstreams is empty: at least one with a url is needed")
    tiers: list[Tier] = []
    seen: dict[str, int] = {}
    for number, upstream in enumerate(upstreams, 1):
        engine = ENGINES[upstream.engine]
        has_check = health != NO_CHECK and bool(health or engine.health)
        replicas = []
        for url in _urls(upstream.url):
            breaker = Breaker(max_failures, eject_s, max(eject_s, 30.0), has_check=has_check)
            replicas.append(Replica(_name(url, seen), str(url), breaker, upstream.slots))
        tiers.append(Tier(number, replicas, engine, upstream.model, _read_key(upstream.key_env)))
    return tiers


def read_accepts(
    text: str, tiers: Sequence[Tier], *, embeds: bool = False, images: Images = "engine"
) -> tuple[str, ...]:
    """The fields that every tier honours, extras behind the others; what the operator declares counts more than what is
    known of engines. `engine` in `text` is what is known of them.

    `dimensions` of an embedding depends on the upstream's model: its own 400 is passed on.
    """
    names = set(text.split("+") if text else (ENGINE,))
    if ENGINE in names:
        names.remove(ENGINE)
        names.update(set.intersection(*(set(tier.engine.accepts) for tier in tiers)))
    for name in sorted(names):
        if problem := problem_of(name, OPTIONAL_FIELDS):
            raise ValueError(f"accepts: {name} {problem}")
    if images != "engine":
        names = names - {"images", "image_urls"} | set(_IMAGES[images])
    if embeds:
        names.add("dimensions")
    return (*(name for name in OPTIONAL_FIELDS if name in names), *sorted(names.difference(OPTIONAL_FIELDS)))


def read_kinds(text: str, tiers: Sequence[Tier]) -> frozenset[str]:
    """The model's abilities: `generate`, `embed`, `score`, joined by `+`; `both`: two of them. Raises `ValueError`."""
    names = ["generate", "embed"] if text == "both" else text.split("+")
    if not set(names) <= set(KINDS):
        raise ValueError(f"task must be {', '.join(KINDS)}, some of them joined by +, or both")
    for tier in tiers:
        if SCORE in names and not tier.engine.scores:
            raise ValueError(f"task={SCORE}: the engine of upstream {tier.number} has no route for scores")
    return frozenset(names)


def read_tasks(kinds: frozenset[str], tiers: Sequence[Tier], *, has_tokenizer: bool) -> tuple[str, ...]:
    """The tasks that every tier has, besides to generate and to embed."""
    forms = [FORMS[tier.engine.tokenizer] for tier in tiers] if has_tokenizer else [FORMS[""]]
    return tuple([name for name in TASKS if name in kinds or all(name in form.tasks for form in forms)])


def read_resumes(text: str, tiers: Sequence[Tier]) -> frozenset[Resume]:
    """The forms in which an answer may continue, as declared. Raises `ValueError` if a tier's engine cannot do it."""
    known = get_args(Resume)
    names = [] if text in ("", "no") else text.split("+")
    if not set(names) <= set(known):
        raise ValueError(f"resumes must be no, or some of {'+'.join(known)}")
    for tier in tiers:
        for name in names:
            if name not in tier.engine.continues:
                raise ValueError(f"resumes={name}: the engine of upstream {tier.number} cannot go on from that")
    return frozenset(name for name in known if name in names)


def _urls(text: str) -> list[httpx2.URL]:
    parts = _NEXT_URL.split(text)
    if len(parts) > MAX_REPLICAS:
        raise ValueError(f"url: more than {MAX_REPLICAS} replicas")
    urls = []
    for part in parts:
        try:
            url = httpx2.URL(part.strip())
        except httpx2.InvalidURL:
            raise ValueError("url is not a URL") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("url must be http:// or https:// URLs, joined by +")
        if url.userinfo or url.fragment:
            raise ValueError("url: no user, password or # in it; key_env names the variable that holds a key")
        # As in every engine, the API is at /v1 unless a path is given.
        urls.append(url.copy_with(path="/v1") if url.path in ("", "/") else url)
    return urls


def _name(url: httpx2.URL, seen: dict[str, int]) -> str:
    """Host and port, with a number where the same server is listed twice (e.g. two models of a hosted API)."""
    name = url.netloc.decode("ascii")
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}#{seen[name]}"


def _read_key(variable: str) -> str:
    """The key. No message repeats the option's value: it may be a key, given instead of its variable's name."""
    if not variable:
        return ""
    if not _VARIABLE.fullmatch(variable):
        raise ValueError("key_env must be the name of an environment variable that holds the key")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError("key_env names an environment variable that is not set")
    if not _KEY.fullmatch(key):
        raise ValueError("key_env: what is in that variable cannot stand in a header")
    return key
