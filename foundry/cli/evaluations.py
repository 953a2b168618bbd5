"""Evaluations on a service: what `foundry evaluate` does with an id, and the group `foundry evaluations`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foundry.cli.service_client import AsJson, Limit, service

if TYPE_CHECKING:
    from foundry.client.client import Foundry
    from foundry.spec.evaluation import Evaluation

evaluations = typer.Typer(no_args_is_help=True, help="Models and variants put to benchmarks by the service.")
EvaluationId = Annotated[str, typer.Argument(metavar="EVALUATION", help="An evaluation's id.")]
_MODELS = ("var_", "mdl_")


def is_of_the_service(model: str) -> bool:
    """Whether a model's name is an id that only a service knows."""
    return model.startswith(_MODELS)


def is_evaluation(work: str) -> bool:
    """Whether an id is of an evaluation and not of a job."""
    return work.startswith("eval_")


def require_unset(options: Mapping[str, object]) -> None:
    """Refuse what an evaluation on the service cannot be told; None is what was not given."""
    if given := [option for option, value in options.items() if value is not None]:
        raise typer.BadParameter(f"{', '.join(given)}: the service's operator decides that, not this command")


def submit(asked: Mapping[str, Any], watch: bool, as_json: bool) -> None:
    """Queue an evaluation and say how to follow it, or follow it; None is what was not given."""
    from foundry.cli import render

    asked = {name: value for name, value in asked.items() if value is not None}
    if not {"suite", "tasks", "data"} & set(asked):
        asked["suite"] = "quick"
    with service() as foundry:
        made = foundry.evaluations.create(asked)
        if watch and not as_json:
            follow(foundry, made.id)
        elif watch:
            render.print_json(foundry.evaluations.wait(made.id, progress=False))
        elif as_json:
            render.print_json(made)
        else:
            print(made.id)
            render.say(f"{made.status}; follow it with: foundry watch {made.id}")


def follow(foundry: "Foundry", evaluation_id: str) -> None:
    """Stay to the end and show what was found."""
    from foundry.cli import render

    try:
        found = foundry.evaluations.wait(evaluation_id)
    except KeyboardInterrupt:
        cancel = f"foundry evaluations cancel {evaluation_id}"
        render.say(f"the evaluation goes on: foundry watch {evaluation_id}, {cancel}", style="yellow")
        raise
    _show_result(found)


@evaluations.command("list")
def list_evaluations(
    status: Annotated[str | None, typer.Option(help="Only evaluations that stand there, such as running.")] = None,
    limit: Limit = 20, as_json: AsJson = False,
) -> None:  # fmt: skip
    """List evaluations, newest first."""
    from foundry.cli import render, tables

    with service() as foundry:
        found = list(foundry.evaluations.list(status=status, limit=limit))
    empty = "no evaluations" + (f" are {status}" if status else "; begin one with: foundry evaluate VARIANT")
    render.show_table(found, as_json, tables.evaluations_table, empty)


@evaluations.command("show")
def show_evaluation(evaluation: EvaluationId, as_json: AsJson = False) -> None:
    """Show what an evaluation has found so far."""
    from foundry.cli import render, tables

    with service() as foundry:
        found = foundry.evaluations.get(evaluation)
    if as_json:
        render.print_json(found)
        return
    render.out().print(tables.evaluations_table([found]))
    _show_result(found)


@evaluations.command("cancel")
def cancel_evaluation(evaluation: EvaluationId, as_json: AsJson = False) -> None:
    """Stop an evaluation for good; what is finished stays."""
    from foundry.cli import render

    with service() as foundry:
        render.show_status(foundry.evaluations.cancel(evaluation), as_json)


@evaluations.command("pause")
def pause_evaluation(evaluation: EvaluationId, as_json: AsJson = False) -> None:
    """Let an evaluation wait."""
    from foundry.cli import render

    with service() as foundry:
        render.show_status(foundry.evaluations.pause(evaluation), as_json)


@evaluations.command("resume")
def resume_evaluation(evaluation: EvaluationId, as_json: AsJson = False) -> None:
    """Queue a paused evaluation again."""
    from foundry.cli import render

    with service() as foundry:
        render.show_status(foundry.evaluations.resume(evaluation), as_json)


@evaluations.command("delete")
def delete_evaluation(evaluation: EvaluationId, as_json: AsJson = False) -> None:
    """Delete an ended evaluation with its result."""
    from foundry.cli import render

    with service() as foundry:
        foundry.evaluations.delete(evaluation)
    render.show_done(as_json, "deleted", evaluation)


def _show_result(evaluation: "Evaluation") -> None:
    from foundry.cli import evaluating, render

    result = evaluation.result
    if result is not None and result.benchmarks is not None:
        evaluating.show(result.benchmarks)
    if result is not None and result.held_out:
        render.out().print(evaluating.domain_table(result.held_out))
