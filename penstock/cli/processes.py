"""`penstock serve`, `gateway` and `worker`: settings in, a running process out."""

from __future__ import annotations

from penstock.cli.flags import new_app, with_settings
from penstock.cli.help import PlainCommand
from penstock.errors import ConfigError
from penstock.settings import Settings
from penstock.settings.about import env_name, flag_name


@with_settings("serve")
def serve(settings: Settings) -> int:
    """Gateway and worker in one process: in memory, or on Redis with --redis-url."""
    from penstock.processes.serve import run_serve

    return run_serve(settings)


@with_settings("gateway")
def gateway(settings: Settings) -> int:
    """The HTTP API alone, on Redis; as many as you like."""
    _need_redis(settings, "gateway")
    from penstock.processes.gateway import run_gateway

    return run_gateway(settings)


@with_settings("worker")
def worker(settings: Settings) -> int:
    """A worker alone, on Redis; as many as you like."""
    _need_redis(settings, "worker")
    if settings.supervised:
        from penstock.processes.worker_parent import run_supervised

        return run_supervised(settings)
    from penstock.processes.worker import run_worker

    return run_worker(settings)


app = new_app()
for command in (serve, gateway, worker):
    app.command(cls=PlainCommand)(command)


def _need_redis(settings: Settings, command: str) -> None:
    if settings.redis_url is None:
        raise ConfigError(
            f"{env_name('redis_url')} is not set: a {command} needs Redis "
            f"({flag_name('redis_url')} redis://HOST:6379). "
            "For everything in one process, without Redis: penstock serve"
        )
