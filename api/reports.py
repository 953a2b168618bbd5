"""/v1/customization/jobs/ID/report: what was asked, done, measured and spent, as JSON, as a page, as Markdown."""

from apiflask import APIBlueprint
from flask import Response, request

from api.auth import needs, project_id
from api.downloads import send_artifact
from api.openapi import report_document
from api.state import state
from foundry.spec.access import Scope

reports = APIBlueprint("reports", __name__)
_ENDINGS = {"application/json": "json", "text/html": "html", "text/markdown": "md"}
_TYPES = {ending: kind for kind, ending in _ENDINGS.items()}
_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The page quotes what models said: whatever that is, it runs nothing and fetches nothing."""


@reports.get("/customization/jobs/<job_id>/report")
@needs(Scope.JOBS_READ)
@reports.doc(responses=report_document())
def get_report(job_id: str) -> Response:
    """The job's report in the form that Accept asks for: application/json, text/html or text/markdown.

    It is made whenever a run of the job ends, also when the job failed or was cancelled.
    """
    chosen = request.accept_mimetypes.best_match(list(_ENDINGS), default="application/json")
    return _answer(job_id, _ENDINGS[chosen])


@reports.get("/customization/jobs/<job_id>/report.<form>")
@needs(Scope.JOBS_READ)
@reports.doc(responses=report_document())
def get_report_as(job_id: str, form: str) -> Response:
    """The job's report as `json`, `html` or `md`."""
    return _answer(job_id, form)


def _answer(job_id: str, ending: str) -> Response:
    response = send_artifact(*state().job_files.report(project_id(), job_id, ending))
    response.headers["Content-Type"] = f"{_TYPES[ending]}; charset=utf-8" if ending != "json" else _TYPES[ending]
    response.headers["Content-Disposition"] = f'inline; filename="{job_id}-report.{ending}"'
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Cache-Control"] = "private, no-cache"  # the next run of the job makes another
    response.headers["Vary"] = "Accept"
    return response
