"""The box that asks a variant a prompt, where the operator serves one (`foundry serve`)."""

from pathlib import Path
from typing import Any, NamedTuple

import httpx2
from flask import Blueprint, render_template, request

from api.auth import needs, project_id
from api.console.frame import is_fragment
from api.console.variants import page
from api.state import state
from foundry.errors import NotFound
from foundry.spec.access import Scope
from foundry.spec.variant import VariantManifest

trial = Blueprint("trial", __name__)
_MOST_CHARACTERS = 4000
_TOKENS = 96
_PATIENCE_S = 60.0


class Answer(NamedTuple):
    """What came of a prompt: a text, or why there is none."""

    prompt: str
    text: str | None
    problem: str | None
    seconds: float | None = None


@trial.post("/variants/<variant_id>/ask")
@needs(Scope.VARIANTS_READ)
def ask(variant_id: str) -> str:
    """Continue a prompt with the variant, when it is this one that is served."""
    memory, project = state(), project_id()
    shipped = VariantManifest.model_validate(memory.variants.manifest(project, variant_id))
    url = memory.settings.serving_url
    if url is None:
        raise NotFound("this service is not told where variants are served; its operator sets FOUNDRY_SERVING_URL")
    prompt = request.form.get("prompt", "")[:_MOST_CHARACTERS]
    answer = _asked(url.rstrip("/"), shipped, prompt) if prompt else Answer(prompt, None, "write a prompt first")
    if is_fragment():
        return render_template("fragments/answer.html", answer=answer)
    return page(variant_id, answer)


def _asked(url: str, shipped: VariantManifest, prompt: str) -> Answer:
    try:
        with httpx2.Client(trust_env=False, timeout=_PATIENCE_S, follow_redirects=False) as client:
            served = client.get(f"{url}/v1/models", timeout=2.0).raise_for_status().json()["data"]
            if not any(_is(model, shipped) for model in served):
                names = ", ".join(str(model.get("id")) for model in served) or "nothing"
                return Answer(
                    prompt, None, f"another model is being served ({names:.200}); serve this variant to try it"
                )
            body = {"model": _name(shipped), "prompt": prompt, "max_tokens": _TOKENS, "temperature": 0.7}
            answer = client.post(f"{url}/v1/completions", json=body)
            said = answer.raise_for_status().json()["choices"][0]["text"]
    except (httpx2.HTTPError, ValueError, KeyError, IndexError, TypeError):
        return Answer(
            prompt, None, "no answer came from where variants are served; look whether `foundry serve` runs there"
        )
    return Answer(prompt, str(said), None, answer.elapsed.total_seconds())


def _name(shipped: VariantManifest) -> str:
    """As `foundry.serve.offer` names what it serves."""
    return f"{Path(shipped.spec.teacher.partition('@')[0]).name}-{shipped.target}"


def _is(model: dict[str, Any], shipped: VariantManifest) -> bool:
    """Two variants may have one name; their number of parameters tells most of them apart."""
    counted = (model.get("meta") or {}).get("n_params")
    return model.get("id") == _name(shipped) and counted in (None, shipped.parameters)
