"""One config for each stage of a job. A stage that is None in the spec is not run."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from foundry.spec.record import Count, Rate, Record
from foundry.spec.suite import find_suite

Axis = Literal["ffn", "hidden", "heads", "kv_heads", "layers", "experts"]
"""ffn: channels of the feed-forward networks. hidden: the residual stream. heads: query heads, the same number from
each KV group; in multi-head attention a head goes with its keys and values. kv_heads: whole KV groups with their query
heads. layers: whole layers. experts: feed-forward networks behind a router, the same number from each layer."""
Repair = Literal["refit", "rotate", "rescale", "local"]
"""refit: least squares for the output projections on the kept channels. rotate: principal axes of the residual stream
before hidden is cut. rescale: norm gains that keep the magnitude the next layer expects. local: every layer of the
student learns, one after the other, to put out what the teacher's layer does."""


Dtype = Literal["bfloat16", "float16"]
"""A 16-bit type of weights."""


class Correct(Record):
    """Adapt the teacher to the data first; kept only when its held-out loss falls."""

    method: Literal["lora", "full"] = "lora"
    """lora: a low-rank adapter that is merged afterwards. full: every weight."""
    tokens: Count = 1_000_000
    """Training tokens, the same text several times over where there is less."""
    learning_rate: Rate = 2e-4
    """Peak rate; warmed up, then lowered to zero along a cosine."""
    rank: Count = 16
    """Of the adapter; without effect where `method` is full."""


class Prune(Record):
    """Which axes may be cut, how much text decides what stays, and how the cut is repaired."""

    axes: tuple[Axis, ...] = Field(("ffn", "hidden", "heads", "layers", "experts"), min_length=1)
    """What may be cut. ffn: channels of the feed-forward networks. hidden: the residual stream. heads: query heads, the
    same number from each KV group; in multi-head attention a head goes with its keys and values. kv_heads: whole KV
    groups with their query heads. layers: whole layers. experts: feed-forward networks behind a router."""
    calibration_tokens: Count = 4_194_304
    """Upper bound, 1024 x 4096 as in the Minitron papers; small models need less: 16 tokens a thousand parameters."""
    candidates: Count = 8
    """How many shapes within the budget are sliced and compared by held-out KL before one is taken."""
    repair: tuple[Repair, ...] = ("refit", "rotate", "rescale", "local")
    """Those that may be used. refit: least squares for output projections on the kept channels. rotate: principal axes
    of the residual stream before hidden is cut. rescale: norm gains that keep the magnitude the next layer expects.
    local: every layer learns to put out what the teacher's does. Where hidden is cut, the chosen shape is also measured
    without `rescale`, and without `rotate` in families that norm behind a block; what makes it worse is left out."""
    local_epochs: Count = 3
    """How often the local repair reads the calibration text."""


class Jsd(Record):
    """Generalised Jensen-Shannon divergence: like the forward KL for a small beta, the reverse KL for a large one."""

    kind: Literal["jsd"] = "jsd"
    """`jsd` as a bare word stands for this record with its defaults."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Weight of the teacher in the mixture that both are compared with, and of its side in the sum."""


class TopKSignal(Record):
    """The teacher reads the text once, before training; its likeliest tokens stay on disk with the mass of the rest.

    Saves the teacher's time where the text is read more than once, and its memory while the students learn.
    """

    kind: Literal["top_k"] = "top_k"
    """`top_k` as a bare word stands for this record with its defaults."""
    k: Count = 64
    """Tokens kept at each position; 4 to 6 bytes each."""


class SampledText(Record):
    """The teacher goes on from the beginnings of training documents; what it writes is trained on beside the data."""

    tokens: Count = 1_000_000
    """How much the teacher writes."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Of its sampling: below 1 it keeps closer to what is likeliest."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Sample from the likeliest tokens that together have this probability."""


class Wsd(Record):
    """Warm-up, stable, decay: the peak rate is held, then falls to zero in the last part of the run."""

    kind: Literal["wsd"] = "wsd"
    """`wsd` as a bare word stands for this record with its defaults."""
    decay_ratio: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the steps, the last ones, in which the rate falls to zero."""


class HiddenLoss(Record):
    """Match the teacher's hidden states behind some layers too; for students that lost many layers."""

    kind: Literal["cosine", "mse"] = "cosine"
    """cosine: 1 minus the cosine of the two states. mse: their mean squared difference."""
    layers: Count = 4
    """How many of the student's layers, evenly spaced, the last among them."""


def _one_of(*words: str, **kinds: type[Record]) -> Any:
    """Let a kind's bare name stand for its defaults (`jsd` for `{kind: jsd}`), and say all names when none fits."""

    def spell_out(value: Any) -> Any:
        if not isinstance(value, str) or value in words:
            return value
        if value not in kinds:
            raise ValueError(f"should be one of {', '.join([*words, *kinds])}")
        return {"kind": value}

    return BeforeValidator(spell_out)


_WORD_OR_RECORD = Discriminator(lambda value: "<word>" if isinstance(value, str) else "<record>")

