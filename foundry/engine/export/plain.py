"""Opens a folder in plain transformers and answers the same questions: `python -m foundry.engine.export.plain`.

Nothing of ours is between the folder and transformers: what opens here opens for everyone. It computes in float32,
which makes it the reference that other runtimes are compared with.

T: tokens of a sequence, V: vocabulary.
"""

import inspect
import sys
import time
import warnings
from collections.abc import Sequence

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

from foundry.engine.export.runtime import Answers, Continuation, Questions, peak_memory_bytes, serve


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: Sequence[int], tokens: int) -> Continuation:
    """The likeliest token, again and again; the end-of-text token does not stop it."""
    cache = DynamicCache(config=model.config)
    chosen, seconds, margins = [], [], []
    feed = list(prompt)
    for _ in range(tokens):
        logits_V = _last_logits(model, feed, cache)
        top = logits_V.topk(2)
        chosen.append(int(top.indices[0]))
        seconds.append(int(top.indices[1]))
        margins.append(float(top.values[0] - top.values[1]))
        feed = chosen[-1:]
    return Continuation(tokens=chosen, seconds=seconds, margins=margins)


def _last_logits(model: PreTrainedModel, feed: Sequence[int], cache: DynamicCache) -> Tensor:
    ids_1T = torch.tensor([list(feed)], device=model.device)
    # transformers has renamed the argument and drops the old name in 5.40.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    logits_V: Tensor = model(input_ids=ids_1T, **{name: cache}, use_cache=True, logits_to_keep=1).logits[0, -1]
    return logits_V


@torch.no_grad()
def score(model: PreTrainedModel, passage: Sequence[int]) -> tuple[list[float], list[int]]:
    """For every token but the first: minus its log probability in nats, and which token was likeliest there."""
    ids_T = torch.tensor(list(passage), device=model.device)
    logits_TV = model(input_ids=ids_T[None, :-1], use_cache=False).logits[0].float()
    losses_T = torch.nn.functional.cross_entropy(logits_TV, ids_T[1:], reduction="none")
    return losses_T.tolist(), logits_TV.argmax(dim=-1).tolist()


@torch.no_grad()
def speed(model: PreTrainedModel, prompt: Sequence[int], decode_tokens: int) -> tuple[float, float]:
    """Tokens a second of a prompt and of decoding."""
    cache = DynamicCache(config=model.config)
    start = time.perf_counter()
    token = int(_last_logits(model, prompt, cache).argmax())
    after_prompt = time.perf_counter()
    for _ in range(decode_tokens):
        token = int(_last_logits(model, [token], cache).argmax())
    return len(prompt) / (after_prompt - start), decode_tokens / (time.perf_counter() - after_prompt)


def _with_adapter(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """The model with PEFT's layers inside it; it is called as before."""
    from peft import PeftModel  # beside transformers only where an adapter is asked about

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a name that transformers has renamed
        adapted: PreTrainedModel = PeftModel.from_pretrained(model, folder).get_base_model().eval()
    return adapted


def answer(questions: Questions) -> Answers:
    """Everything asked about one folder."""
    torch.set_num_threads(questions.threads)
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(questions.model, dtype=torch.float32).to(questions.device).eval()
    if questions.adapter:
        model = _with_adapter(model, questions.adapter)
    load_ms = 1000 * (time.perf_counter() - start)
    tokenizer = AutoTokenizer.from_pretrained(questions.model)
    scores = [score(model, passage) for passage in questions.passages]
    texts = [tokenizer(text)["input_ids"][: questions.context_tokens] for text in questions.read_texts]
    rates: tuple[float, float] | tuple[None, None] = (None, None)
    if questions.speed_prompt_tokens:
        prompt = [i % model.config.vocab_size for i in range(questions.speed_prompt_tokens)]
        rates = speed(model, prompt, questions.speed_decode_tokens)
    bare = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in questions.texts]
    return Answers(
        runtime=f"transformers {transformers.__version__}, torch {torch.__version__}",
        load_ms=load_ms,
        context_tokens=model.config.max_position_embeddings,
        token_ids=[tokenizer(text)["input_ids"] for text in questions.texts],
        bare_token_ids=bare,
        texts_back=[
            tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) for ids in bare
        ],
        continuations=[greedy(model, prompt, questions.continue_tokens) for prompt in questions.prompts],
        losses=[losses for losses, _ in scores],
        likeliest=[tops for _, tops in scores],
        text_losses=[score(model, tokens)[0] for tokens in texts if len(tokens) > 1],
        prompt_tokens_per_s=rates[0],
        decode_tokens_per_s=rates[1],
        peak_memory_bytes=peak_memory_bytes(),
    )


if __name__ == "__main__":
    try:
        serve(answer)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
