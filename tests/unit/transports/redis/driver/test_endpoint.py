"""The form of a Redis URL is looked at twice: by the settings, which name the variable, and by the driver."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from penstock.errors import ConfigError
from penstock.settings import Settings
from penstock.transports.redis.driver.endpoint import parse

GOOD = [
    *("redis://h", "redis://u:p@h:1/2", "rediss://[::1]:6380", "unix:///run/redis.sock"),
    *(
        "redis+sentinel://u:p@a:1,b/s/2",
        "rediss+sentinel://a/s",
        "redis+cluster://:p@a:1,[::1]:2",
        "rediss+cluster://a",
    ),
]
BAD = [
    *("http://h", "h:6379", "redis://h:port", "redis://[h", "ftp+cluster://a:1"),
    *("redis+sentinel://a:1", "redis+cluster://", "redis+cluster://a:1,b:port", "redis+more://a:1/s"),
]


@pytest.mark.parametrize("url", GOOD)
def test_both_take_each_form(url: str) -> None:
    assert Settings(redis_url=SecretStr(url)).redis_url is not None
    parse(url)


@pytest.mark.parametrize("url", BAD)
def test_neither_takes_another(url: str) -> None:
    with pytest.raises(ValueError, match=r"Redis URL|[Pp]ort|IPv6"):
        Settings(redis_url=SecretStr(url))
    with pytest.raises(ConfigError, match="the Redis URL cannot be read"):
        parse(url)
