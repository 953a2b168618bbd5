"""`README.md` of a variant: what it is, what was cut, how it was trained, what was measured, how to run it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from foundry.engine.export.manifest import SAFETENSORS_FOLDER, adapter_of
from foundry.spec.adapter import ADAPTER_FOLDER, ADAPTER_GGUF
from foundry.spec.job import is_hub_id
from foundry.spec.variant import Metrics, PrunePlan, VariantManifest
from foundry.spec.weights import Shape

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\s*\n", re.DOTALL)
_CARD_BYTES = 1_000_000
_LICENCE_KEYS = ("license", "license_name", "license_link")
_AXES = {
    "layers": "layers", "hidden": "hidden width", "ffn": "feed-forward width", "heads": "attention heads",
    "kv_heads": "key/value heads", "head_dim": "head size", "vocab": "vocabulary",
}  # fmt: skip


def licence_of(teacher: Path) -> dict[str, str]:
    """What the front matter of the teacher's card says about its licence; empty when it says nothing."""
    card = teacher / "README.md"
    if not card.is_file() or card.stat().st_size > _CARD_BYTES:
        return {}
    matter = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
    try:
        found = yaml.safe_load(matter.group(1)) if matter else None
    except yaml.YAMLError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: found[key] for key in _LICENCE_KEYS if isinstance(found.get(key), str)}


