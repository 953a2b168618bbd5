"""`foundry serve` as its users meet it: the command in a process of its own, and OpenAI's client."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import openai
import pytest

from tests.integration.serve.conftest import CONTEXT_TOKENS

pytestmark = pytest.mark.integration
KEY = "sesame"
COMMAND = (sys.executable, "-m", "foundry.cli", "serve")
START_S = 30
DOCKERFILE = Path(__file__).parents[3] / "docker" / "serve.Dockerfile"


@dataclass
class Service:
    """A running service."""

    process: subprocess.Popen[str]
    url: str

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=60)


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Service]:
    environment = {**os.environ, "FOUNDRY_SERVE_KEY": KEY, "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, str(folder), "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("Serving "), process.communicate(timeout=START_S)[1]
        yield Service(process, said.split(" at ")[1].strip())
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def service(variant: Path) -> Iterator[Service]:
    with serving(variant) as running:
        yield running


def test_the_variant_is_the_one_model_that_is_listed(service: Service) -> None:
    assert [model.id for model in service.client().models.list()] == ["teacher-kiosk"]


def test_a_completion_counts_its_tokens_and_repeats_itself_for_a_seed(service: Service) -> None:
    def ask(seed: int, temperature: float = 1.5) -> str:
        answer = service.client().completions.create(
            model="teacher-kiosk", prompt="def main(", max_tokens=12, temperature=temperature, seed=seed, top_p=0.9
        )
        assert answer.usage is not None and answer.usage.completion_tokens == 12 and answer.usage.prompt_tokens == 3
        assert answer.choices[0].finish_reason == "length"
        return answer.choices[0].text

    assert ask(1) == ask(1) and len({ask(seed) for seed in range(4)}) > 1
    assert ask(1, temperature=0).startswith("args")


def test_a_stream_gives_the_same_text_piece_by_piece(service: Service) -> None:
    asked = {"model": "teacher-kiosk", "prompt": "import os\n", "max_tokens": 16, "temperature": 0}
    whole = service.client().completions.create(**asked).choices[0].text
    pieces = list(service.client().completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    texts = [piece.choices[0].text for piece in pieces if piece.choices]
    assert "".join(texts) == whole and len(texts) > 8
    assert pieces[-1].usage is not None and pieces[-1].usage.completion_tokens == 16


def test_a_chat_answers_stops_and_gives_log_probabilities(service: Service) -> None:
    asked = {"model": "teacher-kiosk", "messages": [{"role": "user", "content": "import os"}], "temperature": 0}
    answer = service.client().chat.completions.create(**asked, max_tokens=8, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert [len(token.top_logprobs) for token in choice.logprobs.content] == [3] * 8
    assert all(token.logprob <= 0 for token in choice.logprobs.content)
    last = choice.message.content[-1]
    stopped = service.client().chat.completions.create(**asked, max_tokens=8, stop=[last])
    assert stopped.choices[0].finish_reason == "stop" and last not in (stopped.choices[0].message.content or "")
    streamed = service.client().chat.completions.create(**asked, max_tokens=8, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in streamed if p.choices) == choice.message.content


def test_a_wrong_key_opens_nothing_but_the_health_check(service: Service) -> None:
    root = service.url.removesuffix("/v1")
    with pytest.raises(openai.AuthenticationError):
        service.client("wrong").models.list()
    assert httpx2.get(f"{root}/metrics").status_code == 401
    assert httpx2.get(f"{root}/health").json() == {"status": "ok"}


def test_metrics_are_prometheus_text(service: Service) -> None:
    answer = httpx2.get(service.url.removesuffix("/v1") + "/metrics", headers={"Authorization": f"Bearer {KEY}"})
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    values = dict(line.rsplit(" ", 1) for line in lines)
    assert float(values["llamacpp:tokens_predicted_total"]) >= 0 and "llamacpp:requests_processing" in values


def test_bad_requests_say_what_is_wrong(service: Service) -> None:
    with pytest.raises(openai.BadRequestError, match=f"exceeds the available context size .{CONTEXT_TOKENS} tokens"):
        service.client().completions.create(model="teacher-kiosk", prompt="def main(" * 200, max_tokens=1)
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        service.client().completions.create(model="teacher-kiosk", prompt="a", max_tokens=-5)


def test_no_other_site_may_ask_and_no_settings_are_open(service: Service) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Origin": "http://elsewhere.example"}
    root = service.url.removesuffix("/v1")
    assert not httpx2.get(f"{service.url}/models", headers=headers).headers.get("access-control-allow-origin")
    assert httpx2.get(root, headers=headers).status_code == 404
    assert httpx2.get(f"{root}/slots", headers=headers).status_code == 501


def test_a_request_in_work_ends_before_the_service_does(variant: Path) -> None:
    with serving(variant, "--context-tokens", "512") as service:
        asked = {"model": "m", "prompt": "def main(", "max_tokens": 200, "extra_body": {"ignore_eos": True}}
        stream = service.client().completions.create(**asked, stream=True)  # type: ignore[call-overload]
        next(iter(stream))
        service.process.send_signal(signal.SIGTERM)
        assert len([piece for piece in stream if piece.choices]) > 150
        stream.close()
        assert service.process.wait(timeout=10) == 0


def test_a_second_signal_cuts_what_is_in_work(variant: Path) -> None:
    with serving(variant, "--context-tokens", "512") as service:
        asked = {"model": "m", "prompt": "def main(", "max_tokens": 450, "extra_body": {"ignore_eos": True}}
        stream = service.client().completions.create(**asked, stream=True)  # type: ignore[call-overload]
        next(iter(stream))
        start = time.monotonic()
        service.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(timeout=10) == 0 and time.monotonic() - start < 3


def refused(folder: Path, *options: str) -> str:
    done = subprocess.run([*COMMAND, str(folder), *options], capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 1 and not done.stdout
    return done.stderr


def test_a_port_in_use_is_said_before_anything_is_loaded(variant: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1 is taken by another program; choose another" in refused(
            variant, "--port", str(port)
        )


def test_a_damaged_variant_is_refused_before_it_is_loaded(variant: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(variant, tmp_path / "variant"))
    path = folder / "kiosk-q8_0.gguf"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "kiosk-q8_0.gguf has other bytes than the manifest says" in refused(folder, "--port", "0")


def test_a_context_longer_than_the_models_is_refused(variant: Path) -> None:
    message = refused(variant, "--port", "0", "--context-tokens", "100000")
    assert "100,000 is longer than the 512 tokens that the model was made for" in message


def test_the_dockerfile_pleases_its_linter_and_copies_what_is_there() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint is not None
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    copied = re.findall(r"^COPY (.*) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    sources = [name for line in copied for name in line.split()]
    assert len(sources) == 4 and all((DOCKERFILE.parents[1] / name).exists() for name in sources)


def test_the_containers_command_serves_where_torch_is_not_installed(variant: Path) -> None:
    text = DOCKERFILE.read_text()
    program, *arguments = json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[1])  # type: ignore[index]
    assert program == "foundry"
    blocked = "import sys; sys.modules.update(torch=None, transformers=None); from foundry.cli import main; main()"
    command = [sys.executable, "-c", blocked, *arguments, "--port", "0", "--threads", "1"]
    command[command.index("/variant")] = str(variant)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("Serving teacher-kiosk"), process.communicate(timeout=START_S)[1]
        health = said.split(" at ")[1].strip().removesuffix("/v1") + "/health"
        assert httpx2.get(health).json() == {"status": "ok"}
        process.terminate()
        assert "set FOUNDRY_SERVE_KEY to ask for a key" in process.communicate(timeout=START_S)[1]
        assert process.returncode == 0
    finally:
        process.kill()
