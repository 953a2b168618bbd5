"""What must hold whatever the weights: laws of slicing and repair, on genuine tiny models with random weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from foundry.engine.prune import repair
from foundry.engine.prune.choose import choose_shape
from foundry.engine.prune.plan import best, best_heads, make_plan
from foundry.engine.prune.slicer import Slicer
from foundry.engine.prune.statistics import Statistics
from foundry.engine.prune.sums import StreamSums
from foundry.engine.prune.symmetric import Symmetric
from foundry.engine.tensors import CheckpointWriter, Entry, write_sharded
from foundry.engine.workspace import write_json
from foundry.errors import DamagedCheckpoint
from foundry.intake.checkpoint import Checkpoint, open_checkpoint
from foundry.spec.stages import Repair
from foundry.spec.weights import Shape
from tests.cutting import CONTEXT, IDS, opened
from tests.tiny import narrow, new_model, save


def _student(
    folder: Path, change: dict[str, int], repairs: tuple[Repair, ...] = (), statistics: Statistics | None = None
) -> tuple[LlamaForCausalLM, Checkpoint]:
    """Calibrate, plan, slice to disk, and open the result as any user would."""
    checkpoint = open_checkpoint(folder)
    found = statistics or _statistics(folder)
    shape = checkpoint.shape.model_copy(update=change)
    plan = make_plan(checkpoint.family, checkpoint.shape, shape, found, repairs, "test")
    out = folder.with_name(folder.name + "-student")
    out.mkdir(exist_ok=True)
    slicer = Slicer(checkpoint=checkpoint, plan=plan, statistics=found, device=CONTEXT.device)
    write_sharded(slicer.tensors(), slicer.entries(), out)
    write_json(out / "config.json", slicer.config())
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32), checkpoint


def _statistics(folder: Path) -> Statistics:
    return opened(folder).statistics


def _logits(model: LlamaForCausalLM) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


KINDS: dict[str, dict[str, object]] = {
    "tied": {"tied": True},
    "untied": {"tied": False},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "head_dim_apart": {"head_dim": 16},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_pruning_nothing_reproduces_the_teacher_bit_for_bit(tmp_path: Path, kind: dict[str, object]) -> None:
    teacher = new_model(**kind)  # type: ignore[arg-type]
    student, _ = _student(save(tmp_path / "teacher", teacher), {}, ("refit", "rotate", "rescale"))
    for name, value in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[name], value), name
    assert torch.equal(_logits(student), _logits(teacher))


def _silence_ffn(model: LlamaForCausalLM, channels: list[int]) -> None:
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data[:, channels] = 0
        layer.mlp.up_proj.weight.data[channels] = 0


def _silence_heads(model: LlamaForCausalLM, heads: list[int]) -> None:
    size = model.config.head_dim
    for layer in model.model.layers:
        for head in heads:
            layer.self_attn.o_proj.weight.data[:, head * size : (head + 1) * size] = 0


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_cutting_channels_that_are_zero_changes_nothing(tmp_path: Path, kind: dict[str, object]) -> None:
    teacher = new_model(**(kind | {"mlp_bias": False}))  # type: ignore[arg-type]
    _silence_ffn(teacher, list(range(0, 64, 2)))
    student, _ = _student(save(tmp_path / "teacher", teacher), {"ffn": 32})
    torch.testing.assert_close(_logits(student), _logits(teacher), rtol=1e-5, atol=1e-5)


def test_cutting_channels_that_write_nothing_changes_nothing(tmp_path: Path) -> None:
    """However large they are themselves."""
    teacher = new_model()
    for layer in teacher.model.layers:
        layer.mlp.up_proj.weight.data[::2] *= 100
        layer.mlp.down_proj.weight.data[:, ::2] = 0
    student, _ = _student(save(tmp_path / "teacher", teacher), {"ffn": 32})
    torch.testing.assert_close(_logits(student), _logits(teacher), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_position_counts_the_same_at_a_norm_however_long_its_stream_is(norm: str, dtype: torch.dtype) -> None:
    stream_BSH = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(4)).to(dtype)

    def covariance(x_BSH: torch.Tensor) -> torch.Tensor:
        sums = StreamSums(8, torch.device("cpu"), centred=norm == "layer")
        sums.add(x_BSH, x_BSH)
        return sums.tensors("it")["it.covariance.0"]

    usual_HH = covariance(stream_BSH)
    long_S1 = torch.tensor([4096, 1, 1, 2, 1, 1], dtype=dtype)[:, None]
    torch.testing.assert_close(covariance(stream_BSH * long_S1), usual_HH)
    # Another factor leaves it within the nearest power of two.
    long_S1[0] = 3000
    assert 0.5 < covariance(stream_BSH * long_S1).trace() / usual_HH.trace() < 2
    empty_BSH = torch.zeros_like(stream_BSH)
    assert torch.equal(covariance(empty_BSH), torch.zeros(8, 8))
    assert torch.isnan(covariance(empty_BSH.index_fill(2, torch.tensor(3), torch.inf))).any()


def test_sliced_equals_masked_when_ffn(tmp_path: Path) -> None:
    teacher = new_model()
    folder = save(tmp_path / "teacher", teacher)
    statistics = _statistics(folder)
    student, _ = _student(folder, {"ffn": 40}, statistics=statistics)
    for number, layer in enumerate(teacher.model.layers):
        kept = set(best(statistics.layers[number].ffn[0].contribution_C, 40))
        layer.mlp.down_proj.weight.data[:, [c for c in range(64) if c not in kept]] = 0
    torch.testing.assert_close(_logits(student), _logits(teacher), rtol=1e-4, atol=1e-5)


def test_sliced_equals_masked_when_heads(tmp_path: Path) -> None:
    teacher = new_model()
    folder = save(tmp_path / "teacher", teacher)
    statistics = _statistics(folder)
    student, checkpoint = _student(folder, {"heads": 2}, statistics=statistics)
    assert student.config.num_attention_heads == 2
    kept = [
        best_heads(
            found.attention.contribution_C, checkpoint.shape, checkpoint.shape.model_copy(update={"heads": 2}), (0, 1)
        )
        for found in statistics.layers
    ]
    for number, layer in enumerate(teacher.model.layers):
        for head in set(range(4)) - set(kept[number]):
            layer.self_attn.o_proj.weight.data[:, head * 8 : head * 8 + 8] = 0
    torch.testing.assert_close(_logits(student), _logits(teacher), rtol=1e-4, atol=1e-5)


def test_sliced_equals_masked_when_layers(tmp_path: Path) -> None:
    teacher = new_model(layers=4)
    folder = save(tmp_path / "teacher", teacher)
    statistics = _statistics(folder)
    student, _ = _student(folder, {"layers": 3}, statistics=statistics)
    (lost,) = set(range(4)) - set(best(statistics.distance_L, 3))
    teacher.model.layers[lost].self_attn.o_proj.weight.data.zero_()
    teacher.model.layers[lost].mlp.down_proj.weight.data.zero_()
    torch.testing.assert_close(_logits(student), _logits(teacher), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_rotated_cut_loses_nothing_when_the_stream_spans_fewer_dimensions(tmp_path: Path, tied: bool) -> None:
    """A 24-dimensional stream turned at random inside 32 dimensions: only the rotation can find it again."""
    teacher = narrow(new_model(tied=tied), 24)
    if not tied:
        for layer in teacher.model.layers:
            layer.input_layernorm.weight.data.uniform_(0.5, 1.5)
    student, _ = _student(save(tmp_path / "teacher", teacher), {"hidden": 24}, ("rotate", "rescale"))
    assert student.config.hidden_size == 24 and student.config.tie_word_embeddings is tied
    torch.testing.assert_close(_logits(student), _logits(teacher), rtol=2e-3, atol=2e-3)


def test_refit_is_exact_when_lost_channels_depend_on_kept_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    kept_TK = torch.randn(500, 12, generator=generator)
    x_TC = torch.cat([kept_TK, kept_TK @ torch.randn(12, 4, generator=generator)], dim=1)
    weight_HC = torch.randn(8, 16, generator=generator)
    refitted_HK = repair.refit(weight_HC, Symmetric.of(x_TC.T @ x_TC), range(12), damping=1e-9)
    torch.testing.assert_close(kept_TK @ refitted_HK.T, x_TC @ weight_HC.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spread", [1.0, -0.5], ids=["a sum of squares", "not positive definite by rounding"])
def test_refit_solves_the_damped_normal_equations(spread: float) -> None:
    generator = torch.Generator().manual_seed(3)
    weight_HC = torch.randn(5, 16, generator=generator)
    x_TC = torch.randn(40, 16, generator=generator)
    gram_CC = x_TC.T @ x_TC
    gram_CC[0] *= spread
    gram_CC[:, 0] *= spread
    gram_CC[0, 0] *= spread
    kept = [0, 2, 3, 7, 8, 11]
    inner_KK = gram_CC[kept][:, kept].double()
    inner_KK += 1e-3 * inner_KK.diagonal().mean() * torch.eye(len(kept))
    gone = sorted(set(range(16)) - set(kept))
    change_HK = weight_HC[:, gone].double() @ gram_CC[gone][:, kept].double() @ inner_KK.inverse()
    expected_HK = weight_HC[:, kept] + change_HK
    found_HK = repair.refit(weight_HC, Symmetric.of(gram_CC), kept)
    torch.testing.assert_close(found_HK, expected_HK.float(), rtol=1e-4, atol=1e-5)


def test_refit_keeps_the_weights_of_channels_that_the_text_never_used() -> None:
    """As of an expert that no token reached."""
    weight_HC = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    kept = range(10)
    assert torch.equal(repair.refit(weight_HC, Symmetric.of(torch.zeros(16, 16)), kept), weight_HC[:, :10])


def test_refit_leaves_weights_alone_of_which_the_text_says_nothing() -> None:
    generator = torch.Generator().manual_seed(5)
    weight_HC, x_TC = torch.randn(8, 16, generator=generator), torch.randn(3, 16, generator=generator)
    refitted_HK = repair.refit(weight_HC, Symmetric.of(x_TC.T @ x_TC), range(10))
    change_HK = refitted_HK - weight_HC[:, :10]
    _, _, axes_KK = torch.linalg.svd(x_TC[:, :10])  # the text spans three of ten directions
    assert change_HK.norm() > 0.1
    assert (change_HK @ axes_KK[3:].T).norm() < 1e-3 * change_HK.norm()


def _excess(gram_CC: torch.Tensor, kept: list[int]) -> float:
    """What the refit minimises, as a share of the least that float64 finds, minus one."""
    generator = torch.Generator().manual_seed(7)
    weight_HC, gram = torch.randn(8, len(gram_CC), generator=generator).double(), gram_CC.double()
    gone = sorted(set(range(len(gram))) - set(kept))
    ridge = 1e-3 * gram[kept][:, kept].diagonal().mean()
    inner_KK = gram[kept][:, kept] + ridge * torch.eye(len(kept))
    best_HK = weight_HC[:, kept] + torch.linalg.solve(inner_KK, (weight_HC[:, gone] @ gram[gone][:, kept]).T).T

    def missed(found_HK: torch.Tensor) -> torch.Tensor:
        error_HC = weight_HC.clone()
        error_HC[:, kept] -= found_HK
        ridged = ridge * (found_HK - weight_HC[:, kept]).square().sum()
        return ((error_HC @ gram) * error_HC).sum() + ridged

    return float(missed(repair.refit(weight_HC.float(), Symmetric.of(gram_CC), kept).double()) / missed(best_HK)) - 1


@pytest.mark.parametrize("times", [1e2, 1e3, 1e4, 1e5])
def test_refit_is_near_float64_where_some_channels_are_large_and_alike(times: float) -> None:
    generator = torch.Generator().manual_seed(6)
    x_TC = torch.randn(600, 256, generator=generator)
    x_TC[:, :4] = times * (x_TC[:, :1] + 0.01 * x_TC[:, :4])
    assert _excess(x_TC.T @ x_TC, list(range(200))) < 1e-5


def test_refit_finds_its_way_where_float32_has_no_factor() -> None:
    """Two channels whose product is larger than their squares, as no sum over text is but for rounding."""
    gram_CC = torch.eye(6)
    gram_CC[0, 1] = gram_CC[1, 0] = 2.0
    gram_CC[0, 5] = gram_CC[5, 0] = 0.5
    weight_HC = torch.randn(3, 6, generator=torch.Generator().manual_seed(8))
    inner_KK = gram_CC[:4, :4].double() + 1e-3 * torch.eye(4)
    change_HK = torch.linalg.solve(inner_KK, (weight_HC[:, 4:] @ gram_CC[4:, :4]).double().T).T
    found_HK = repair.refit(weight_HC, Symmetric.of(gram_CC), range(4))
    torch.testing.assert_close(found_HK, (weight_HC[:, :4] + change_HK).float())


def test_refit_beats_slicing_when_channels_are_correlated() -> None:
    generator = torch.Generator().manual_seed(0)
    x_TC = torch.randn(800, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    weight_HC = torch.randn(8, 16, generator=generator)
    dense = x_TC @ weight_HC.T
    refitted_HK = repair.refit(weight_HC, Symmetric.of(x_TC.T @ x_TC), range(10))
    refitted = (x_TC[:, :10] @ refitted_HK.T - dense).square().sum()
    sliced = (x_TC[:, :10] @ weight_HC[:, :10].T - dense).square().sum()
    assert refitted < 0.6 * sliced


def test_norm_gain_restores_the_magnitude_after_an_index_cut() -> None:
    """On log-normal channel scales the gain leaves under a tenth of a per cent of the slice's scale error."""
    generator = torch.Generator().manual_seed(0)
    x_TH = torch.randn(4000, 512, generator=generator) * torch.randn(512, generator=generator).exp()
    kept = x_TH.square().sum(dim=0).topk(384).indices
    energy = repair.kept_energy(Symmetric.of(x_TH.T @ x_TH), torch.eye(512)[:, kept])
    dense = (x_TH / x_TH.square().mean(dim=1, keepdim=True).sqrt())[:, kept]
    sliced = x_TH[:, kept] / x_TH[:, kept].square().mean(dim=1, keepdim=True).sqrt()

    def error(candidate: Tensor) -> float:
        return float((candidate - dense).norm() / dense.norm())

    assert error(repair.norm_gain(energy, 512, 384) * sliced) < 0.02 * error(sliced)


