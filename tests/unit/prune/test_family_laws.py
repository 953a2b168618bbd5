"""What must hold for every family: laws of slicing and repair, on genuine tiny models of transformers' own classes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from foundry.engine.context import RunContext
from foundry.engine.corpus import Packed
from foundry.engine.models import load_model, save_model
from foundry.engine.prune.calibrate import Statistics, calibrate
from foundry.engine.prune.layers import Layers
from foundry.engine.prune.local import repair_locally
from foundry.engine.prune.plan import make_plan
from foundry.engine.prune.slicer import Slicer, write_sharded
from foundry.engine.prune.stage import student_config, student_in_memory
from foundry.engine.workspace import write_json
from foundry.intake.checkpoint import Checkpoint, open_checkpoint
from foundry.spec.family import families
from foundry.spec.stages import Repair
from foundry.spec.variant import PrunePlan
from tests.families import FAMILY_NAMES, MODELS_WITH_EXPERTS, TIED_ONLY, save_genuine

CONTEXT = RunContext(emit=lambda event: None, device=torch.device("cpu"), dtype=torch.float32, seed=0)
IDS = torch.randint(0, 320, (4, 32), generator=torch.Generator().manual_seed(1))
TEXT = Packed(IDS, torch.arange(32).expand_as(IDS), torch.ones_like(IDS, dtype=torch.bool), bytes=0)
ALL: tuple[Repair, ...] = ("refit", "rotate", "rescale")
EVERY = pytest.mark.parametrize("name", FAMILY_NAMES)
STEP_TOGETHER = tuple(name for name in FAMILY_NAMES if families()[name].heads_fill_hidden)


class Cut:
    """A teacher's folder and what is cut from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint: Checkpoint = open_checkpoint(folder)
        self.teacher = load_model(folder, dtype=torch.float32, device="cpu")
        self._found: Statistics | None = None

    @property
    def statistics(self) -> Statistics:
        if self._found is None:
            self._found = calibrate(self.teacher, self.checkpoint.family, self.checkpoint.shape, TEXT, CONTEXT)
        return self._found

    def plan(self, change: dict[str, int], repairs: tuple[Repair, ...] = ()) -> PrunePlan:
        shape = self.checkpoint.shape.model_copy(update=change)
        return make_plan(self.checkpoint.family, self.checkpoint.shape, shape, self.statistics, repairs, "test")

    def slicer(self, change: dict[str, int], repairs: tuple[Repair, ...] = ()) -> Slicer:
        plan = self.plan(change, repairs)
        return Slicer(checkpoint=self.checkpoint, plan=plan, statistics=self.statistics, device=CONTEXT.device)

    def student(self, change: dict[str, int], repairs: tuple[Repair, ...] = ()) -> PreTrainedModel:
        """Sliced to disk and opened as any user would."""
        slicer = self.slicer(change, repairs)
        out = self.folder.with_name("student")
        out.mkdir(exist_ok=True)
        write_sharded(slicer.tensors(), out)
        write_json(out / "config.json", student_config(slicer))
        open_checkpoint(out)
        student = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        torch.testing.assert_close(logits(student_in_memory(slicer, CONTEXT)), logits(student), rtol=0, atol=0)
        return student


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def _made(folder: Path, name: str, **changes: object) -> Cut:
    save_genuine(folder / "teacher", name, **changes)
    return Cut(folder / "teacher")


def _matrix(model: PreTrainedModel, name: str, role: str, layer: int) -> Tensor:
    """A weight with its input along the last dimension."""
    family = families()[name]
    row = family.row(role)  # type: ignore[arg-type]
    weight = model.get_submodule(family.module_of(row, layer)).weight
    return weight.T if row.input_axis == 0 else weight


@EVERY
def test_pruning_nothing_reproduces_the_teacher_bit_for_bit(tmp_path: Path, name: str) -> None:
    cut = _made(tmp_path, name)
    student = cut.student({}, ALL)
    for key, value in cut.teacher.state_dict().items():
        assert torch.equal(student.state_dict()[key], value), key
    assert torch.equal(logits(student), logits(cut.teacher))


@EVERY
def test_sliced_equals_masked_when_ffn(tmp_path: Path, name: str) -> None:
    cut = _made(tmp_path, name)
    ffn = cut.checkpoint.shape.ffn
    student = cut.student({"ffn": ffn - 24})
    plan = cut.plan({"ffn": ffn - 24})
    for layer in range(2):
        if name in MODELS_WITH_EXPERTS:
            down = cut.teacher.get_submodule(f"model.layers.{layer}.mlp.experts").down_proj
            for expert in range(4):
                lost = sorted(set(range(ffn)) - set(plan.ffn[layer * 4 + expert]))
                down.data[expert][:, lost] = 0
        else:
            lost = sorted(set(range(ffn)) - set(plan.ffn[layer]))
            _matrix(cut.teacher, name, "down", layer).data[:, lost] = 0
    torch.testing.assert_close(logits(student), logits(cut.teacher), rtol=1e-4, atol=1e-4)


