"""Runs the model builder of onnxruntime-genai: `python -m foundry.engine.export.builder MODEL OUT PRECISION SCRATCH`.

The builder reads settings of some families where transformers 5 no longer has them. They are put there in between: its
two steps, reading the config and building, are called one by one.
"""

import sys
from typing import Any

from onnxruntime_genai.models.builder import create_model, parse_extra_options

_DEVICE = "cpu"


def readable(config: Any) -> None:
    """Change a config in memory so that the builder finds what it looks for.

    Gemma 3: rope settings stand in it once for each type of layer; the builder knows one and a frequency for windows.
    Phi 3: the builder takes a model whose context is not the original one for one with long factors, also without any.
    """
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "full_attention" in rope:
        config.rope_parameters = dict(rope["full_attention"])
        config.rope_theta = rope["full_attention"]["rope_theta"]
        if "sliding_attention" in rope:
            config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
    elif getattr(config, "original_max_position_embeddings", None) and (rope or {}).get("rope_type") == "default":
        config.original_max_position_embeddings = config.max_position_embeddings


def main() -> None:
    """Build one model; the exit status is not 0 when the builder refuses it."""
    model, out, precision, scratch = sys.argv[1:]
    given = (model, "", out, precision, _DEVICE, scratch)
    options = parse_extra_options(*given, [])
    readable(options["hf_details"]["hf_config"])
    create_model(*given, **options)


if __name__ == "__main__":
    main()
