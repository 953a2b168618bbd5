"""ETag on every JSON answer to a GET below /v1: If-None-Match is answered with 304 while nothing has changed."""

from flask import Flask, Response, request


def install(app: Flask) -> None:
    """Must be installed last, so that all that counts and logs answers sees what is sent."""
    app.after_request(_validate)


def _validate(response: Response) -> Response:
    is_read = request.method in ("GET", "HEAD") and response.status_code == 200
    if is_read and response.mimetype == "application/json" and request.path.startswith("/v1/"):
        response.add_etag()  # files and reports have one already: it stays
        if request.if_none_match.contains_weak(response.get_etag()[0] or ""):
            response.status_code = 304  # Werkzeug then sends neither the body nor what describes it
    return response