@EVERY
@pytest.mark.parametrize("axis", ["heads", "kv_heads"])
def test_sliced_equals_masked_when_heads_or_kv_heads(tmp_path: Path, name: str, axis: str) -> None:
    if name in STEP_TOGETHER:
        pytest.skip("this family cuts heads together with hidden")
    if name.startswith("olmo"):
        pytest.skip("its norm over all heads divides by another length when heads go")
    cut = _made(tmp_path, name, heads=4, kv_heads=2)
    change = {"heads": 2} if axis == "heads" else {"heads": 2, "kv_heads": 1}
    student, plan = cut.student(change), cut.plan(change)
    assert (student.config.num_attention_heads, student.config.num_key_value_heads) == (2, change.get("kv_heads", 2))
    for layer in range(2):
        for head in set(range(4)) - set(plan.heads[layer]):
            _matrix(cut.teacher, name, "o", layer).data[:, head * 8 : head * 8 + 8] = 0
    torch.testing.assert_close(logits(student), logits(cut.teacher), rtol=1e-4, atol=1e-4)


@EVERY
def test_sliced_equals_skipped_when_layers(tmp_path: Path, name: str) -> None:
    cut = _made(tmp_path, name, layers=6)
    student, plan = cut.student({"layers": 4}), cut.plan({"layers": 4})
    for lost in set(range(6)) - set(plan.layers):
        block = cut.teacher.get_submodule(cut.checkpoint.family.layer_module.format(layer=lost))
        block.forward = lambda stream, *_, **__: stream
    torch.testing.assert_close(logits(student), logits(cut.teacher), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS_WITH_EXPERTS)
def test_sliced_equals_never_chosen_when_experts(tmp_path: Path, name: str) -> None:
    """Experts that the router cannot choose may go without a trace."""
    cut = _made(tmp_path, name)
    student, plan = cut.student({"experts": 3}), cut.plan({"experts": 3})
    for layer in range(2):
        (lost,) = set(range(4)) - set(plan.experts[layer])
        router = cut.teacher.get_submodule(f"model.layers.{layer}.mlp.gate")
        router.register_forward_pre_hook(_without(lost))
    torch.testing.assert_close(logits(student), logits(cut.teacher), rtol=1e-4, atol=1e-4)


