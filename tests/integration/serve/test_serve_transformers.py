"""`foundry serve` on safetensors: the server of transformers behind our gate, asked by OpenAI's client."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration.serve.conftest import CONTEXT_TOKENS
from tests.integration.serve.test_serve import KEY, Service, serving
from tests.tiny import DEMO_TEACHER

pytestmark = pytest.mark.integration
MODEL = "teacher-kiosk"


@pytest.fixture(scope="module")
def service(plain_variant: Path) -> Iterator[Service]:
    with serving(plain_variant) as running:
        yield running


def test_a_completion_is_what_transformers_generates_whole_and_in_pieces(service: Service) -> None:
    client = service.client()
    assert [model.id for model in client.models.list()] == [MODEL]
    asked = {"model": MODEL, "prompt": "def main(", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**asked)  # type: ignore[call-overload]
    tokenizer = AutoTokenizer.from_pretrained(DEMO_TEACHER)
    ids = tokenizer("def main(", return_tensors="pt")
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(DEMO_TEACHER, dtype=torch.bfloat16)
        made = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert whole.choices[0].text == tokenizer.decode(made[0, ids["input_ids"].shape[1] :])
    assert whole.model == MODEL and whole.usage.completion_tokens == 12 and whole.choices[0].finish_reason == "length"
    pieces = list(client.completions.create(**asked, stream=True))  # type: ignore[call-overload]
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == whole.choices[0].text
    assert pieces[-1].usage.completion_tokens == 12


def test_what_does_not_fit_the_context_is_refused_and_what_is_left_of_it_is_the_limit(service: Service) -> None:
    with pytest.raises(openai.BadRequestError, match=f"exceeds the available context size .{CONTEXT_TOKENS} tokens"):
        service.client().completions.create(model=MODEL, prompt="def main(" * 200, max_tokens=1)
    with pytest.raises(openai.BadRequestError, match="max_tokens is -5"):
        service.client().completions.create(model=MODEL, prompt="a", max_tokens=-5)
    prompt = "def main(" * 80  # 3 tokens each
    answer = service.client().completions.create(model=MODEL, prompt=prompt, max_tokens=100, temperature=0)
    assert answer.usage is not None and answer.usage.total_tokens <= CONTEXT_TOKENS


def test_only_four_addresses_are_open_and_all_but_health_ask_for_the_key(service: Service) -> None:
    root = service.url.removesuffix("/v1")
    with pytest.raises(openai.AuthenticationError, match="the key is missing or wrong"):
        service.client("wrong").models.list()
    assert httpx2.get(f"{root}/metrics").status_code == 401
    assert httpx2.get(f"{root}/health").json() == {"status": "ok"}
    headers = {"Authorization": f"Bearer {KEY}"}
    for path in ("/load_model", "/reset", "/v1/responses", "/v1/audio/transcriptions"):
        assert httpx2.post(f"{root}{path}", headers=headers, json={"model": "other"}).status_code == 404
    assert httpx2.post(f"{root}/v1/completions", headers=headers, content=b"{").status_code == 400


def test_metrics_count_requests_and_tokens(service: Service) -> None:
    service.client().completions.create(model=MODEL, prompt="def main(", max_tokens=1, temperature=0)
    url, headers = service.url.removesuffix("/v1") + "/metrics", {"Authorization": f"Bearer {KEY}"}
    lines = [line for line in httpx2.get(url, headers=headers).text.splitlines() if not line.startswith("#")]
    values = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
    assert values['foundry_serve_requests_total{path="/v1/completions",status="200"}'] >= 1
    assert values["foundry_serve_prompt_tokens_total"] >= 3 and values["foundry_serve_requests_processing"] == 0
