"""How a model turns positions, read from its config and written as llama.cpp reads it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np

from foundry.errors import ExportFailed
from foundry.spec.family import Family
from foundry.spec.weights import Shape

_WINDOW, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The settings of the layers that attend to everything, and the frequency of those with a window."""

    settings: Mapping[str, Any]
    """With `rope_type` and `rope_theta`, whichever way the config spells them."""
    turned: int
    """How many values of a head are turned."""
    window_theta: float | None
    """None where all layers turn alike."""

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Add the keys to a file."""
        rope = self.settings
        writer.add_rope_dimension_count(self.turned)
        writer.add_rope_freq_base(float(rope["rope_theta"]))
        if self.window_theta is not None:
            writer.add_float32(f"{writer.arch}.rope.freq_base_swa", self.window_theta)
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(rope["factor"]))
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(float(rope["factor"]))
            writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
            writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32.0))
            writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1.0))

    def factors(self) -> np.ndarray | None:
        """Llama 3.1's rope scaling as llama.cpp reads it: what each frequency is divided by, float32 [turned / 2].

        Long wavelengths are divided by `factor`, short ones are left, those between are blended.
        """
        rope = self.settings
        if rope["rope_type"] != "llama3":
            return None
        wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, self.turned, 2) / self.turned)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        share = np.clip((rope["original_max_position_embeddings"] / wavelengths - low) / (high - low), 0, 1)
        factors: np.ndarray = (1 / ((1 - share) / rope["factor"] + share)).astype(np.float32)
        return factors


def read_rope(config: Mapping[str, Any], family: Family, shape: Shape) -> Rope:
    """The rope settings in either spelling. Raises `ExportFailed` for what llama.cpp would turn otherwise."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    window: Mapping[str, Any] | None = None
    if _FULL in given or _WINDOW in given:
        window = _named(given.get(_WINDOW) or {}, config)
        given = given.get(_FULL) or given[_WINDOW]
    rope = _named(given, config)
    if rope["rope_type"] not in family.gguf_ropes:
        raise ExportFailed(
            f"rope scaling {rope['rope_type']!r} cannot be written to GGUF for {family.name}, only "
            f"{', '.join(family.gguf_ropes)}; ship safetensors"
        )
    if rope["rope_type"] == "yarn":
        _check_yarn(rope, family)
    turned = int(shape.head_dim * float(rope.get("partial_rotary_factor") or 1.0))
    if turned != shape.head_dim and any(weight.gguf_permute for weight in family.weights):
        raise ExportFailed(
            f"partial_rotary_factor {rope['partial_rotary_factor']!r} is not what {family.name} does in llama.cpp, "
            "which turns whole heads; ship safetensors"
        )
    return Rope(settings=rope, turned=turned, window_theta=_window_theta(window, rope, family))


def _named(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Rope settings with type and theta always there; version 4 wrote `type`, and theta beside them."""
    rope = {"rope_theta": config.get("rope_theta") or 10_000.0, **given}
    rope["rope_type"] = given.get("rope_type") or given.get("type") or "default"
    return rope


def _check_yarn(rope: Mapping[str, Any], family: Family) -> None:
    """llama.cpp computes the scale of the scores from the factor; a config may name another one."""
    if not rope.get("original_max_position_embeddings"):
        raise ExportFailed("rope scaling 'yarn' without original_max_position_embeddings cannot be written to GGUF")
    own = {key: rope[key] for key in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(key) is not None}
    if "rope.scaling.yarn_log_multiplier" in family.gguf_settings and own.get("mscale", 1) == 1:
        own = {key: value for key, value in own.items() if key == "attention_factor"}
    usual = 0.1 * math.log(rope["factor"]) + 1
    if math.isclose(own.get("attention_factor", usual), usual, rel_tol=1e-4):
        own.pop("attention_factor", None)
    if own or rope.get("truncate") is False:
        raise ExportFailed(
            f"rope scaling 'yarn' with {own or {'truncate': False}} cannot be written to GGUF for {family.name}: "
            "llama.cpp computes this itself; ship safetensors"
        )


def _window_theta(window: Mapping[str, Any] | None, rope: Mapping[str, Any], family: Family) -> float | None:
    if window is None:
        return None
    if window["rope_type"] != "default":
        raise ExportFailed(
            f"rope scaling {window['rope_type']!r} in layers with a sliding window cannot be written to GGUF; ship "
            "safetensors"
        )
    theta = float(window["rope_theta"])
    if family.gguf_window_theta:
        return theta
    if theta != rope["rope_theta"]:
        raise ExportFailed(
            f"rope_theta is {theta:g} in layers with a sliding window and {rope['rope_theta']:g} elsewhere; "
            f"llama.cpp's {family.gguf_architecture} knows one; ship safetensors"
        )
    return None