Loss = Annotated[
    Annotated[Literal["forward_kl", "reverse_kl"], Tag("<word>")] | Annotated[Jsd, Tag("<record>")],
    _WORD_OR_RECORD, _one_of("forward_kl", "reverse_kl", jsd=Jsd),
]  # fmt: skip
SignalSource = Annotated[
    Annotated[Literal["live"], Tag("<word>")] | Annotated[TopKSignal, Tag("<record>")],
    _WORD_OR_RECORD, _one_of("live", top_k=TopKSignal),
]  # fmt: skip
Decay = Annotated[
    Annotated[Literal["cosine"], Tag("<word>")] | Annotated[Wsd, Tag("<record>")],
    _WORD_OR_RECORD, _one_of("cosine", wsd=Wsd),
]  # fmt: skip
OptimizerName = Literal["adamw", "muon"]
"""muon: orthogonalised momentum for the matrices of the layers, AdamW for everything else."""


class Distill(Record):
    """Train the student to match the teacher's distribution."""

    tokens: Count = 20_000_000
    """Training tokens, the same text several times over where there is less."""
    learning_rate: Rate = 1e-3
    """Peak rate. 1e-3 suits students of some million parameters; 1e-4 suits billions. The same for both optimizers."""
    sequence_tokens: Count | None = None
    """Length of a packed sequence; by default the teacher's context, at most 2048."""
    batch_tokens: Count | None = None
    """Tokens of one step; by default 16 sequences, fewer where that leaves fewer than 100 steps."""
    general_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the training text that is general, not of the domain; by default as the data has it."""
    sampled: SampledText | None = None
    """For data that would be read many times over; the data itself comes first."""
    loss: Loss = "forward_kl"
    """forward_kl: from teacher to student. reverse_kl: from student to teacher. jsd: between the two, by `beta`."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Logits of both are divided by it before they are compared; the loss is multiplied by its square."""
    cross_entropy_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the cross entropy with the text itself, beside 1 for the divergence from the teacher."""
    hidden: HiddenLoss | None = None
    """Null compares distributions alone."""
    signal: SignalSource = "live"
    """live asks the teacher at every step; top_k asks it once and keeps its likeliest tokens on disk."""
    optimizer: OptimizerName = "adamw"
    """muon: orthogonalised momentum for the matrices of the layers, AdamW for everything else."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the rate rises to its peak."""
    decay: Decay = "cosine"
    """How the rate falls to zero: along a cosine, or wsd: held first, and lowered in the last part."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Ship a moving average of the weights, of which each step keeps this much; 0.99 suits some hundred steps."""
    gradient_checkpointing: bool = False
    """Repeat each layer's forward pass instead of keeping it. By itself only where one sequence would not fit."""
    compile: bool | None = None
    """Compile the layers of teacher and students (`torch.compile`): faster steps on an accelerator, after a minute or
    so. By itself on an accelerator where the run is long enough to win by it."""
    checkpoint_steps: Count = 100
    """Steps between two checkpoints: the most work that a crash can cost."""
    evaluate_steps: Count | None = None
    """Steps between two looks at the held-out loss; by default a tenth of the run."""
    patience_looks: Count | None = None
    """Stop when the held-out loss has not fallen for so many looks, and ship the weights of the best look."""
    time_budget_s: Count | None = None
    """Fit the number of steps to this time once the first steps are timed; `tokens` stays the upper bound."""

    @model_validator(mode="after")
    def _teacher_is_there(self) -> Self:
        if self.hidden is not None and self.signal != "live":
            raise ValueError("hidden needs the live teacher, for a saved signal holds no hidden states: leave one out")
        return self


class Lora(Record):
    """Fit a low-rank adapter to the student on the domain data."""

    rank: Count = 16
    """Of the adapter."""
    alpha: Count = 32
    """The adapter is multiplied by alpha over rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that is left out at random in training."""
    tokens: Count = 1_000_000
    """Training tokens, the same text several times over where there is less."""
    learning_rate: Rate = 2e-4
    """Peak rate; warmed up, then lowered to zero along a cosine."""
    ship: Literal["merged", "attached"] = "merged"
    """merged: its sum with the student's weights, in every format. attached: the weights as they were, and the adapter
    beside them for PEFT and llama.cpp, so that one file of weights serves several adapters. A target's bytes and speed
    count it; ONNX Runtime takes none."""


class Evaluate(Record):
    """How much held-out text the comparison reads, and which benchmarks the models run."""

    tokens: Count = 65_536
    """Held-out text that every model is measured on, at most."""
    samples: Annotated[int, Field(ge=0, le=32)] = 4
    """Held-out documents whose beginnings every model continues in the report, which quotes them; 0 quotes nothing."""
    suite: str | None = None
    """minitron or quick; None runs no benchmarks."""
    limit: Count | None = None
    """Examples of each task, in place of the suite's own limit."""

    @field_validator("suite")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return find_suite(name).name if name is not None else None


class Export(Record):
    """How files are checked, and when a larger one is taken instead."""

    parity_tokens: Count = 32
    """Greedy tokens that a file's own runtime must agree on with transformers (f16) before it counts."""
    dtype: Dtype | None = None
    """Of the safetensors, for software that knows one of them alone; by default bfloat16, and float16 where a teacher's
    float16 weights were cut and never trained."""
    quantisation_loss_nats: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    """Where the device's GGUF of 4 bits costs more than this a token, 5 and then 6 bits are tried within the budget."""
    activation_tokens: Annotated[int, Field(ge=0)] = 8_192
    """Training text on which the inputs of every matrix are measured: files of 4 to 6 bits round most carefully what is
    multiplied by large ones (llama.cpp's importance matrix). 0 leaves it out."""
