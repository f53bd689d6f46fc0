"""The shapes of the API's answers, as OpenAPI tells them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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


Probability = Annotated[float, Field(ge=0, le=1)]


class ReportFile(BaseModel):
    """The file: width and height as it is shown, in pixels; of a video the seconds analysed."""

    name: str
    sha256: str
    kind: Literal["image", "video"]
    width: int
    height: int
    seconds: float | None


class Band(BaseModel):
    """The grey band of a score: below ``low`` nothing was found, from ``high`` on signs."""

    low: Probability
    high: Probability


class Thresholds(BaseModel):
    """The grey band of each of the two scores."""

    swap: Band
    generated: Band


class ReportModel(BaseModel):
    """The network that looked."""

    name: str
    version: str
    thresholds: Thresholds


class Sighting(BaseModel):
    """A person in one frame; one that is not usable counts for nothing, for the reason given."""

    time: float
    box: Annotated[list[float], Field(min_length=4, max_length=4)] = Field(
        description="left, top, right, bottom in pixels; may reach over the edge"
    )
    swap: Probability
    generated: Probability
    score: Probability = Field(description="the higher of the two")
    usable: bool
    reason: str | None


class Person(BaseModel):
    """A face, in a video one that was followed; the scores are null where no sighting counts."""

    id: int
    verdict: Verdict
    score: Probability | None
    swap: Probability | None
    generated: Probability | None
    reasons: list[str]
    frames: list[Sighting]


class ReportFrame(BaseModel):
    """A frame that was looked at."""

    time: float
    faces: int


class Seconds(BaseModel):
    """How long each step took."""

    decode: float
    detect: float
    classify: float
    total: float


class Bounds(BaseModel):
    """What bounded this look: frames, seconds of a video, the smallest face that is judged."""

    frames: int
    seconds: float
    face: float | None = None


class Report(BaseModel):
    """The verdict on a file with all that it rests on."""

    file: ReportFile
    model: ReportModel
    verdict: Verdict
    reasons: list[str]
    persons: list[Person]
    frames: list[ReportFrame]
    seconds: Seconds
    limits: Bounds


class Result(BaseModel):
    """A report and where its pictures are."""

    report: Report
    pictures: list[Picture]


class Model(BaseModel):
    """A network; ``ms`` was measured for one face on one thread, ``figures`` on our own data."""

    model_config = ConfigDict(extra="allow")

    name: str
    title: str
    params: int
    macs: int
    bytes: int
    ms: float | None
    thresholds: Thresholds
    figures: dict[str, Any] = Field(default_factory=dict)


class Models(BaseModel):
    """The networks to choose from, with their measured figures."""

    version: str
    default: str
    models: list[Model]


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
