"""The application of the console: the order in which a request passes, and the list of page groups."""

import tempfile
from typing import IO

from flask import Flask
from flask.wrappers import Request
from jinja2 import StrictUndefined

from api import auth, rates, sessions, trace
from api.console import door, frame
from api.console.access import access
from api.console.assets import assets
from api.console.comparison import comparison
from api.console.datasets import datasets
from api.console.door import session
from api.console.evaluations import evaluations
from api.console.jobs import jobs
from api.console.models import models
from api.console.new_job import new_job
from api.console.overview import overview
from api.console.targets import targets
from api.console.trial import trial
from api.console.variants import variants
from api.console.webhooks import webhooks
from api.state import State, state

_LARGEST_FORM_BYTES = 2**20


class _Request(Request):
    """A form's file goes to where artifacts are staged: the temporary folder may be memory, and is often small."""

    def _get_file_stream(
        self, total_content_length: int | None, content_type: str | None, filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:  # fmt: skip
        incoming = state().settings.artifacts / "incoming"
        incoming.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=incoming, prefix="form-")


def create_console(memory: State) -> Flask:
    """The console on the API's own stores."""
    app = Flask(__name__, static_folder=None)
    app.request_class = _Request
    app.config.update(MAX_CONTENT_LENGTH=_LARGEST_FORM_BYTES, MAX_FORM_MEMORY_SIZE=_LARGEST_FORM_BYTES)
    app.jinja_options = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    app.extensions["foundry"] = memory
    trace.install(app)
    sessions.install(app, memory.settings)
    frame.install(app)
    door.install(app)
    rates.install(app, memory.settings)
    for blueprint in (
        assets, session, overview, new_job, jobs, variants, trial, comparison, evaluations, datasets, models,
        targets, access, webhooks,
    ):  # fmt: skip
        app.register_blueprint(blueprint)
    app.before_request(door.require_own_page)  # reads the form, so whatever bounds its size comes before
    auth.require_marks(app, door.OPEN)
    return app
