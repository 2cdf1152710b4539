"""The JSON answers of `ops` as types, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from penstock.http.openapi import OPTIONAL, AnswerModel


class Liveness(AnswerModel):
    """The process runs."""

    status: Literal["alive"]


class Readiness(AnswerModel):
    """The process can serve. `reasons`: of one that is `degraded`, what it cannot do meanwhile."""

    status: Literal["ready", "degraded"]
    reasons: list[str] = OPTIONAL


class HealthSummary(AnswerModel):
    """`reasons`: why it is `degraded`. `id`: of the process."""

    status: Literal["ok", "degraded"]
    reasons: list[str]
    id: str


class VersionAnswer(AnswerModel):
    """The version of Penstock."""

    version: str