def _without(expert: int) -> object:
    """Moves the router's row of an expert below all others before each use."""

    def hook(router: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        x_TH = args[0].reshape(-1, args[0].shape[-1])
        worst = torch.nn.functional.linear(x_TH, router.weight.data).min() - 100.0
        # One row cannot be low for every token: solve for one that is, which 128 tokens in 32 dimensions do not allow;
        # so the function is wrapped instead.
        original = torch.nn.functional.linear

        def low(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            out = original(x, weight, bias)
            if weight is router.weight:
                out[:, expert] = worst
            return out

        torch.nn.functional.linear = low
        handle = router.register_forward_hook(lambda *_: _restore(original))
        del handle

    return hook


def _restore(original: object) -> None:
    torch.nn.functional.linear = original  # type: ignore[assignment]


@EVERY
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_rotated_cut_loses_little_when_the_stream_spans_fewer_dimensions(tmp_path: Path, name: str, tied: bool) -> None:
    """A 20-dimensional stream turned at random inside 32: only the rotation finds it again; index cuts destroy it."""
    family = families()[name]
    if not tied and name in TIED_ONLY:
        pytest.skip("this family has no head of its own")
    if name in STEP_TOGETHER:
        pytest.skip("tested below: its heads are cut with hidden")
    cut = _made(tmp_path, name, tied=tied)
    _into_subspace(cut, 20)
    _without_last_bias(cut)
    cut.teacher.save_pretrained(tmp_path / "flat" / "teacher")
    cut = Cut(tmp_path / "flat" / "teacher")
    wanted = logits(cut.teacher)
    rotated = (logits(cut.student({"hidden": 24}, ALL)) - wanted).square().mean() / wanted.var()
    indexed = (logits(cut.student({"hidden": 24}, ("rescale",))) - wanted).square().mean() / wanted.var()
    # Behind a post norm the turn holds on average only, and tied ends are matched by one scale a column.
    limit = 1e-4 if family.exactly_rotatable and not tied else 0.5
    assert rotated < limit and rotated < 0.5 * indexed, (rotated, indexed)


@pytest.mark.parametrize("name", STEP_TOGETHER)
def test_rotation_with_layer_norms_is_exact_when_the_stream_spans_fewer_dimensions(tmp_path: Path, name: str) -> None:
    cut = _made(tmp_path, name)
    _into_subspace(cut, 20)
    _without_last_bias(cut)
    _silence_head(cut, 3)
    cut.teacher.save_pretrained(tmp_path / "flat" / "teacher")
    cut = Cut(tmp_path / "flat" / "teacher")
    wanted = logits(cut.teacher)
    student = logits(cut.student({"hidden": 24, "heads": 3, "kv_heads": 3}, ALL))
    error = (student - wanted).square().mean() / wanted.var()
    assert error < (0.05 if name in TIED_ONLY else 1e-4)


@torch.no_grad()
def _into_subspace(cut: Cut, dimensions: int) -> None:
    """Project all that writes into the stream onto a random subspace, taken before the mean where norms remove it."""
    family, model = cut.checkpoint.family, cut.teacher
    generator = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(32, dimensions, generator=generator))[0]
    inside = turn @ turn.T
    for weight in family.weights:
        if weight.role not in ("embedding", "positions", "o", "down"):
            continue
        for layer in range(cut.checkpoint.shape.layers) if weight.per_layer else (0,):
            if weight.per_expert:
                experts = model.get_submodule(family.module_of(weight, layer).split(".{expert}")[0])
                experts.down_proj.data = inside @ experts.down_proj.data
                continue
            module = model.get_submodule(family.module_of(weight, layer))
            parameter = module.bias if weight.is_bias else module.weight
            if parameter is None:  # an optional bias that this model has not
                continue
            hidden = weight.dims.index("hidden")
            post = {"o": "attention_post_norm", "down": "ffn_post_norm"}.get(weight.role)
            if post and family.find(post):  # type: ignore[arg-type]
                # With equal weights behind the writer, what it puts out stays in the subspace.
                norm = model.get_submodule(family.module_of(family.row(post), layer))  # type: ignore[arg-type]
                norm.weight.data.fill_(0.8 - family.norm_offset)
            parameter.data = (parameter.data.movedim(hidden, -1) @ inside).movedim(-1, hidden)


@torch.no_grad()
def _silence_head(cut: Cut, head: int) -> None:
    """Its values are zero, so it scores lowest and says nothing."""
    family = cut.checkpoint.family
    dimension = next(d for d in family.row("qkv").dims if d != "hidden")
    start = head * 24 + 16 if dimension == "heads*3" else 64 + head * 8
    for layer in range(2):
        module = cut.teacher.get_submodule(family.module_of(family.row("qkv"), layer))
        _matrix(cut.teacher, family.name, "qkv", layer).data[start : start + 8] = 0
        module.bias.data[start : start + 8] = 0


@torch.no_grad()
def _without_last_bias(cut: Cut) -> None:
    """The constant that a last norm's bias adds to the logits has no exact counterpart in fewer dimensions."""
    final = cut.teacher.get_submodule(cut.checkpoint.family.row("final_norm").module)
    if getattr(final, "bias", None) is not None:
        final.bias.data.zero_()


@EVERY
def test_every_axis_together_gives_a_plain_checkpoint(tmp_path: Path, name: str) -> None:
    cut = _made(tmp_path, name, layers=6)
    change = {"hidden": 24, "ffn": 24, "layers": 5, "heads": 2}
    if name in STEP_TOGETHER:
        change |= {"heads": 3, "kv_heads": 3}
    if name in MODELS_WITH_EXPERTS:
        change |= {"experts": 3}
    student = cut.student(change, ALL)
    assert torch.isfinite(logits(student)).all()
    family = cut.checkpoint.family
    shape = cut.checkpoint.shape.model_copy(update=change)
    assert student.num_parameters() == family.parameter_count(shape, cut.checkpoint.present)


@EVERY
def test_a_layer_run_alone_equals_the_whole_model(tmp_path: Path, name: str) -> None:
    cut = _made(tmp_path, name, layers=6)
    layers = Layers(cut.teacher, cut.checkpoint.family, 6)
    inputs = {"input_ids": IDS, "position_ids": torch.arange(32).expand_as(IDS), "use_cache": False}
    with torch.no_grad():
        stream = layers.stream(inputs)
        for layer in range(6):
            stream = layers.run(layer, inputs, stream)
        final = cut.teacher.get_submodule(cut.checkpoint.family.row("final_norm").module)
        torch.testing.assert_close(final(stream), cut.teacher.base_model(**inputs).last_hidden_state, rtol=0, atol=0)


@EVERY
def test_local_repair_brings_every_layer_nearer_and_is_written_as_a_plain_checkpoint(tmp_path: Path, name: str) -> None:
    cut = _made(tmp_path, name, layers=3)
    change = {"hidden": 24, "ffn": 24, "layers": 2} | ({"heads": 3, "kv_heads": 3} if name in STEP_TOGETHER else {})
    slicer = cut.slicer(change, ALL)
    student = student_in_memory(slicer, CONTEXT)
    before = logits(student)
    errors = repair_locally(
        student, cut.teacher, cut.checkpoint.family, slicer.plan, slicer.axes_HD, TEXT, CONTEXT, epochs=20
    )
    assert all(after <= earlier for earlier, after in errors)
    assert errors[-1][1] < 0.9 * errors[-1][0]
    assert not torch.equal(logits(student), before)
    like = tmp_path / "like"
    like.mkdir()
    write_json(like / "config.json", student_config(slicer))
    save_model(student, like=like, folder=tmp_path / "repaired", dtype=torch.float32)
    open_checkpoint(tmp_path / "repaired")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "repaired", dtype=torch.float32)
    assert torch.equal(logits(again), logits(student))