def test_retie_changes_nothing_when_the_ends_differ_by_a_scale() -> None:
    embedding = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.5, 2, 8)
    head = embedding * scale
    ends = repair.TiedEnds([(embedding[:20], head[:20]), (embedding[20:], head[20:])])
    shared, found = ends.shared(embedding, head), ends.scale_D
    torch.testing.assert_close(found, scale)
    torch.testing.assert_close(shared, embedding)


def test_best_heads_keeps_the_same_number_in_each_group() -> None:
    shape = Shape(layers=1, hidden=32, ffn=64, heads=8, kv_heads=2, head_dim=2, vocab=10, tied=True)
    score = torch.tensor([9.0, 8, 7, 6, 1, 2, 3, 4]).repeat_interleave(2)
    assert best_heads(score, shape, shape.model_copy(update={"heads": 4}), (0, 1)) == (0, 1, 6, 7)


def test_best_gives_the_lower_index_when_scores_tie() -> None:
    assert best(torch.tensor([1.0, 2.0, 2.0, 2.0]), 2) == (1, 2)


def _shapes() -> list[Shape]:
    base = Shape(layers=8, hidden=256, ffn=768, heads=8, kv_heads=4, head_dim=32, vocab=4096, tied=True)
    return [base.model_copy(update={"hidden": h, "ffn": f}) for h in (256, 192, 128) for f in (768, 512, 256)]


