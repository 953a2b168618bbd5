"""Open a causal model and its tokenizer for work, and write one back as the plain folder it came from.

V: vocabulary, H: hidden.
"""

import shutil
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from foundry.engine.tensors import full_disk_said
from foundry.engine.workspace import new_folder, read_json, write_json
from foundry.errors import DamagedCheckpoint, OutOfMemory, TeacherNotFound, UnsupportedFamily
from foundry.intake.checkpoint import check_tokenizer
from foundry.spec.job import is_hub_id

# Weights as safetensors, and text, the licence among it. Never pickles, never code.
_FETCHED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "README.md", "LICENSE*", "NOTICE*")
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
_MAX_SHARD = "5GB"


class TrunkAndHead(NamedTuple):
    """A causal model in two parts, so that logits can be made for a few positions at a time."""

    trunk: nn.Module
    """Token ids to hidden states, the final norm included: `trunk(**inputs).last_hidden_state`."""
    head_VH: torch.Tensor
    """The output matrix; the embedding itself when tied."""
    softcap: float | None
    """Logits are `cap * tanh(logits / cap)` where the family caps them."""


def local_folder(teacher: str | Path) -> Path:
    """The folder of a teacher; a hub id is fetched first (weights as safetensors, no code).

    Raises `TeacherNotFound`. The fetched files are real files shared by all jobs, not links into a cache: the reader of
    checkpoints refuses links that leave their folder.
    """
    text = str(teacher)
    if not is_hub_id(text) or Path(text).is_dir():
        if not Path(text).is_dir():
            raise TeacherNotFound(f"no folder {text!r}; give a folder or a hub id ORG/NAME", pointer="/teacher")
        return Path(text)
    return _fetch(text)


@cache
def _fetch(teacher: str) -> Path:
    """Once for each run, so that all its stages see one revision."""
    name, _, revision = teacher.partition("@")
    folder = Path(HF_HOME) / "foundry" / teacher.replace("/", "--")
    try:
        snapshot_download(name, revision=revision or None, local_dir=folder, allow_patterns=list(_FETCHED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, HFValidationError, OSError) as error:
        raise TeacherNotFound(
            f"{teacher!r} could not be fetched from the hub: {_first_line(error)}. Check the name, the revision, the "
            "network and HF_TOKEN for gated models; or download it yourself and give the folder",
            pointer="/teacher",
        ) from error
    return folder


def load_model(folder: str | Path, *, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    """A causal model from safetensors in eval mode, its weights held in `dtype`; never runs code of the checkpoint.

    Raises `DamagedCheckpoint` or `OutOfMemory`.
    """
    try:
        config = AutoConfig.from_pretrained(local_folder(folder), trust_remote_code=False, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            local_folder(folder), dtype=dtype, attn_implementation=attention_of(config),
            trust_remote_code=False, use_safetensors=True, local_files_only=True,
        )  # fmt: skip
        return model.to(device).eval()
    except torch.cuda.OutOfMemoryError as error:
        raise OutOfMemory(f"{folder} does not fit on {device} as {dtype}; choose a machine with more memory") from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{folder} cannot be opened: {_first_line(error)}", pointer="/teacher") from error


def attention_of(config: PretrainedConfig) -> str:
    """PyTorch's `scaled_dot_product_attention` where the class has it; Gemma 2 caps its scores, which that cannot.

    Some versions of transformers say that Gemma 2 has it, and then leave the cap out without a word.
    """
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    has_it = getattr(model_class, "_supports_sdpa", True) and not getattr(config, "attn_logit_softcapping", None)
    return "sdpa" if has_it else "eager"


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, from its tokenizer.json. Raises `DamagedCheckpoint` without one."""
    found = local_folder(folder)
    check_tokenizer(found)
    try:
        return AutoTokenizer.from_pretrained(found, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DamagedCheckpoint(
            f"the tokenizer of {folder} cannot be opened: {_first_line(error)}. Save it again beside the model: "
            "tokenizer.save_pretrained(folder)",
            pointer="/teacher",
        ) from error


def trunk_and_head(model: PreTrainedModel) -> TrunkAndHead:
    """Split a model at its last hidden states. Raises `UnsupportedFamily` for heads that are more than one matrix."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
        raise UnsupportedFamily(f"{type(model).__name__}: the output head is not one matrix", pointer="/teacher")
    cap = getattr(model.config, "final_logit_softcapping", None)
    return TrunkAndHead(model.base_model, head.weight, float(cap) if cap else None)


def save_model(model: PreTrainedModel, like: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write weights as safetensors beside the config and tokenizer files of `like`, a folder of the same shape.

    The config is copied, not written by transformers: `like` holds both spellings of the rope settings. A tied head is
    left out. The folder appears under its name only when complete.
    """
    weights = {name: tensor.detach().to(dtype).cpu() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        for name in tuple(model._tied_weights_keys or ()):  # names of matrices that are another's
            weights.pop(name, None)
    config = read_json(like / "config.json")
    spellings = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    with new_folder(folder) as aside:
        with full_disk_said(folder):
            # Not the safetensors library alone: transformers also writes a mixture's experts under their own names.
            model.save_pretrained(aside, state_dict=weights, max_shard_size=_MAX_SHARD)
        (aside / "generation_config.json").unlink(missing_ok=True)
        copy_tokenizer(like, aside)
        write_json(aside / "config.json", config | dict.fromkeys(spellings, str(dtype).removeprefix("torch.")))


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat template and generation settings as they are, not as this version would write them."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
