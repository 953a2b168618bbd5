"""Settings of a config.json that versions of transformers spell in different ways, or leave to their class."""

from collections.abc import Mapping
from typing import Any


def absent_length(rule: str, sizes: Mapping[str, int]) -> int | None:
    """The few rules that config classes have for an absent size."""
    if rule.isdigit():
        return int(rule)
    if rule == "hidden/heads":
        return sizes["hidden"] // sizes["heads"]
    times, _, axis = rule.rpartition("*")
    return int(times or 1) * sizes[axis]


def rope_both_ways(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` of version 5, and `rope_theta` and `rope_scaling` of version 4; nothing for a model without."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    old_name = rope.pop("type", "default")  # version 4 also took `type` for `rope_type`
    rope.setdefault("rope_type", old_name)
    theta = rope.pop("rope_theta", config.get("rope_theta"))
    written: dict[str, Any] = {}
    if theta is not None:
        written = {"rope_theta": theta, "rope_parameters": {**rope, "rope_theta": theta}}
    if rope["rope_type"] != "default":
        written["rope_scaling"] = rope
    return written


def rope_by_layer_type(config: Mapping[str, Any]) -> dict[str, Any]:
    """Either spelling as it came: a class of version 5 reads both, and a mixture of the two would mislead it."""
    if isinstance(rope := config.get("rope_parameters"), dict):
        return {"rope_parameters": rope}
    return {key: config[key] for key in ("rope_theta", "rope_scaling") if key in config}
