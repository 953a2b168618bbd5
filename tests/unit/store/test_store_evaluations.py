"""Evaluations live the life of jobs in the same table, and are not taken for jobs."""

from pathlib import Path

import pytest

from foundry.errors import IllegalTransition, InUse, NotFound
from foundry.spec.evaluation import EvaluationResult, EvaluationSpec
from foundry.spec.lifecycle import EventType, Status, WorkKind
from foundry.store.artifacts import LocalArtifacts
from foundry.store.database import Database
from foundry.store.evaluations import Evaluations
from foundry.store.forecasts import Forecasts
from foundry.store.history import History
from foundry.store.jobs import Jobs
from foundry.store.outbox import Outbox
from foundry.store.records import Claim, EvaluationInputs, ModelPlace
from foundry.store.removal import Removal
from foundry.store.settings import Settings
from foundry.store.usage import UsageMeter
from foundry.store.webhooks import Webhooks
from tests import factories

SPEC = EvaluationSpec(model="var_1", suite="quick", name="nightly")
INPUTS = EvaluationInputs(model=ModelPlace(id="var_1", name="mine", source="/models/mine"))


@pytest.fixture
def evaluations(database: Database) -> Evaluations:
    return Evaluations(database)


def claimed(jobs: Jobs, evaluations: Evaluations, project_id: str) -> Claim:
    claim = jobs.claim("worker-1", evaluations.submit(project_id, SPEC, INPUTS).id)
    assert claim is not None
    return claim


def test_an_evaluation_is_no_job_to_those_who_ask_for_jobs(
    jobs: Jobs, evaluations: Evaluations, database: Database, project_id: str
) -> None:
    job = jobs.submit(project_id, factories.spec(), factories.inputs())
    made = evaluations.submit(project_id, SPEC, INPUTS, factories.request())
    assert evaluations.submit(project_id, SPEC, INPUTS, factories.request()).id == made.id
    assert [one.id for one in jobs.list(project_id).data] == [job.id]
    assert [one.id for one in evaluations.list(project_id).data] == [made.id]
    for ask in (jobs.get, jobs.events, jobs.cancel, jobs.inputs, History(database).logs):
        with pytest.raises(NotFound):
            ask(project_id, made.id)
    for ask in (evaluations.get, evaluations.events):
        with pytest.raises(NotFound):
            ask(project_id, job.id)
    with pytest.raises(NotFound):
        evaluations.get(factories.project(database, "other"), made.id)


def test_evaluations_are_found_by_the_model_that_they_measure(evaluations: Evaluations, project_id: str) -> None:
    odd = SPEC.model_copy(update={"model": "var_2", "teacher": "var_1", "data": "ds_1", "name": '"model":"var_1",%'})
    first, second = (evaluations.submit(project_id, spec, INPUTS).id for spec in (SPEC, odd))
    assert [one.id for one in evaluations.list(project_id, model="var_1").data] == [first]
    assert [one.id for one in evaluations.list(project_id, model="var_2").data] == [second]
    assert not evaluations.list(project_id, model="var%").data and not evaluations.list(project_id, model='"').data


def test_the_older_of_a_job_and_an_evaluation_goes_first(jobs: Jobs, evaluations: Evaluations, project_id: str) -> None:
    job = jobs.submit(project_id, factories.spec(), factories.inputs()).id
    evaluation = evaluations.submit(project_id, SPEC, INPUTS).id
    again = jobs.submit(project_id, factories.spec(), factories.inputs()).id
    assert [jobs.get(project_id, one).queue_position for one in (job, again)] == [1, 3]
    claims = [jobs.claim("worker-1") for _ in range(3)]
    assert [claim and claim.job_id for claim in claims] == [job, evaluation, again]


def test_what_a_run_has_found_stays_when_the_evaluation_is_cancelled(
    jobs: Jobs, evaluations: Evaluations, project_id: str
) -> None:
    claim = claimed(jobs, evaluations, project_id)
    assert (claim.spec, claim.inputs) == (SPEC, INPUTS)
    found = {"held_out": [{"model": "mine", "held_out_loss": 1.5}]}
    jobs.append(claim, [factories.said(EventType.METRICS, "scored", stage="evaluate", result=found)])
    assert evaluations.order(project_id, claim.job_id, "cancel").status is Status.CANCELLING
    assert jobs.heartbeat(claim).cancel
    assert jobs.cancelled(claim).status is Status.CANCELLED
    after = evaluations.get(project_id, claim.job_id)
    assert after.result is not None and after.result.held_out[0].held_out_loss == 1.5
    with pytest.raises(IllegalTransition, match="evaluation eval_"):
        evaluations.order(project_id, claim.job_id, "resume")


def test_success_keeps_the_whole_result(
    jobs: Jobs, evaluations: Evaluations, database: Database, project_id: str, settings: Settings
) -> None:
    claim = claimed(jobs, evaluations, project_id)
    result = EvaluationResult().model_dump(mode="json")
    ended = jobs.succeed(claim, (), result)
    assert ended == evaluations.get(project_id, claim.job_id) and ended.status is Status.SUCCEEDED
    assert Forecasts(database, settings).measured() is None  # it says nothing about how long jobs take


def test_an_evaluation_of_a_silent_worker_is_given_to_another(
    jobs: Jobs, evaluations: Evaluations, database: Database, project_id: str
) -> None:
    claim = claimed(jobs, evaluations, project_id)
    assert jobs.release(claim, "stopped as asked").status is Status.QUEUED
    again = jobs.claim("worker-2")
    assert again is not None and (again.job_id, again.epoch) == (claim.job_id, 2)


def test_its_endings_are_told_to_webhooks_by_names_of_their_own(
    jobs: Jobs, evaluations: Evaluations, database: Database, project_id: str
) -> None:
    Webhooks(database).create(project_id, "https://example.org/x", ["job.submitted", "evaluation.cancelled"])
    made = evaluations.submit(project_id, SPEC, INPUTS)
    evaluations.order(project_id, made.id, "cancel")
    [message] = Outbox(database).take()
    assert message.payload["type"] == "evaluation.cancelled"
    assert (message.payload["data"]["evaluation_id"], message.payload["data"]["evaluation_name"]) == (
        made.id,
        "nightly",
    )


def test_evaluations_count_as_such_and_hold_what_they_need(
    jobs: Jobs, evaluations: Evaluations, database: Database, project_id: str, settings: Settings, tmp_path: Path
) -> None:
    job = factories.running(jobs, project_id)
    variant_id = jobs.succeed(job, [factories.new_variant()]).variant_ids[0]
    place = ModelPlace(id=variant_id, name="mine")
    made = evaluations.submit(project_id, SPEC, EvaluationInputs(model=place))
    usage, limits = (getattr(UsageMeter(database, settings), name)(project_id) for name in ("usage", "limits"))
    assert (usage.jobs_submitted, usage.evaluations_submitted, limits.active_jobs) == (1, 1, 1)
    removal = Removal(database, LocalArtifacts(tmp_path / "artifacts"), settings)
    with pytest.raises(InUse, match=made.id):
        removal.variant(project_id, variant_id)
    with pytest.raises(InUse):
        removal.job(project_id, made.id, WorkKind.EVALUATION)
    with pytest.raises(NotFound):
        removal.job(project_id, made.id)
    evaluations.order(project_id, made.id, "cancel")
    removal.variant(project_id, variant_id)
    removal.job(project_id, made.id, WorkKind.EVALUATION)
    assert evaluations.list(project_id).data == ()
