"""Two applications at one address: the console has the paths that it knows, the API all others."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def beside(api: Flask, console: Flask) -> "WSGIApplication":
    """The WSGI application of both. A page that neither knows is the console's to miss, when a browser asks for it."""
    of_api, of_console = _first_segments(api), _first_segments(console)
    assert not of_api & of_console, f"both have {of_api & of_console}"
    answer: Any = api.wsgi_app

    def choose(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        segment = environ.get("PATH_INFO", "/").split("/", 2)[1:2]
        first = segment[0] if segment else ""
        is_lost_browser = first not in of_api and "text/html" in environ.get("HTTP_ACCEPT", "")
        application = console.wsgi_app if first in of_console or is_lost_browser else answer
        return application(environ, start_response)

    return choose


def _first_segments(app: Flask) -> frozenset[str]:
    return frozenset(rule.rule.split("/", 2)[1] for rule in app.url_map.iter_rules())
