from foundry.engine.export.bits import larger_formats
from foundry.spec.family import families
from foundry.spec.target import Budget
from foundry.spec.weights import Shape

LLAMA = families()["llama"]
SHAPE = Shape(layers=4, hidden=256, ffn=768, heads=4, kv_heads=2, head_dim=64, vocab=1024, tied=True)


def forms(form: str, **limit: int) -> list[str]:
    budget = Budget(target="t", format=form, context_tokens=64, **limit)
    return list(larger_formats(budget, LLAMA, SHAPE, frozenset()))


def test_a_mix_comes_before_five_bits_and_these_before_six_and_only_what_fits_is_tried() -> None:
    five = Budget(target="t", format="gguf:q5_k_m", context_tokens=64, max_bytes=1).used_bytes(LLAMA, SHAPE)
    assert forms("gguf:q4_k_m", max_bytes=10 * five) == ["gguf:mixed", "gguf:q5_k_m", "gguf:q6_k"]
    assert forms("gguf:q4_k_m", max_bytes=five) == ["gguf:mixed", "gguf:q5_k_m"]
    assert forms("gguf:q4_k_m", max_bytes=five - 1) == ["gguf:mixed"]
    four = Budget(target="t", format="gguf:q4_k_m", context_tokens=64, max_bytes=1).used_bytes(LLAMA, SHAPE)
    assert forms("gguf:q4_k_m", max_bytes=four) == []
    assert forms("gguf:q5_k_m", max_params=10**9) == ["gguf:mixed", "gguf:q6_k"]


def test_other_formats_are_taken_as_they_are() -> None:
    assert forms("gguf:q8_0", max_params=10**9) == forms("onnx:int4", max_params=10**9) == []
