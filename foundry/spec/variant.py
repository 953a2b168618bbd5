"""What comes out: a plan, metrics, files, and the manifest that binds them."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from foundry.spec.adapter import adapter_file
from foundry.spec.job import JobSpec
from foundry.spec.record import Record
from foundry.spec.stages import Repair
from foundry.spec.target import Budget
from foundry.spec.weights import Shape

Bounds = Annotated[
    tuple[float, float],
    WithJsonSchema({"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}),
]
"""Where an interval begins and ends. The schema says a list of two: not every reader of OpenAPI knows `prefixItems`."""


WITH_ADAPTER = " with adapter"
"""Behind a format in `Metrics.model`: measured with the LoRA adapter that ships beside the weights."""
_WEIGHTS = (".gguf", ".safetensors", ".onnx", ".onnx.data")


class Candidate(Record):
    """A shape that was considered, and what it scored."""

    shape: Shape
    """Its lengths along every axis."""
    parameters: int
    """By arithmetic."""
    used_bytes: int
    """File in the budget's format, adapter and full KV cache, by arithmetic."""
    held_out_kl: float | None = None
    """Mean KL from teacher to student right after the cut, nats per token; None if it was not sliced."""


class PrunePlan(Record):
    """The decision: which indices of each axis stay. Ships with the variant. Sorted, counted from 0."""

    family: str
    target: str
    teacher_shape: Shape
    shape: Shape
    layers: tuple[int, ...]
    hidden: tuple[int, ...]
    """In the teacher's own order, or, when `rotated`, in the order of the principal axes of its residual stream."""
    rotated: bool = False
    ffn: tuple[tuple[int, ...], ...]
    """For each kept layer its kept channels; with experts, one entry for each kept expert of each kept layer."""
    heads: tuple[tuple[int, ...], ...]
    """For each kept layer, its kept query heads, the same number from every KV group that stays."""
    kv_heads: tuple[tuple[int, ...], ...] = ()
    """For each kept layer, its kept KV heads; empty when all stay."""
    experts: tuple[tuple[int, ...], ...] = ()
    """For each kept layer, its kept experts; empty when all stay or there are none."""
    repair: tuple[Repair, ...] = ()
    """The repairs that were applied."""
    candidates: tuple[Candidate, ...] = ()
    """The shapes that were compared, best first."""

    @property
    def cuts_nothing(self) -> bool:
        """Whether the teacher already fits."""
        return self.shape == self.teacher_shape


class Metrics(Record):
    """What was measured of one model on the held-out text. Losses in nats per token."""

    model: str
    """teacher, corrected, pruned, distilled, lora, or a format such as gguf:q4_k_m."""
    parameters: int | None = None
    """Without those of an adapter beside the weights."""
    file_bytes: int | None = None
    """What the runtime loads in this format, an adapter beside it included."""
    held_out_loss: float | None = None
    """Cross entropy with the held-out text."""
    perplexity: float | None = None
    """e to the power of `held_out_loss`."""
    bits_per_byte: float | None = None
    """`held_out_loss` of all tokens in bits, over the bytes of the text: compares models of different vocabularies."""
    kl_to_teacher: float | None = None
    """Mean KL from the teacher's next-token distribution to this model's, nats per token; null without a teacher."""
    top1_agreement_ratio: float | None = None
    """Share of held-out positions where the most likely next token is the teacher's."""
    top5_agreement_ratio: float | None = None
    """Share of held-out positions where the teacher's most likely token is among this model's five likeliest."""
    loss_over_teacher: float | None = None
    """Held-out loss minus that of the teacher on the same tokens."""
    exact_match_ratio: float | None = None
    """Share of held-out prompts whose greedy answer is the completion, letter case, articles and marks aside."""
    f1_ratio: float | None = None
    """Mean over those prompts of the overlap of words between answer and completion (F1 as in SQuAD)."""
    answers: int | None = None
    """Held-out prompts that were answered."""
    tokens: int | None = None
    """Held-out tokens that were scored."""
    documents: int | None = None
    """Held-out documents that they came from."""
    intervals: dict[str, Bounds] = Field(default_factory=dict)
    """95 % intervals by the name of the figure above: bootstrap over documents, one set of resamples for all models of
    a job. A figure of too few documents has none."""
    prompt_tokens_per_s: float | None = None
    """Tokens of a prompt that are read in a second, on `hardware`; null where it was not timed."""
    decode_tokens_per_s: float | None = None
    """Tokens that are written in a second, one after the other, on `hardware`; null where it was not timed."""
    load_ms: float | None = None
    """Until the file was open in the runtime."""
    peak_memory_bytes: int | None = None
    """The most that the whole process held: weights, cache, buffers and the runtime itself."""
    hardware: str | None = None
    """The accelerator, or the processor with the number of threads; null where nothing was timed."""
    runtime: str | None = None
    """What opened the file, with its version; for rows of formats, like the three below."""
    runtime_loss_difference: float | None = None
    """Held-out loss minus that of transformers with the same weights on the same tokens: what the format costs. A
    file is scored on less text than a model: its `held_out_loss` compares with that of other files only."""
    runtime_top1_ratio: float | None = None
    """Share of held-out positions where the file's most likely token is that of transformers on the same weights."""
    runtime_greedy_tokens: int | None = None
    """Greedy tokens equal to transformers', in the prompt where they are fewest."""


