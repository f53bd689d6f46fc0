"""The REST API under /api/v1."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from unmask.media import ACCEPTED
from unmask.web import schemas
from unmask.web.desk import Desk
from unmask.web.engine import Outcome
from unmask.web.jobs import Job
from unmask.web.problems import Problem
from unmask.web.samples import Samples
from unmask.web.worker import Failure

PREFIX = "/api/v1"
TYPES = ACCEPTED.split(", ")
Id = Annotated[str, Path(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
LATER = {409, 429, 503}
LOCATION = {"Location": {"description": "where the job is", "schema": {"type": "string"}}}
NEVER_STORE = {"Cache-Control": "no-store"}


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _samples(request: Request) -> Samples:
    samples: Samples = request.app.state.samples
    return samples


TheDesk = Annotated[Desk, Depends(_desk)]
TheSamples = Annotated[Samples, Depends(_samples)]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    whole = {"type": "integer", "minimum": 1}
    later = {"Retry-After": {"description": "come back after these seconds", "schema": whole}}
    return {
        status: {"model": schemas.Error} | ({"headers": later} if status in LATER else {})
        for status in statuses
    }


def _body(several: bool = False) -> dict[str, Any]:
    one = {"type": "string", "format": "binary", "description": "a picture or a video"}
    file = {"type": "array", "items": one, "minItems": 1, "maxItems": 10} if several else one
    model = {"type": "string", "maxLength": 200, "description": "a name of GET /models"}
    schema = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": file, "model": model},
    }
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


UPLOAD_ERRORS = _errors(400, 403, 408, 413, 415, 422, 429, 500, 503)
router = APIRouter(prefix=PREFIX, responses=_errors(500))


@router.post(
    "/jobs",
    status_code=202,
    openapi_extra=_body(),
    responses={202: {"headers": LOCATION}, **UPLOAD_ERRORS},
    tags=["jobs"],
)
async def post_job(request: Request, response: Response, desk: TheDesk) -> schemas.JobStatus:
    """Queue one picture or video; answers at once with the job's id."""
    job = await desk.one(request)
    status = _status(job, desk)
    response.headers["Location"] = status.links["self"]
    return status


@router.get("/jobs/{id}", responses=_errors(404, 422), tags=["jobs"])
async def get_job(
    id: Id,  # noqa: A002
    desk: TheDesk,
    wait: Annotated[
        float, Query(ge=0, le=20, description="answer only at a change, or after these seconds")
    ] = 0.0,
) -> schemas.JobStatus:
    """Say where a job stands, frame by frame."""
    job = desk.jobs.get(id)
    if wait:
        await desk.changed(job, wait)
    return _status(job, desk)


@router.get(
    "/jobs/{id}/result", responses=_errors(404, 409, 410, 413, 415, 422, 503), tags=["jobs"]
)
async def get_result(
    id: Id,  # noqa: A002
    desk: TheDesk,
) -> schemas.Result:
    """Return the report of a job that has ended, and where its pictures are."""
    job = desk.jobs.get(id)
    return _result(job, job.outcome())


@router.get(
    "/jobs/{id}/pictures/{name}",
    responses={
        200: {"content": {"image/jpeg": {}, "image/png": {}}},
        **_errors(404, 409, 410, 413, 415, 422, 503),
    },
    response_class=Response,
    tags=["jobs"],
)
async def get_picture(
    id: Id,  # noqa: A002
    name: Annotated[str, Path(max_length=64)],
    desk: TheDesk,
) -> Response:
    """Return a thumbnail of a sampled frame (`frame-0`) or the map of a person (`map-1`)."""
    data = desk.jobs.get(id).outcome().pictures.get(name)
    if data is None:
        raise Problem(404, "not_found", "There is no such picture.")
    return Response(data, media_type=_type(data), headers=NEVER_STORE)


@router.delete("/jobs/{id}", status_code=204, responses=_errors(403, 404, 422), tags=["jobs"])
async def delete_job(
    id: Id,  # noqa: A002
    desk: TheDesk,
) -> None:
    """Stop a job where it runs, and forget it and its result."""
    desk.jobs.remove(desk.jobs.get(id))


@router.post(
    "/batch", status_code=202, openapi_extra=_body(True), responses=UPLOAD_ERRORS, tags=["jobs"]
)
async def post_batch(request: Request, desk: TheDesk) -> schemas.Batch:
    """Queue several files at once; one that is refused does not stop the others."""
    parts, model = await desk.take(request, desk.settings.batch)
    good = [part for part in parts if part.problem is None]
    jobs = iter(desk.queue(good, model))
    items = []
    for part in parts:
        if part.problem is None:
            items.append(schemas.BatchItem(job=_status(next(jobs), desk)))
        else:
            items.append(schemas.BatchItem(error=_detail(part.problem.code, part.problem.message)))
    return schemas.Batch(jobs=items)


