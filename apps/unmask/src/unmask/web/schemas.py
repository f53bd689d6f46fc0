"""The shapes of the API's answers, as OpenAPI tells them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

State = Literal["queued", "running", "done", "failed", "cancelled"]
Verdict = Literal["signs of manipulation", "no sign found", "cannot say"]


class ErrorDetail(BaseModel):
    """Why a request was not carried out."""

    code: str = Field(description="a word for machines; it never changes its meaning")
    message: str = Field(description="one plain sentence for people")


class Error(BaseModel):
    """The answer to every request that is not carried out."""

    error: ErrorDetail


class Progress(BaseModel):
    """Frames looked at so far; ``total`` is 0 until it is known."""

    done: int
    total: int


class JobStatus(BaseModel):
    """Where a job stands."""

    id: str
    state: State
    progress: Progress
    model: str
    kind: Literal["image", "video"]
    expires_in: float | None = Field(
        description="seconds until an ended job is forgotten; null before its end"
    )
    error: ErrorDetail | None = None
    links: dict[str, str]


class BatchItem(BaseModel):
    """One file of a batch: its job, or why it was refused."""

    job: JobStatus | None = None
    error: ErrorDetail | None = None


class Batch(BaseModel):
    """The files of a batch in the order in which they were sent."""

    jobs: list[BatchItem]


class Picture(BaseModel):
    """A picture that goes with a report."""

    url: str = Field(description="an address, or a data: address where pictures were asked for")
    kind: Literal["thumbnail", "map"]
    index: int | None = Field(default=None, description="the frame a thumbnail shows")
    person: str | None = Field(default=None, description="the person a map belongs to")


class Result(BaseModel):
    """A report (see the README of unmask for its fields) and where its pictures are."""

    report: dict[str, Any]
    pictures: list[Picture]


class Models(BaseModel):
    """The networks to choose from, with their measured figures."""

    version: str
    default: str
    models: list[dict[str, Any]]


class Limits(BaseModel):
    """What is accepted."""

    image_bytes: int
    image_pixels: int
    video_bytes: int
    video_seconds: float
    frames: int
    batch: int
    keep_seconds: float
    types: list[str]


class Health(BaseModel):
    """Whether the server can work, and how much it has to do."""

    status: Literal["ok", "starting", "busy"]
    workers: int
    ready: int
    busy: int
    waiting: int
    replaced: int = Field(description="worker processes that were killed and started anew")
    files: int = Field(description="uploads that lie in the private folder now")


class Sample(BaseModel):
    """A picture or a video drawn by code, to try the page with."""

    name: str
    title: str
    kind: Literal["image", "video"]
    type: str
    url: str
