"""Tables of the command line: each kind of object in the columns that people ask for."""

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from foundry.cli.render import number, size, table
from foundry.spec.device import DeviceProfile
from foundry.spec.evaluation import Evaluation
from foundry.spec.lifecycle import Status
from foundry.spec.resources import Job, Variant
from foundry.spec.variant import Metrics, VariantManifest

_STATUS_STYLES = {
    Status.SUCCEEDED: "green", Status.FAILED: "bold red", Status.CANCELLED: "yellow", Status.RUNNING: "cyan",
    Status.PAUSED: "yellow",
}  # fmt: skip


def jobs_table(jobs: Iterable[Job]) -> Table:
    """Newest first, with the reason where there is one."""
    rows = table("job", "status", "stage", "targets", "created", "name", "reason")
    for job in jobs:
        names = ", ".join(t if isinstance(t, str) else t.name for t in job.spec.targets)
        rows.add_row(
            job.id, Text(job.status.value, style=_STATUS_STYLES.get(job.status, "")), _stage(job), names,
            f"{job.created_at.astimezone():%Y-%m-%d %H:%M}", Text(job.name),
            Text(job.status_reason.message if job.status_reason else ""),
        )  # fmt: skip
    return rows


def evaluations_table(evaluations: Iterable[Evaluation]) -> Table:
    """Newest first, with what was asked and how far it is."""
    rows = table("evaluation", "status", "model", "asked", "done", "created", "name", "reason")
    for one in evaluations:
        suite = one.spec.chosen_suite()
        asked = [suite.name] if suite else []
        found = one.result.benchmarks.tasks if one.result and one.result.benchmarks else ()
        rows.add_row(
            one.id, Text(one.status.value, style=_STATUS_STYLES.get(one.status, "")), one.spec.model,
            ", ".join([*asked, *([one.spec.data] if one.spec.data else [])]),
            f"{len(found)}/{len(suite.tasks)}" if suite else "", f"{one.created_at.astimezone():%Y-%m-%d %H:%M}",
            Text(one.name), Text(one.status_reason.message if one.status_reason else ""),
        )  # fmt: skip
    return rows


def _stage(job: Job) -> str:
    if job.is_terminal or job.stage is None:
        return ""
    return f"{job.stage} {job.progress.step:,}/{job.progress.steps:,}" if job.progress else job.stage


def targets_table(profiles: Iterable[DeviceProfile]) -> Table:
    """The device profiles with what a model may take there."""
    rows = table(
        "target", "memory for the model", "context, tokens", "bandwidth", "tokens/s\nat least", "format", "description"
    )
    for profile in profiles:
        rows.add_row(
            profile.name, size(profile.max_bytes), f"{profile.context_tokens:,}",
            f"{size(profile.memory_bandwidth_bytes_per_s)}/s", f"{profile.minimum_tokens_per_s}", profile.format,
            profile.description,
        )  # fmt: skip
    return rows


def variants_table(variants: Iterable[Variant]) -> Table:
    """What came out of a job."""
    rows = table("variant", "target", "parameters", "all files", "fits its budget", "files")
    for variant in variants:
        fits = Text("yes", style="green") if variant.fits_budget else Text("no", style="bold red")
        names = dict.fromkeys(f.path.split("/")[0] + "/" * ("/" in f.path) for f in variant.files if f.format)
        rows.add_row(
            variant.id, variant.target, number(variant.parameters), size(variant.bytes), fits, ", ".join(names)
        )
    return rows


def measured_table(rows: Sequence[Metrics]) -> Table:
    """What files of a variant do on one machine; an empty cell was not measured."""
    columns = ["file", "load,\nms", "peak\nmemory", "prompt,\ntokens/s", "decode,\ntokens/s", "loss, nats\nper token"]
    found = table("format", right=columns)
    found.add_column("runtime; hardware")
    for row in rows:
        found.add_row(
            row.model, size(row.file_bytes or 0), f"{row.load_ms or 0:,.0f}", size(row.peak_memory_bytes or 0),
            f"{row.prompt_tokens_per_s or 0:,.1f}", f"{row.decode_tokens_per_s or 0:,.1f}",
            f"{row.held_out_loss:.4f}" if row.held_out_loss is not None else "", f"{row.runtime}; {row.hardware}",
        )  # fmt: skip
    return found


def metrics_table(manifests: Sequence[VariantManifest]) -> Table:
    """Teacher, stages and formats side by side, measured on held-out text; an empty cell was not measured.

    The loss of a file is its difference to transformers with the same weights on the same tokens.
    """
    columns = ["para-\nmeters", "file", "loss, nats\nper token", "perplexity", "top-1\nagreement", "decode,\ntokens/s"]
    rows = table("target", "model", right=columns)
    for manifest in manifests:
        for metrics in manifest.metrics:
            rows.add_row(manifest.target, metrics.model, *_measured(metrics))
        rows.add_section()
    return rows


def _measured(metrics: Metrics) -> list[str]:
    agreement, difference = metrics.top1_agreement_ratio, metrics.runtime_loss_difference
    loss = f"{metrics.held_out_loss:.3f}" if metrics.held_out_loss is not None else ""
    perplexity = f"{metrics.perplexity:.2f}" if metrics.perplexity is not None else ""
    if metrics.runtime is not None:  # files are scored on less text: only the difference stands beside the stages
        loss, perplexity = (f"{difference:+.4f}" if difference is not None else ""), ""
    return [
        number(metrics.parameters) if metrics.parameters else "",
        size(metrics.file_bytes) if metrics.file_bytes else "",
        loss,
        perplexity,
        f"{agreement:.1%}" if agreement is not None else "",
        f"{metrics.decode_tokens_per_s:,.0f}" if metrics.decode_tokens_per_s is not None else "",
    ]