def write_card(
    path: Path, manifest: VariantManifest, plan: PrunePlan, licence: Mapping[str, str], terms: Sequence[str],
    notes: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write the card; `terms` names the licence files that were carried over, `notes` is what a user must know."""
    sections = [
        _front_matter(manifest, licence),
        _summary(manifest),
        _cut(plan),
        _training(manifest),
        _measured(manifest),
        _files(manifest),
        _how_to_run(manifest, notes),
        _licence(manifest, licence, terms),
    ]
    path.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")


def _front_matter(manifest: VariantManifest, licence: Mapping[str, str]) -> str:
    fields: dict[str, Any] = {
        **licence,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["foundry", "pruned", "distilled"],
    }
    if is_hub_id(manifest.spec.teacher):
        fields["base_model"] = manifest.spec.teacher.partition("@")[0]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).strip()}\n---"


def _summary(manifest: VariantManifest) -> str:
    budget = manifest.budget
    limit = f"{budget.max_params:,} parameters" if budget.max_params else f"{budget.max_bytes:,} bytes"
    why = f": {'; '.join(manifest.over_budget)}" if manifest.over_budget else ""
    fits = "It fits" if manifest.fits_budget else f"**It does not fit**{why}"
    return (
        f"# {_name(manifest.spec.teacher)} for {manifest.target}\n\n"
        f"A language model of {manifest.parameters:,} parameters, made by Foundry from `{manifest.spec.teacher}` "
        f"for the target `{manifest.target}`: {limit}, as {budget.format} with a cache of {budget.context_tokens:,} "
        f"tokens. {fits}."
    )


def _name(teacher: str) -> str:
    return Path(teacher.partition("@")[0]).name


def _cut(plan: PrunePlan) -> str:
    if plan.cuts_nothing:
        return "## What was cut\n\nNothing: the teacher already fits."
    rows = [
        (label, f"{before:,}", f"{after:,}", f"{after / before:.0%}" if after != before else "all")
        for axis, label in _AXES.items()
        for before, after in [(_length(plan.teacher_shape, axis), _length(plan.shape, axis))]
    ]
    repairs = f" Repaired by: {', '.join(plan.repair)}." if plan.repair else ""
    return (
        "## What was cut\n\n"
        + _table(("axis", "teacher", "this model", "kept"), rows)
        + f"\n\n`plan.json` names every layer, channel and head that stayed.{repairs}"
    )


def _length(shape: Shape, axis: str) -> int:
    return int(getattr(shape, axis))


def _training(manifest: VariantManifest) -> str:
    spec, lines = manifest.spec, []
    if spec.correct is not None:
        lines.append(
            f"- The teacher was first adapted to the data ({spec.correct.method}) where that lowered its loss."
        )
    if "distill" in manifest.training:
        lines.append(f"- Distilled from the teacher's distribution: {_facts(manifest.training['distill'])}.")
    if spec.lora is not None and "lora" in manifest.training:
        facts = _facts(manifest.training["lora"])
        where = "**merged into these weights**"
        if spec.lora.ship == "attached":
            where = f"**not merged**: `{ADAPTER_FOLDER}/` holds it for PEFT"
            where += f" and for llama.cpp (`--lora {ADAPTER_GGUF}`)" if adapter_of(manifest, "gguf") else ""
        lines.append(f"- A LoRA adapter of rank {spec.lora.rank} was fitted and {where}: {facts}.")
    return "## How it was trained\n\n" + ("\n".join(lines) or "It was not trained after pruning.")


def _facts(summary: Mapping[str, Any]) -> str:
    """The plain figures of a training summary."""
    plain = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    return ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in plain.items())


def _measured(manifest: VariantManifest) -> str:
    stages = [row for row in manifest.metrics if row.runtime is None]
    formats = [row for row in manifest.metrics if row.runtime is not None]
    blocks = ["## Measured on held-out text"]
    if stages:
        blocks.append(_stage_table(stages))
    if formats:
        scored = " or ".join(sorted({f"{row.tokens:,}" for row in formats if row.tokens}))
        blocks.append(
            f"Each file in its own runtime, on {scored} tokens of that text (compare these rows with each other):"
        )
        blocks.append(_format_table(formats))
    if manifest.mix:
        types = ", ".join(f"{role} {kind}" for role, kind in manifest.mix.items())
        blocks.append(f"The types of gguf:mixed, chosen by what each class of tensors costs: {types}.")
    failed = [f"- `{form}` is not shipped: {reason}" for form, reason in manifest.failed_formats.items()]
    return "\n\n".join([*blocks, *(["\n".join(failed)] if failed else [])])


def _stage_table(rows: Sequence[Metrics]) -> str:
    head = ("model", "parameters", "loss (nats/token)", "perplexity", "KL to teacher", "top token is the teacher's")
    cells = [
        (
            row.model, _number(row.parameters), _number(row.held_out_loss), _number(row.perplexity),
            _number(row.kl_to_teacher), _share(row.top1_agreement_ratio),
        )
        for row in rows
    ]  # fmt: skip
    return _table(head, cells)


def _format_table(rows: Sequence[Metrics]) -> str:
    head = (
        "format", "bytes", "loss (nats/token)", "top token is that of transformers", "decode tokens/s",
        "peak memory (bytes)", "measured in",
    )  # fmt: skip
    cells = [
        (
            row.model, _number(row.file_bytes), _number(row.held_out_loss), _share(row.runtime_top1_ratio),
            _number(row.decode_tokens_per_s), _number(row.peak_memory_bytes), f"{row.runtime}; {row.hardware}",
        )
        for row in rows
    ]  # fmt: skip
    return _table(head, cells)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _files(manifest: VariantManifest) -> str:
    rows = [(f"`{file.path}`", f"{file.bytes:,}", file.format or "") for file in manifest.files]
    note = "`manifest.json` holds the SHA-256 of every file, the job's spec, and where the model comes from."
    return "## Files\n\n" + _table(("file", "bytes", "format"), rows) + f"\n\n{note}"


def _how_to_run(manifest: VariantManifest, notes: Sequence[str]) -> str:
    blocks = ["## How to run"]
    files = [file for file in manifest.files if file.path.endswith(".gguf")]
    gguf = next((f.path for f in sorted(files, key=lambda f: f.format != manifest.budget.format)), None)
    if gguf:
        lora = f" --lora {ADAPTER_GGUF}" if adapter_of(manifest, "gguf") else ""
        blocks.append(f'llama.cpp:\n\n```\nllama-cli -m {gguf}{lora} -p "Once upon a time" -n 64\n```')
    if any(file.format == "safetensors" for file in manifest.files):
        blocks.append(
            "transformers:\n\n```python\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{SAFETENSORS_FOLDER}")\n'
            f'model = AutoModelForCausalLM.from_pretrained("{SAFETENSORS_FOLDER}")\n'
            'inputs = tokenizer("Once upon a time", return_tensors="pt")\n'
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))\n```"
        )
    onnx = sorted({file.path.partition("/")[0] for file in manifest.files if (file.format or "").startswith("onnx:")})
    if onnx:
        blocks.append(
            "ONNX Runtime (`pip install onnxruntime-genai`):\n\n```python\n"
            "import onnxruntime_genai as og\n\n"
            f'model = og.Model("{onnx[0]}")\n'
            "tokenizer, parameters = og.Tokenizer(model), og.GeneratorParams(model)\n"
            "parameters.set_search_options(max_length=64)\n"
            "generator = og.Generator(model, parameters)\n"
            'generator.append_tokens(tokenizer.encode("Once upon a time"))\n'
            "while not generator.is_done():\n    generator.generate_next_token()\n"
            "print(tokenizer.decode(generator.get_sequence(0)))\n```"
        )
    return "\n\n".join([*blocks, *(f"Note: {note}." for note in notes)])


def _licence(manifest: VariantManifest, licence: Mapping[str, str], terms: Sequence[str]) -> str:
    name = licence.get("license_name") or licence.get("license")
    said = f"The teacher's card names its licence: {name}." if name else "The teacher's folder names no licence."
    kept = f" Its terms are in {', '.join(f'`{term}`' for term in terms)}." if terms else ""
    return f"## Licence\n\n{said}{kept} A model made from another stays under the terms of that model."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
