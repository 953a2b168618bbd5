"""Text that the teacher writes itself, where the customer has little: it goes on from the beginnings of documents.

A prompt gets a completion and a chat its last answer; a plain text is continued. Only documents of the training side
are begun, and what comes near a held-out document is dropped. The folder `sampled/` of the stage holds a file for each
batch, so a run that was stopped goes on with the next one, and `documents.json` once all are there.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foundry.engine.context import RunContext, seeded
from foundry.engine.corpus import Corpus
from foundry.engine.distill.schedule import LONGEST_SEQUENCE
from foundry.engine.evaluate.answers import Prompt, continued, prompts_of
from foundry.engine.evaluate.leakage import find_leaks
from foundry.engine.models import load_model, load_tokenizer, local_folder
from foundry.engine.workspace import Workspace, read_json, write_json
from foundry.errors import InvalidData
from foundry.intake.checkpoint import context_limit
from foundry.intake.documents import Document, Message
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, Progress, StageName
from foundry.spec.stages import SampledText

_BATCH = 32
_MOST_PROMPTS = 8192
_STAGE: StageName = "distill"


def sample(spec: JobSpec, workspace: Workspace, context: RunContext) -> None:
    """Let the teacher write what the spec asks for, or what is missing of it. Raises `Stopped` between batches.

    Raises `InvalidData` when no document of the data can be begun.
    """
    config = spec.distill.sampled if spec.distill else None
    if config is None or _finished(workspace).exists():
        return
    folder = local_folder(workspace.teacher)
    tokenizer = load_tokenizer(folder)
    corpus = Corpus.load(workspace.inputs.data, tokenizer, seed=spec.seed)
    begun = [document for document in corpus.train if not document.general][:_MOST_PROMPTS]
    teacher = load_model(folder, dtype=context.dtype, device=context.device)
    limit = min(context_limit(teacher.config.to_dict()) or LONGEST_SEQUENCE, LONGEST_SEQUENCE)
    prompts = prompts_of(begun, tokenizer, limit - 1, len(begun))
    if not prompts:
        raise InvalidData(
            f"distill.sampled: none of {len(begun)} training documents has a beginning that leaves room in the "
            f"teacher's context of {limit} tokens; leave distill.sampled out",
            pointer="/distill/sampled",
        )
    written = list(_write(teacher, tokenizer, prompts, limit, config, workspace, spec.seed, context))
    by_key = {document.key: document for document in begun}
    made = [
        _document(by_key[key], text, prompt, number)
        for number, (key, prompt, text) in enumerate(written)
        if text.strip()
    ]
    # What comes near a held-out document would be measured as skill.
    clean = find_leaks(made, corpus.held_out, context.should_stop).clean
    write_json(_finished(workspace), [document._asdict() for document in clean])
    dropped = len(made) - len(clean)
    message = (
        f"{_STAGE}: the teacher wrote {len(made):,} documents from {len(prompts):,} beginnings; {dropped:,} come near "
        "held-out text and are dropped"
    )
    context.report(EventType.LOG, message, stage=_STAGE, sampled_documents=len(clean), dropped_documents=dropped)


def sampled_documents(workspace: Workspace) -> list[Document]:
    """What the teacher wrote for this job; nothing where it was not asked to."""
    path = _finished(workspace)
    if not path.exists():
        return []
    rows = read_json(path)
    return [
        Document(**{**row, "messages": tuple(Message(*m) for m in row["messages"]) if row["messages"] else None})
        for row in rows
    ]


def _finished(workspace: Workspace) -> Path:
    return workspace.stage(_STAGE) / "sampled" / "documents.json"


def _write(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], limit: int,
    config: SampledText, workspace: Workspace, seed: int, context: RunContext,
) -> Iterator[tuple[str, str, str]]:  # fmt: skip
    """Key of the begun document, its beginning, and what the teacher wrote, until there are enough tokens.

    A batch depends on the seed and its number alone, so it does not matter which run writes it.
    """
    # Prompts of like length together: what is shorter is padded.
    order = sorted(prompts, key=lambda prompt: (len(prompt.ids_S), prompt.key))
    groups = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
    random.Random(f"sampled:{seed}").shuffle(groups)
    done = 0
    for number in count():
        group = groups[number % len(groups)]
        path = _finished(workspace).with_name(f"batch-{number:06d}.json")
        if not path.exists():
            context.heed()
            path.parent.mkdir(exist_ok=True)
            write_json(path, _batch(teacher, tokenizer, group, limit, config, seed * 1_000_003 + number))
        batch = read_json(path)
        yield from ((prompt.key, prompt.text, text) for prompt, text in zip(group, batch["texts"], strict=True))
        done += batch["tokens"]
        context.progress(Progress(stage=_STAGE, step=min(done, config.tokens), steps=config.tokens))
        if done >= config.tokens or not batch["tokens"]:
            return


@torch.no_grad()
def _batch(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, group: Sequence[Prompt], limit: int,
    config: SampledText, seed: int,
) -> dict[str, object]:  # fmt: skip
    room = limit - max(len(prompt.ids_S) for prompt in group)
    with seeded(seed, teacher.device):
        made = continued(
            teacher, tokenizer, [prompt.ids_S for prompt in group], room, temperature=config.temperature,
            top_p=config.top_p,
        )  # fmt: skip
    end = tokenizer.eos_token_id
    made = [ids[: ids.index(end)] if end in ids else ids for ids in made]
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in made]
    return {"texts": texts, "tokens": sum(map(len, made))}


def _document(begun: Document, text: str, beginning: str, number: int) -> Document:
    """The document that was begun, with the teacher's words for its own."""
    key = f"sampled-{number}"
    if begun.messages is not None:
        answers = [turn for turn, message in enumerate(begun.messages) if message.role == "assistant"]
        turns = (*begun.messages[: answers[-1]], Message("assistant", text))
        return Document(key=key, messages=turns)
    if begun.text is not None:
        return Document(key=key, text=beginning + text)
    return Document(key=key, prompt=begun.prompt, completion=text)
