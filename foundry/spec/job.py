"""What a user asks for: one teacher, one set of data, some targets, some stages."""

import re
from typing import Annotated, Self

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from foundry.spec.formats import parse_format
from foundry.spec.record import Count, Record
from foundry.spec.speed import Bandwidth, Compute, LeastSpeed, Speed
from foundry.spec.stages import Correct, Distill, Evaluate, Export, Lora, Prune

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


RUNTIME_OVERHEAD_BYTES = 250_000_000
"""What a runtime takes beside file and cache where a target of one's own does not say; as of a smartphone."""


class CustomTarget(Record):
    """A device that no profile describes: what fits is said by bytes, by parameters, or by the device's memory."""

    name: Name
    """1 to 64 of a-z, 0-9, dot, dash and underscore."""
    max_bytes: Count | None = None
    """The file in the device format plus the KV cache at `context_tokens`."""
    max_params: Count | None = None
    """Parameters of the model, in place of bytes."""
    memory_bytes: Count | None = None
    """What the model's process may take: file, cache and `runtime_overhead_bytes`."""
    runtime_overhead_bytes: Count = RUNTIME_OVERHEAD_BYTES
    """What the runtime takes of `memory_bytes` for itself; without that it has no effect."""
    memory_bandwidth_bytes_per_s: Bandwidth = None
    compute_ops_per_s: Compute = None
    minimum_tokens_per_s: LeastSpeed = None
    context_tokens: Count = 2048
    """Length of the text whose KV cache has to fit; a teacher with less counts with its own."""
    format: str | None = None
    """The format the device runs; by default the job's first GGUF, else its first format."""

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if [self.max_bytes, self.max_params, self.memory_bytes].count(None) != 2:
            raise ValueError("give exactly one of max_bytes, max_params and memory_bytes")
        if self.memory_bytes is not None and self.memory_bytes <= self.runtime_overhead_bytes:
            raise ValueError(
                f"memory_bytes {self.memory_bytes:,} leaves nothing for a model beside the runtime's own "
                f"{self.runtime_overhead_bytes:,} bytes; allow more, or say what your runtime takes in "
                "runtime_overhead_bytes"
            )
        if self.minimum_tokens_per_s is not None and self.memory_bandwidth_bytes_per_s is None:
            raise ValueError("minimum_tokens_per_s can be judged only with memory_bandwidth_bytes_per_s")
        if self.format is not None:
            parse_format(self.format)
        return self

    @property
    def file_and_cache_bytes(self) -> int | None:
        """What is left for the file and the KV cache; None where parameters are counted."""
        return self.memory_bytes - self.runtime_overhead_bytes if self.memory_bytes is not None else self.max_bytes

    @property
    def speed(self) -> Speed:
        """What bounds its speed."""
        return Speed(
            memory_bandwidth_bytes_per_s=self.memory_bandwidth_bytes_per_s, compute_ops_per_s=self.compute_ops_per_s,
            minimum_tokens_per_s=self.minimum_tokens_per_s,
        )  # fmt: skip


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
    """A JSON Lines, Parquet or text file, or the id of an uploaded dataset."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1, max_length=16)]
    """What the variants are for, one each: the name of a profile, of a target of the project's own, or a device
    described here."""
    name: Annotated[str, StringConstraints(max_length=200)] = ""
    """For people; may be empty."""
    correct: Correct | None = None
    """Null, the default, leaves the teacher as it is."""
    prune: Prune = Prune()
    """Always run; a target that the teacher fits is not cut."""
    distill: Distill | None = Distill()
    """Null leaves the weights as the cut and its repair made them."""
    lora: Lora | None = None
    """Null, the default, fits no adapter."""
    evaluate: Evaluate = Evaluate()
    """Always run: how much is measured of every model."""
    export: Export = Export()
    """Always run: how the files are made and checked."""
    formats: Annotated[tuple[str, ...], Field(min_length=1)] = ("safetensors", "gguf:q4_k_m")
    """What every variant ships in: safetensors, gguf:TYPE or onnx:TYPE as GET /v1/formats lists them."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of every random choice."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Among the project's own queued jobs the higher goes first; what other projects get does not depend on it."""

    @property
    def target_names(self) -> tuple[str, ...]:
        """The name of every target, in order."""
        return tuple(t if isinstance(t, str) else t.name for t in self.targets)

    @property
    def attached_rank(self) -> int:
        """Rank of the LoRA adapter that ships beside the weights; 0 where there is none."""
        return self.lora.rank if self.lora is not None and self.lora.ship == "attached" else 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = self.target_names
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"targets named twice: {', '.join(twice)}")
        for text in self.formats:
            parse_format(text)
        if len(set(self.formats)) != len(self.formats):
            raise ValueError("a format is listed twice")
        if self.attached_rank and all(parse_format(text).container == "onnx" for text in self.formats):
            raise ValueError(
                "lora.ship is 'attached', but no format takes an adapter: ONNX Runtime has none; "
                "add safetensors or a GGUF to formats, or merge it"
            )
        return self


_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$", re.ASCII)


def is_hub_id(teacher: str) -> bool:
    """Whether this names a model on the hub (ORG/NAME) and not a folder (./x, /x, ../x)."""
    return bool(_HUB_ID.fullmatch(teacher))
