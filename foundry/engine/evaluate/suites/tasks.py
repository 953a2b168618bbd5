"""From a suite's line to settings that the harness takes: its own prompts, data from the hub or from this machine."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from foundry.engine.evaluate.suites import scoring
from foundry.engine.evaluate.suites.local import Splits, expected, find_local, hub_folder, split_overrides
from foundry.errors import UnknownTask
from foundry.spec.suite import Suite, SuiteTask, nearest

Config = dict[str, Any]
_HARNESS = Path(lm_eval.tasks.__file__).parent
_OURS = "foundry:"
_METRIC = {"aggregation": "mean", "higher_is_better": True}


class DataMissing(Exception):
    """A task's data is not where it was looked for; the message says what is expected there."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A task as the harness takes it: one set of settings, or one for each subject."""

    configs: tuple[Config, ...]
    note: str = ""


def prepare(task: SuiteTask, data_dir: Path | None) -> Prepared:
    """Settings and data of a task. Raises `DataMissing`, or `InvalidData` when files cannot be read."""
    configs = list(_configs(task))
    if data_dir is None:
        return Prepared(configs=tuple(configs))
    found = {config["task"]: _with_data(config, task, data_dir) for config in configs}
    there = {name: prepared for name, prepared in found.items() if prepared}
    if not there:
        looked = expected(task.task)
        raise DataMissing(
            f"no data in {data_dir}: expected {looked + ', or ' if looked else ''}the folder {task.dataset or ''}"
        )
    notes = [note for _, note in there.values() if note]
    if len(there) < len(found):
        notes.append(f"{len(there)} of {len(found)} subjects, the others have no files")
    return Prepared(configs=tuple(config for config, _ in there.values()), note="; ".join(dict.fromkeys(notes)))


def _configs(task: SuiteTask) -> Iterator[Config]:
    for path in _paths(task):
        # Functions are not looked up for tasks that run code: their modules fetch a metric from the hub when imported.
        config = load_yaml(path, resolve_func=not task.runs_code)
        config.pop("tag", None)
        if task.shots is not None:
            config["num_fewshot"] = task.shots
        yield config | (_CODE[task.task] if task.runs_code else {})


_CODE: Mapping[str, Config] = {
    "humaneval": {
        "metric_list": [{"metric": scoring.pass_at_1, **_METRIC}],
        "filter_list": [
            {"name": "none", "filter": [{"function": "custom", "filter_fn": scoring.whole_functions}]},
        ],
        "unsafe_code": False,
    },
    "mbpp": {"metric_list": [{"metric": scoring.pass_at_1, **_METRIC}], "fewshot_config": None, "unsafe_code": False},
}  # fmt: skip
"""What replaces the harness's own way to run code, which confines nothing; hence `unsafe_code` is ours to lift."""


def _paths(task: SuiteTask) -> list[Path]:
    assert task.file is not None
    if task.file.startswith(_OURS):
        return [Path(str(files("foundry") / "data" / "tasks" / task.file.removeprefix(_OURS)))]
    return sorted(_HARNESS.glob(task.file))


def _with_data(config: Config, task: SuiteTask, data_dir: Path) -> tuple[Config, str] | None:
    if place := hub_folder(task.dataset, data_dir):
        return config | {"dataset_path": str(place)}, ""
    found = find_local(str(config["task"]), data_dir)
    if found is None or not found.splits:
        return None
    splits, note = split_overrides(list(found.splits), config)
    if not config.get("num_fewshot"):
        note = ""
    changed = {**config, **splits, **(found.overrides or {}), "custom_dataset": _dataset(found.splits)}
    return changed, "; ".join(part for part in (found.note, note) if part)


def _dataset(splits: Splits) -> Callable[..., datasets.DatasetDict]:
    def load(**_: object) -> datasets.DatasetDict:
        return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})

    return load


def custom_suite(folder: Path, wanted: tuple[str, ...]) -> tuple[Suite, TaskManager]:
    """Every task of a folder of YAML files, or those that are named. Raises `UnknownTask` with the nearest."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    names = list(manager.all_subtasks)
    if not names:
        raise UnknownTask(f"{folder} holds no task: a YAML file with `task:` and `dataset_path:`", pointer="/tasks")
    for name in wanted:
        if name not in names:
            raise UnknownTask(f"{folder} has no task {name!r}; {nearest(name, names)}", pointer="/tasks")
    tasks = tuple(SuiteTask(task=name) for name in wanted or tuple(names))
    return Suite(name=folder.name, description=str(folder), tasks=tasks), manager


def named_tasks(names: tuple[str, ...]) -> tuple[Suite, TaskManager]:
    """Tasks of the harness by name, whatever suite they are in. Raises `UnknownTask` with the nearest."""
    manager = TaskManager()
    for name in names:
        if name not in manager.all_tasks:
            raise UnknownTask(f"the harness has no task {name!r}; {nearest(name, manager.all_tasks)}", pointer="/tasks")
    return Suite(name="tasks", tasks=tuple(SuiteTask(task=name) for name in names)), manager
