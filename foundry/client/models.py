"""`foundry.models`: teachers that the project has registered; a job names one by its id."""

import re
from pathlib import Path

from foundry.client import resource
from foundry.client.exchange import below
from foundry.client.flow import Flow, Items, Resource, T, listing, verb
from foundry.client.pages import every
from foundry.client.uploads import Report, send
from foundry.errors import TeacherNotFound
from foundry.spec.library import Model, ModelFamily

_PATH = "/v1/models"
_WANTED = re.compile(
    r"[\w.-]+\.(safetensors|safetensors\.index\.json|json)|merges\.txt|tokenizer\.model|chat_template\.jinja"
)


class Models(Resource[T]):
    """Registered teachers of the key's project."""

    @verb
    def from_folder(self, path: str, name: str, *, idempotency_key: str | None = None) -> Flow[Model]:
        """Register a folder of the service's own machine; its operator must allow it."""
        body = {"name": name, "source": {"kind": "folder", "path": path}}
        return (yield from resource.create(self._transport, Model, _PATH, body, idempotency_key))

    @verb
    def from_hub(
        self, repository: str, revision: str, name: str | None = None, *, idempotency_key: str | None = None
    ) -> Flow[Model]:
        """Register ORG/NAME at one commit (40 hexadecimal digits): a name or a branch can change there."""
        source = {"kind": "hub", "repository": repository, "revision": revision}
        body = {"name": name or repository, "source": source}
        return (yield from resource.create(self._transport, Model, _PATH, body, idempotency_key))

    @verb
    def upload(self, folder: str | Path, name: str | None = None, *, progress: Report | None = None) -> Flow[Model]:
        """Send the weights, configuration and tokenizer of a folder and register them.

        An interrupted upload goes on when it is called again. Files of other kinds, such as code, stay where they are.
        """
        folder = Path(folder)
        found = sorted(p for p in folder.iterdir() if _WANTED.fullmatch(p.name)) if folder.is_dir() else []
        if not found:
            raise TeacherNotFound(f"{folder} holds no model; give a folder with config.json and safetensors")
        files = {}
        for path in found:
            upload = yield from send(self._transport, path, path.name, "model_file", progress)
            files[path.name] = upload.id
        body = {"name": name or folder.resolve().name, "source": {"kind": "upload", "files": files}}
        return (yield from resource.create(self._transport, Model, _PATH, body))

    @verb
    def get(self, model_id: str) -> Flow[Model]:
        """One model; raises `NotFound`."""
        return (yield from resource.get(self._transport, Model, _PATH, model_id))

    @listing
    def list(self, *, limit: int | None = None) -> Items[Model]:
        """Every model, newest first."""
        return every(self._transport, _PATH, Model, limit=limit)

    @listing
    def families(self, *, limit: int | None = None) -> Items[ModelFamily]:
        """The families that a teacher may be of, by name."""
        return every(self._transport, "/v1/families", ModelFamily, limit=limit)

    @verb
    def delete(self, model_id: str) -> Flow[None]:
        """Forget a model; raises `StateConflict` while a job that has not ended needs it."""
        yield from resource.delete(self._transport, below(_PATH, model_id))