@pytest.mark.parametrize("limit", [1, 4, 9, 50])
def test_choose_shape_takes_the_best_of_the_shapes_it_looked_at(limit: int) -> None:
    shapes = _shapes()
    looked: list[Shape] = []

    def score(shape: Shape) -> float:
        looked.append(shape)
        return abs(shape.hidden - 128) + abs(shape.ffn - 512)

    scored = choose_shape(shapes, shapes[0], score, limit)
    assert len(looked) == len(set(looked)) == min(limit, len(shapes))
    assert scored[0][1] == min(value for _, value in scored)


def test_calibrate_refuses_a_teacher_whose_weights_are_not_numbers(tmp_path: Path) -> None:
    teacher = new_model()
    teacher.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(DamagedCheckpoint, match="layer 1"):
        _statistics(save(tmp_path / "teacher", teacher))


def test_write_sharded_opens_again_when_in_several_shards(tmp_path: Path) -> None:
    teacher = new_model()
    folder = save(tmp_path / "teacher", teacher)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    tensors = teacher.state_dict()
    entries = [Entry(name, value.dtype, tuple(value.shape)) for name, value in tensors.items()]
    with CheckpointWriter(folder, entries, shard_bytes=20_000) as writer:
        for name in sorted(tensors):
            writer.write(name, tensors[name])
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(_logits(again), _logits(teacher))


def test_a_last_layer_that_puts_out_no_numbers_is_found(tmp_path: Path) -> None:
    """Its weights are finite, and so is all that it reads."""
    teacher = new_model()
    teacher.model.layers[-1].mlp.down_proj.weight.data.fill_(3e38)
    with pytest.raises(DamagedCheckpoint, match="behind the last layer are not numbers"):
        opened(save(tmp_path / "teacher", teacher))
