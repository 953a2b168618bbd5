"""The application: configuration, the order in which a request passes, and the list of resources."""

from importlib.metadata import version

from apiflask import APIFlask

from api import auth, errors, etags, metrics, rates, sessions, trace
from api.access import access
from api.bodies import sweep_abandoned
from api.console.app import create_console
from api.console.beside import beside
from api.datasets import datasets
from api.docs import docs
from api.estimates import estimates
from api.evaluations import evaluations
from api.events import events
from api.health import health
from api.history import history
from api.jobs import jobs
from api.measurements import measurements
from api.models import models
from api.openapi import DESCRIPTION, complete
from api.reports import reports
from api.state import open_state
from api.strict import refuse_unknown_query
from api.targets import targets
from api.uploads import uploads
from api.variants import variants
from api.webhooks import webhooks
from foundry.store.settings import Settings

_LARGEST_JSON_BYTES = 2**20


def create_app(settings: Settings) -> APIFlask:
    """One application for each process; raises `InvalidSettings`. The database need not answer yet."""
    app = APIFlask(
        "api",
        title="Foundry",
        version=version("foundry"),
        docs_path=None,
        json_errors=False,
        static_folder=None,  # type: ignore[arg-type]
    )
    app.description = DESCRIPTION
    app.url_map.merge_slashes = False  # a redirect would answer before anyone asked for the key
    app.config.update(
        MAX_CONTENT_LENGTH=_LARGEST_JSON_BYTES,  # uploads set their own
        OPENAPI_VERSION="3.1.0",  # whose schemas are JSON Schema, as pydantic writes them
        AUTO_OPERATION_ID=True,
        AUTO_SERVERS=False,
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.spec_processor(complete)  # type: ignore[arg-type]
    app.extensions["foundry"] = open_state(settings)
    trace.install(app)
    errors.install(app)
    sessions.install(app, settings)
    metrics.install(app)
    auth.install(app)
    rates.install(app, settings)
    etags.install(app)
    app.before_request(refuse_unknown_query)
    for blueprint in (
        uploads, datasets, models, targets, estimates, jobs, events, history, reports, evaluations, variants,
        measurements, webhooks, access,
    ):  # fmt: skip
        app.register_blueprint(blueprint, url_prefix="/v1")
    for blueprint in (health, metrics.metrics, docs):
        app.register_blueprint(blueprint)
    auth.require_marks(app)
    app.extensions["foundry.console"] = console = create_console(app.extensions["foundry"])
    app.wsgi_app = beside(app, console)  # type: ignore[method-assign,assignment]
    sweep_abandoned(settings)
    return app
