"""One config for each stage of a job. A stage that is None in the spec is not run."""

from typing import Annotated, Literal

from pydantic import Field

from foundry.spec.record import Count, Rate, Record

Axis = Literal["ffn", "hidden", "heads", "kv_heads", "layers", "experts"]
"""ffn: channels of the feed-forward networks. hidden: the residual stream. heads: query heads, the same number from
each KV group; in multi-head attention a head goes with its keys and values. kv_heads: whole KV groups with their query
heads. layers: whole layers. experts: feed-forward networks behind a router, the same number from each layer."""
Repair = Literal["refit", "rotate", "rescale", "local"]
"""refit: least squares for the output projections on the kept channels. rotate: principal axes of the residual stream
before hidden is cut. rescale: norm gains that keep the magnitude the next layer expects. local: every layer of the
student learns, one after the other, to put out what the teacher's layer does."""


class Correct(Record):
    """Adapt the teacher to the data first; kept only when its held-out loss falls."""

    method: Literal["lora", "full"] = "lora"
    tokens: Count = 1_000_000
    learning_rate: Rate = 2e-4
    rank: Count = 16


class Prune(Record):
    """Which axes may be cut, how much text decides what stays, and how the cut is repaired."""

    axes: tuple[Axis, ...] = Field(("ffn", "hidden", "heads", "layers", "experts"), min_length=1)
    calibration_tokens: Count = 4_194_304
    """Upper bound, 1024 x 4096 as in the Minitron papers; small models need less: 16 tokens a thousand parameters."""
    candidates: Count = 8
    """How many shapes within the budget are sliced and compared by held-out KL before one is taken."""
    repair: tuple[Repair, ...] = ("refit", "rotate", "rescale", "local")
    local_epochs: Count = 3
    """How often the local repair reads the calibration text."""


class Distill(Record):
    """Train the student to match the teacher's distribution (forward KL on logits)."""

    tokens: Count = 20_000_000
    learning_rate: Rate = 1e-3
    """Peak rate of AdamW. 1e-3 suits students of some million parameters; 1e-4 suits billions."""
    sequence_tokens: Count | None = None
    """Length of a packed sequence; by default the teacher's context, at most 2048."""
    batch_tokens: Count | None = None
    """Tokens of one step; by default 16 sequences, fewer where that leaves fewer than 100 steps."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    checkpoint_steps: Count = 100
    """Steps between two checkpoints: the most work that a crash can cost."""
    evaluate_steps: Count | None = None
    """Steps between two looks at the held-out loss; by default a tenth of the run."""


class Lora(Record):
    """Fit a low-rank adapter to the student on the domain data; shipped attached and merged."""

    rank: Count = 16
    alpha: Count = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    tokens: Count = 1_000_000
    learning_rate: Rate = 2e-4


class Evaluate(Record):
    """How much held-out text the comparison reads."""

    tokens: Count = 65_536


class Export(Record):
    """How files are checked, and when a larger one is taken instead."""

    parity_tokens: Count = 32
    """Greedy tokens that a file's own runtime must agree on with transformers (f16) before it counts."""
    quantisation_loss_nats: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    """Where the device's GGUF of 4 bits costs more than this a token, 5 and then 6 bits are tried within the budget."""
