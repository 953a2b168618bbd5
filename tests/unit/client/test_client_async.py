"""The SDK for programs that await: the same verbs, against the real API in process and on a socket."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from inspect import getmembers
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx2
import pytest
from httpx2 import WSGITransport

from api.app import create_app
from api.state import State
from foundry.client.client import AsyncFoundry, Foundry
from foundry.client.flow import Resource, listing, verb
from foundry.errors import JobFailed, NotFound, WaitExpired
from foundry.spec.resources import Reason
from foundry.store.settings import Settings
from foundry.store.uploads import SMALLEST_PART_BYTES
from tests.checkpoints import write_checkpoint
from tests.unit.client.worker import progress, publish, take

FILES = {"kiosk-q4_k_m.gguf": os.urandom(200_000), "README.md": b"card"}


class InThread(httpx2.AsyncBaseTransport):
    """The WSGI app, answered in a thread so that the event loop goes on."""

    def __init__(self, app: Any) -> None:
        self._inner = WSGITransport(app=app)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        plain = httpx2.Request(request.method, request.url, headers=request.headers, content=await request.aread())
        response = await asyncio.to_thread(self._inner.handle_request, plain)
        content = await asyncio.to_thread(response.read)
        return httpx2.Response(response.status_code, headers=response.headers, content=content)


@pytest.fixture
def app(tmp_path: Path, sqlite_url: str) -> Iterator[Any]:
    app = create_app(Settings(home=tmp_path, database_url=sqlite_url, teacher_roots=(tmp_path,)))
    write_checkpoint(tmp_path / "teacher")
    yield app
    app.extensions["foundry"].database.close()


@pytest.fixture
def memory(app: Any) -> State:
    state: State = app.extensions["foundry"]
    return state


@asynccontextmanager
async def opened(app: Any) -> AsyncIterator[AsyncFoundry]:
    keys = app.extensions["foundry"].keys
    _, key = keys.create(keys.ensure_default_project(), "test")
    async with AsyncFoundry(
        "http://foundry.test", key, transport=InThread(app), blocking_transport=WSGITransport(app=app)
    ) as foundry:
        yield foundry


def test_a_job_from_upload_to_download_in_a_program_that_awaits(app: Any, memory: State, tmp_path: Path) -> None:
    async def go() -> None:
        data = tmp_path / "a.jsonl"
        data.write_text('{"text": "hello"}\n{"text": "world"}\n')
        async with opened(app) as foundry:
            dataset = await foundry.datasets.upload(data)
            assert [row.text async for row in foundry.datasets.preview(dataset.id)] == ["hello", "world"]
            phone = await foundry.targets.put("phone", memory_bytes=2e9, runtime_overhead_bytes=5e8, format="gguf:q8_0")
            assert (phone.memory_bytes, phone.max_bytes, phone.format) == (2 * 10**9, 15 * 10**8, "gguf:q8_0")
            await foundry.targets.put("kiosk", max_params=20e3)
            spec = {"teacher": "teacher", "data": dataset.id, "targets": ["kiosk"]}
            assert (await foundry.jobs.estimate(spec)).targets[0].parameters <= 20_000
            job = await foundry.jobs.create(spec)
            assert [j.id async for j in foundry.jobs.list()] == [job.id]
            claim = await asyncio.to_thread(take, memory.jobs, job.id)
            memory.jobs.append(claim, [progress(1, 2)])
            waiting = asyncio.create_task(foundry.jobs.wait(job.id, progress=False, timeout=20))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(publish, memory.jobs, memory.artifacts, claim, FILES, tmp_path)
            done = await waiting
            home = await foundry.variants.download(done.variant_ids[0], tmp_path / "home", progress=False)
            assert {path: (home / path).read_bytes() for path in FILES} == FILES
            streamed = [event.type async for event in foundry.jobs.stream(job.id)]
            assert streamed[0] == "job.submitted" and streamed[-1] == "job.succeeded"
            with pytest.raises(NotFound):
                await foundry.jobs.get("job_none")
            failing = await foundry.jobs.create(spec)
            with pytest.raises(WaitExpired):
                await foundry.jobs.wait(failing.id, progress=False, timeout=0.1)
            memory.jobs.fail(take(memory.jobs, failing.id), Reason(code="diverged", message="no number"))
            with pytest.raises(JobFailed, match="no number"):
                await foundry.jobs.wait(failing.id, progress=False)

    asyncio.run(go())


def test_both_clients_have_every_verb_with_its_words() -> None:
    names = {name for name in vars(Foundry("http://x", "k")) if not name.startswith("_")} - {"url"}
    count = 0
    for name in names:
        resource = getattr(Foundry("http://x", "k"), name)
        assert isinstance(resource, Resource)
        for place, member in getmembers(type(resource)):
            if isinstance(member, verb | listing):
                assert member.flow.__doc__ and getattr(resource, place).__doc__ == member.flow.__doc__, place
                count += 1
    assert count >= 60


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def on_socket(app: Any, memory: State) -> Iterator[tuple[str, str]]:
    """The same app behind a plain server on loopback: its address and a key."""
    _, key = memory.keys.create(memory.keys.ensure_default_project(), "test")
    server: WSGIServer = make_server("127.0.0.1", 0, app, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", key
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_large_upload_goes_on_after_its_program_was_killed(
    memory: State, on_socket: tuple[str, str], tmp_path: Path
) -> None:
    row = b'{"text": "' + b"x" * 1000 + b'"}\n'
    path = tmp_path / "large.jsonl"
    path.write_bytes(row * (2 * SMALLEST_PART_BYTES // len(row) + 10))

    class Killed(Exception):
        pass

    def die(done: int, total: int) -> None:
        raise Killed

    told: list[int] = []
    with Foundry(*on_socket) as foundry:
        with pytest.raises(Killed):
            foundry.datasets.upload(path, progress=die)
        (begun,) = foundry.uploads.list(status="open")
        assert begun.missing_parts == (2, 3)
        dataset = foundry.datasets.upload(path, progress=lambda done, _: told.append(done))
        assert told == [2 * SMALLEST_PART_BYTES, path.stat().st_size]
        assert foundry.uploads.get(begun.id).dataset_id == dataset.id
        once, again = (foundry.datasets.upload(path, idempotency_key="k").id for _ in range(2))
        assert once == again != dataset.id
        text = tmp_path / "notes.md"
        text.write_text("# plain words\n")
        assert foundry.datasets.upload(text).format == "text"
        assert len(list(foundry.account.audit())) >= 5


def test_a_model_is_uploaded_from_a_folder_and_its_code_stays_behind(
    on_socket: tuple[str, str], tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "mine")
    (folder / "modeling.py").write_text("raise SystemExit")
    with Foundry(*on_socket) as foundry:
        model = foundry.models.upload(folder)
        assert (model.family, model.name) == ("llama", "mine") and "modeling.py" not in model.source
        assert [m.id for m in foundry.models.list()] == [model.id]
        foundry.models.delete(model.id)
        assert not list(foundry.models.list())


def test_the_page_about_the_sdk_names_every_verb() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "sdk.md").read_text(encoding="utf-8")
    client = Foundry("http://x", "k")
    for name in vars(client):
        resource = getattr(client, name)
        if isinstance(resource, Resource):
            section = page.partition(f"### foundry.{name}\n")[2].partition("\n### ")[0]
            verbs = {place for place, member in getmembers(type(resource)) if isinstance(member, verb | listing)}
            assert verbs == {line[3:].partition("(")[0] for line in section.splitlines() if line.startswith("| `")}, (
                name
            )