class Artifact(Record):
    """One file of a variant. `path` is relative to the variant's folder, with forward slashes."""

    path: str
    """Relative to the folder of the variant, with forward slashes."""
    bytes: int
    """Of the file."""
    sha256: str
    """Of its bytes, 64 hexadecimal digits."""
    format: str | None = None
    """The format this file belongs to; None for manifest, card and plan."""


class Lineage(Record):
    """Where a variant comes from."""

    teacher: str
    """As the spec names it."""
    teacher_sha256: str
    """Digest over name, size and digest of every weight file of the teacher."""
    data: str
    """As the spec names it."""
    data_sha256: str
    """Of the data's bytes."""
    versions: dict[str, str]
    """Library name -> version."""


class Signature(Record):
    """Who vouches for a manifest: Ed25519 over everything else that it says (`foundry verify`)."""

    key: str
    """The public key, ed25519:BASE64."""
    value: str
    """The signature, base64."""


class VariantManifest(Record):
    """`manifest.json` of a variant's folder: every other file with its digest, and how it all came about."""

    format_version: int = 1
    """Of this document; 1 so far."""
    target: str
    """The target that it was made for."""
    family: str
    """The table of weight names that it follows."""
    shape: Shape
    """Its lengths along every axis."""
    parameters: int
    """Without those of an adapter beside the weights."""
    budget: Budget
    """What the target allowed."""
    fits_budget: bool
    """Whether all that is known of it is within that."""
    over_budget: tuple[str, ...] = ()
    """Why it does not fit; empty when it does."""
    created_at: datetime
    """When it was exported, UTC."""
    spec: JobSpec
    """The request as the run read it, with every default."""
    lineage: Lineage
    """What it was made from."""
    metrics: tuple[Metrics, ...]
    """Of teacher, students and files, as far as each was measured."""
    failed_formats: dict[str, str]
    """Formats that were asked for and did not pass their check, with the reason."""
    files: tuple[Artifact, ...]
    """Every file of the folder but this one."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Steps, tokens and losses of the distillation."""
    mix: dict[str, str] = Field(default_factory=dict)
    """Of gguf:mixed, the type of each class of tensors; one whose rows its blocks do not divide has the next larger."""
    signature: Signature | None = None
    """By the service that published it, or the installation that ran it."""


def device_bytes(files: Sequence[Artifact], form: str, planned: int | None = None) -> int | None:
    """Bytes that the runtime of a format loads: its weights, and the adapter beside them where there is one.

    Where the files hold no such weights they count as `planned`; None without that too.
    """
    sizes = [file.bytes for file in files if file.format == form and file.path.endswith(_WEIGHTS)]
    weights = sum(sizes) if sizes else planned
    if weights is None:
        return None
    return weights + sum(file.bytes for file in files if file.path == adapter_file(form))


def device_row(metrics: Iterable[Metrics], form: str) -> Metrics | None:
    """The measurements of a format, with the adapter beside it where that was measured."""
    rows = {row.model: row for row in metrics}
    return rows.get(form + WITH_ADAPTER) or rows.get(form)
