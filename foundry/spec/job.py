"""What a user asks for: one teacher, one set of data, some targets, some stages."""

import re
from typing import Annotated, Self

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from foundry.spec.formats import parse_format
from foundry.spec.record import Count, Record
from foundry.spec.stages import Correct, Distill, Evaluate, Export, Lora, Prune

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class CustomTarget(Record):
    """A device that no profile describes: what fits is said by bytes or by parameters."""

    name: Name
    max_bytes: Count | None = None
    """The file in the device format plus the KV cache at `context_tokens`."""
    max_params: Count | None = None
    context_tokens: Count = 2048
    format: str | None = None
    """The format the device runs; by default the job's first GGUF, else its first format."""

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.max_bytes is None) == (self.max_params is None):
            raise ValueError("give exactly one of max_bytes and max_params")
        if self.format is not None:
            parse_format(self.format)
        return self


Target = Annotated[
    Annotated[Name, Tag("<name>")] | Annotated[CustomTarget, Tag("<custom>")],
    Discriminator(lambda value: "<name>" if isinstance(value, str) else "<custom>"),
]


class JobSpec(Record):
    """The frozen request. The same fields in YAML, in JSON and in Python.

    >>> JobSpec(teacher="./my-teacher", data="./domain.jsonl", targets=("smartphone", "laptop")).formats
    ('safetensors', 'gguf:q4_k_m')
    """

    teacher: Text
    """A local folder, or ORG/NAME[@REVISION] on the model hub."""
    data: Text
    """A JSON Lines or text file, or the id of an uploaded dataset."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1, max_length=16)]
    name: Annotated[str, StringConstraints(max_length=200)] = ""
    correct: Correct | None = None
    prune: Prune = Prune()
    distill: Distill | None = Distill()
    lora: Lora | None = None
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    formats: Annotated[tuple[str, ...], Field(min_length=1)] = ("safetensors", "gguf:q4_k_m")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @property
    def target_names(self) -> tuple[str, ...]:
        """The name of every target, in order."""
        return tuple(t if isinstance(t, str) else t.name for t in self.targets)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = self.target_names
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"targets named twice: {', '.join(twice)}")
        for text in self.formats:
            parse_format(text)
        if len(set(self.formats)) != len(self.formats):
            raise ValueError("a format is listed twice")
        return self


_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$", re.ASCII)


def is_hub_id(teacher: str) -> bool:
    """Whether this names a model on the hub (ORG/NAME) and not a folder (./x, /x, ../x)."""
    return bool(_HUB_ID.fullmatch(teacher))
