"""`foundry.evaluations`: any model or variant in benchmarks or on a dataset."""

from collections.abc import Mapping
from typing import Any

from foundry.client import resource
from foundry.client.exchange import below
from foundry.client.flow import Flow, Items, Resource, T, listing, verb
from foundry.client.following import PATIENCE_S, Following, Watcher
from foundry.client.pages import every
from foundry.spec.evaluation import Evaluation, EvaluationSpec
from foundry.spec.lifecycle import JobEvent, Status
from foundry.spec.record import parse

_PATH = "/v1/evaluations"


class Evaluations(Resource[T]):
    """Evaluations of the key's project."""

    @property
    def _following(self) -> Following[Evaluation]:
        return Following(self._transport, Evaluation, _PATH, "evaluation")

    @verb
    def create(
        self, /, spec: EvaluationSpec | Mapping[str, Any] | None = None, *, idempotency_key: str | None = None,
        **fields: Any,
    ) -> Flow[Evaluation]:  # fmt: skip
        """Queue an evaluation: an `EvaluationSpec`, a mapping with its fields, or the fields as keywords.

            foundry.evaluations.create(model=variant.id, suite="quick", format="gguf:q4_k_m")
            foundry.evaluations.create(model=variant.id, data=dataset.id, teacher=model.id)

        Raises `InvalidSpec`, `UnknownTask` or `UnknownSuite` before anything is sent, or a refusal that names the
        fields.
        """
        if spec is not None and fields:
            raise TypeError("give a spec or its fields, not both")
        record = spec if isinstance(spec, EvaluationSpec) else parse(EvaluationSpec, spec or fields)
        body = record.model_dump(mode="json", exclude_unset=True)
        return (yield from resource.create(self._transport, Evaluation, _PATH, body, idempotency_key))

    @verb
    def get(self, evaluation_id: str) -> Flow[Evaluation]:
        """One evaluation with what it has found so far; raises `NotFound`."""
        return (yield from resource.get(self._transport, Evaluation, _PATH, evaluation_id))

    @listing
    def list(
        self, *, status: Status | str | None = None, model: str | None = None, limit: int | None = None
    ) -> Items[Evaluation]:
        """Every evaluation, newest first; `status` keeps those that stand there, `model` those of one model's id."""
        return every(self._transport, _PATH, Evaluation, limit=limit, status=status, model=model)

    @verb
    def cancel(self, evaluation_id: str) -> Flow[Evaluation]:
        """Stop it for good; what is finished stays. Raises `StateConflict` when it has ended."""
        return (yield from self._order(evaluation_id, "cancel"))

    @verb
    def pause(self, evaluation_id: str) -> Flow[Evaluation]:
        """Let it wait for `resume`."""
        return (yield from self._order(evaluation_id, "pause"))

    @verb
    def resume(self, evaluation_id: str) -> Flow[Evaluation]:
        """Queue a paused evaluation again."""
        return (yield from self._order(evaluation_id, "resume"))

    @verb
    def delete(self, evaluation_id: str) -> Flow[None]:
        """Delete an ended evaluation with its result; raises `StateConflict` for another."""
        yield from resource.delete(self._transport, below(_PATH, evaluation_id))

    def _order(self, evaluation_id: str, order: str) -> Flow[Evaluation]:
        return resource.change(self._transport, Evaluation, "POST", below(_PATH, evaluation_id, order))

    @listing
    def events(
        self, evaluation_id: str, after: int = 0, *, timeout: float | None = None, patience_s: float = PATIENCE_S
    ) -> Items[JobEvent]:
        """Its history from event `after` + 1 on, then each new event, until the last one; as `jobs.events`."""
        return self._following.events(evaluation_id, after, timeout, patience_s)

    @listing
    def stream(self, evaluation_id: str, after: int = 0) -> Items[JobEvent]:
        """Like `events`, over one open connection; as `jobs.stream`."""
        return self._following.stream(evaluation_id, after)

    @verb
    def wait(
        self, evaluation_id: str, *, progress: bool | Watcher = True, timeout: float | None = None
    ) -> Flow[Evaluation]:
        """Follow an evaluation to its end and return it; as `jobs.wait`."""
        return (yield from self._following.wait(evaluation_id, progress, timeout))
