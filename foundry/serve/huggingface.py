"""Serves a variant's safetensors by the server of transformers, for GPUs and for families that llama.cpp does not have.

What it lacks stands in `foundry.serve.gate`. Its process works in a folder that holds the model under the name that
clients use: the server calls a model by its path.
"""

import json
import os
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foundry.errors import MissingExtra, ServeFailed
from foundry.serve.gate import Gate
from foundry.serve.options import Options

_NEEDED = ("torch", "transformers", "fastapi", "uvicorn", "prometheus_client")
_STEP_S = 0.02


class TransformersServer:
    """One folder behind one port; answers from its construction on."""

    def __init__(self, model: Path, name: str, options: Options, adapter: Path | None = None) -> None:
        for module in _NEEDED:
            if find_spec(module) is None:
                raise MissingExtra(module, "serve")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of every request
        import torch
        import uvicorn

        torch.set_num_threads(options.threads)
        self._scratch = tempfile.TemporaryDirectory(prefix="foundry-serve-")
        _lay_out(model.absolute(), Path(self._scratch.name) / name, adapter and adapter.absolute())
        os.chdir(self._scratch.name)
        inner, tokenizer, trained_for = _application(name)
        if options.context_tokens > trained_for:
            raise ServeFailed(
                f"--context-tokens {options.context_tokens:,} is longer than the {trained_for:,} tokens that the model "
                "was made for"
            )
        self._gate = Gate(
            inner, name=name, api_key=options.api_key, context_tokens=options.context_tokens,
            count_tokens=lambda asked: _prompt_tokens(tokenizer, asked),
        )  # fmt: skip
        config = uvicorn.Config(
            self._gate, host=options.host, port=options.port, log_level="error", limit_concurrency=None, lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise ServeFailed(f"{options.host} port {options.port} cannot be served; try another --port")
            time.sleep(_STEP_S)

    def busy(self) -> bool:
        """Whether a request is in work."""
        return self._gate.in_work > 0

    def close(self) -> None:
        """Remove the folder of links."""
        os.chdir("/")
        self._scratch.cleanup()


def _lay_out(model: Path, folder: Path, adapter: Path | None) -> None:
    """The model's files under its name; beside them its adapter, which transformers then loads with it."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).symlink_to(path)
    if adapter is None:
        return
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = str(model)
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "adapter_model.safetensors").symlink_to(adapter / "adapter_model.safetensors")


def _application(name: str) -> tuple[Any, Any, int]:
    """transformers' server over the folder `name` of the working directory, its tokenizer, and the model's context."""
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.systemone import SystemOneHandler
    from transformers.cli.serving.transcription import TranscriptionHandler
    from transformers.cli.serving.utils import GenerationState

    manager = ModelManager(force_model=name, dtype="auto", device="auto" if _has_gpu() else "cpu")
    state = GenerationState()
    parts = {"model_manager": manager, "generation_state": state}
    application = build_server(
        manager, ChatCompletionHandler(**parts), completion_handler=CompletionHandler(**parts),
        response_handler=ResponseHandler(**parts), transcription_handler=TranscriptionHandler(manager, state),
        systemone_handler=SystemOneHandler(**parts), generation_state=state,
    )  # fmt: skip
    model, processor = manager.load_model_and_processor(manager.process_model_name(name))
    limit = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    return application, getattr(processor, "tokenizer", processor), int(limit or 2**31)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _prompt_tokens(tokenizer: Any, asked: dict[str, Any]) -> int:
    """Tokens of a completion's prompt or of a chat; what is malformed is left to the server to refuse."""
    prompt, messages = asked.get("prompt"), asked.get("messages")
    if isinstance(messages, list) and tokenizer.chat_template:
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # a template may raise anything at what a client sends; the server answers it
            return 0
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return len(tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else 0
