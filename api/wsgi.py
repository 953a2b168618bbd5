"""What gunicorn loads: `gunicorn --config python:api.gunicorn_conf api.wsgi:app`."""

from api.app import create_app
from api.trace import log_to_stderr
from foundry.store.settings import Settings

log_to_stderr()
app = create_app(Settings.from_env())