@router.post(
    "/inspect",
    openapi_extra=_body(),
    responses={**UPLOAD_ERRORS, **_errors(410)},
    tags=["scripts"],
)
async def post_inspect(
    request: Request,
    desk: TheDesk,
    pictures: Annotated[bool, Query(description="put the pictures into the answer")] = False,
) -> schemas.Result:
    """Inspect one file and answer when it is done; nothing is kept after the answer."""
    job = await desk.one(request)
    try:
        if not await desk.ended(job, request):
            raise Problem(410, "cancelled", "The client went away.")
        outcome = job.outcome()
    finally:
        desk.jobs.remove(job)
    return _result(job, outcome, embed=True if pictures else None)


@router.get("/models", tags=["about"])
async def get_models(desk: TheDesk) -> schemas.Models:
    """List the networks with their size, their measured time and their measured figures."""
    found = desk.catalogue
    return schemas.Models(
        version=found.version,
        default=found.default,
        models=[schemas.Model.model_validate(model) for model in found.models],
    )


@router.get("/limits", tags=["about"])
async def get_limits(desk: TheDesk) -> schemas.Limits:
    """Say what is accepted."""
    names = set(schemas.Limits.model_fields) - {"types"}
    return schemas.Limits(types=TYPES, **{name: getattr(desk.settings, name) for name in names})


@router.get("/health", tags=["about"], responses={503: {"model": schemas.Health}})
async def get_health(response: Response, desk: TheDesk) -> schemas.Health:
    """Say whether workers are ready and how much there is to do."""
    counts = desk.pool.counts()
    status: Literal["ok", "starting", "busy"] = "busy" if desk.pool.full() else "ok"
    if not counts["ready"]:
        status, response.status_code = "starting", 503
    return schemas.Health(status=status, files=len(desk.vault.files()), **counts)


@router.get("/samples", tags=["about"])
async def get_samples(samples: TheSamples) -> list[schemas.Sample]:
    """List the built-in samples, all drawn by code."""
    return [
        schemas.Sample(
            name=sample.name, title=sample.title, kind=sample.kind, type=sample.type,
            url=f"{PREFIX}/samples/{sample.name}",
        )
        for sample in samples.all
    ]  # fmt: skip


@router.get(
    "/samples/{name}",
    responses={200: {"content": {"image/png": {}, "video/mp4": {}}}, **_errors(404, 422)},
    response_class=Response,
    tags=["about"],
)
async def get_sample(name: Annotated[str, Path(max_length=64)], samples: TheSamples) -> Response:
    """Return a sample."""
    sample = samples.get(name)
    if sample is None:
        raise Problem(404, "not_found", "There is no such sample.")
    return Response(await samples.data(sample), media_type=sample.type)


def _status(job: Job, desk: Desk) -> schemas.JobStatus:
    ended = job.ended
    error = _detail(ended.code, ended.message) if isinstance(ended, Failure) else None
    here = f"{PREFIX}/jobs/{job.id}"
    return schemas.JobStatus(
        id=job.id,
        state=job.state,  # type: ignore[arg-type]
        progress=schemas.Progress(done=job.ticket.done, total=job.ticket.total),
        model=job.ticket.model,
        kind=job.ticket.kind,  # type: ignore[arg-type]
        expires_in=desk.jobs.expires_in(job),
        error=error,
        links={"self": here, "result": f"{here}/result"},
    )


def _detail(code: str, message: str) -> schemas.ErrorDetail:
    return schemas.ErrorDetail(code=code, message=message)


def _result(job: Job, outcome: Outcome, embed: bool | None = False) -> schemas.Result:
    """Return the report under the user's own file name; ``embed`` None leaves the pictures out."""
    report = {**outcome.report, "file": {**outcome.report.get("file", {}), "name": job.name}}
    pictures = []
    for name, data in outcome.pictures.items() if embed is not None else ():
        what, _, which = name.partition("-")
        url = f"{PREFIX}/jobs/{job.id}/pictures/{name}"
        if embed:
            url = f"data:{_type(data)};base64,{base64.b64encode(data).decode()}"
        pictures.append(
            schemas.Picture(
                url=url,
                kind="map" if what == "map" else "thumbnail",
                index=int(which) if what == "frame" else None,
                person=which if what == "map" else None,
            )
        )
    return schemas.Result(report=schemas.Report.model_validate(report), pictures=pictures)


def _type(data: bytes) -> str:
    return "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
