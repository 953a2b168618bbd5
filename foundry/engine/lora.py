"""The lora stage: a low-rank adapter for the customer's domain on every student, saved apart and merged."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import PreTrainedModel

from foundry.engine.context import RunContext, seeded
from foundry.engine.distill.checkpoints import digest_of
from foundry.engine.distill.learner import Learner
from foundry.engine.distill.objectives import predict_text
from foundry.engine.distill.schedule import make_schedule, sequence_length
from foundry.engine.distill.text import read_texts
from foundry.engine.distill.trainer import Training, summary, train
from foundry.engine.models import load_model, load_tokenizer, save_model, trunk_and_head
from foundry.engine.tensors import write_tensors
from foundry.engine.workspace import Workspace, new_folder, write_json
from foundry.intake.checkpoint import checkpoint_sha256, context_limit
from foundry.spec.adapter import is_adapted
from foundry.spec.family import Family, family_of
from foundry.spec.job import JobSpec

CHECKPOINT_STEPS = 100
EVALUATIONS = 10
WARMUP_RATIO = 0.03


def lora(spec: JobSpec, workspace: Workspace, context: RunContext) -> None:
    """Write adapter/, model/ (merged) and history.json for every target. Resumes from the newest checkpoint."""
    assert spec.lora is not None
    students = {target: student_folder(workspace, target) for target in spec.target_names}
    first = next(iter(students.values()))
    tokenizer = load_tokenizer(first)
    adapted = {
        target: attach(
            load_model(folder, dtype=context.dtype, device=context.device),
            rank=spec.lora.rank, alpha=spec.lora.alpha, dropout=spec.lora.dropout, seed=spec.seed,
        )
        for target, folder in students.items()
    }  # fmt: skip
    learners = [Learner(target, model.get_base_model(), context.dtype) for target, model in adapted.items()]
    length = sequence_length(None, context_limit(learners[0].model.config.to_dict()), "/lora")
    vocabulary = trunk_and_head(learners[0].model).head_VH.shape[0]
    texts = read_texts(
        "lora", workspace.inputs.data, tokenizer, length, spec.lora.tokens, vocabulary, spec.seed, context,
        general_ratio=0.0,
    )  # fmt: skip
    schedule = make_schedule(
        texts.train, tokens=spec.lora.tokens, batch_tokens=None, peak_rate=spec.lora.learning_rate,
        warmup_ratio=WARMUP_RATIO, seed=spec.seed,
    )  # fmt: skip
    digest = digest_of(
        stage=spec.lora.model_dump(mode="json"), seed=spec.seed, data=workspace.inputs.data_sha256,
        students={target: checkpoint_sha256(folder) for target, folder in students.items()},
    )  # fmt: skip
    training = Training(
        stage="lora", schedule=schedule, text=texts.train, held_out=texts.held_out, objective=predict_text(context),
        checkpoint_steps=CHECKPOINT_STEPS, evaluate_steps=max(1, schedule.steps // EVALUATIONS), digest=digest,
    )  # fmt: skip
    histories = train(learners, training, workspace, context)
    for target, model in adapted.items():
        folder = workspace.stage("lora", target)
        save_adapter(model, folder / "adapter")
        merge(students[target], folder / "adapter", folder / "model")
        write_json(folder / "history.json", histories[target])
    workspace.finish("lora", targets={target: summary(history) for target, history in histories.items()})


def student_folder(workspace: Workspace, target: str) -> Path:
    """The student before this stage: distilled, or as pruned where distillation was skipped or left out."""
    distilled = workspace.stage("distill", target) / "model"
    return distilled if distilled.is_dir() else workspace.stage("prune", target) / "model"


def adapted_modules(family: Family) -> list[str]:
    """Every linear projection of a layer, named as within its layer: self_attn.q_proj, mlp.down_proj ..."""
    rows = filter(is_adapted, family.weights)
    prefix = family.layer_module.format(layer=0) + "."
    return sorted({family.module_of(w, 0).removeprefix(prefix) for w in rows})


def attach(model: PreTrainedModel, *, rank: int, alpha: int, dropout: float, seed: int) -> PeftModel:
    """Freeze the model and put a float32 adapter on every projection; it changes nothing until trained."""
    family = family_of(model.config.to_dict())
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", task_type="CAUSAL_LM",
        target_modules=adapted_modules(family), fan_in_fan_out=family.row("o").input_axis == 0,
    )  # fmt: skip
    with seeded(seed, model.device), _older_names():
        return get_peft_model(model, config)


def open_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Attach a saved adapter."""
    with _older_names():
        return PeftModel.from_pretrained(model, folder)


@contextmanager
def _older_names() -> Iterator[None]:
    """peft 0.21 reads `is_gradient_checkpointing`, a name that transformers 5.23 warns about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the two files that PEFT reads, without the path of the base model on this machine."""
    config = model.peft_config["default"]
    base, config.base_model_name_or_path = config.base_model_name_or_path, None
    config.inference_mode = True
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    with new_folder(folder) as aside:
        config.save_pretrained(aside)
        write_tensors(weights, aside / "adapter_model.safetensors")
    config.base_model_name_or_path = base


def merge(base: Path, adapter: Path, folder: Path) -> None:
    """Add an adapter to its base in float32 and write the sum in bfloat16 beside the base's config and tokenizer.

    On the CPU, where a model is opened anyway: an accelerator that could train the adapter has no room for a base in
    float32 beside it.
    """
    model = load_model(base, dtype=torch.float32, device="cpu")
    save_model(open_adapter(model, adapter).merge_and_unload(), like=base, folder=folder)
