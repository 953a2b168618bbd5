"""Serves a GGUF by llama.cpp's own HTTP server, which the xllamacpp wheel carries.

It speaks OpenAI's interface, streams, and counts for Prometheus. The server lives in threads of this process; Python
only sets it up and waits. What is not needed to answer is turned off: the page for browsers, slots, settings over HTTP,
requests from other sites, and the prompt cache in main memory, whose default of 8 GiB would break every budget that a
variant was made for.
"""

from pathlib import Path
from typing import Any

import httpx2

from foundry.engine.export.library import shared_library
from foundry.errors import ServeFailed
from foundry.serve.options import Options

_REQUESTS_IN_WORK = "llamacpp:requests_processing"


class LlamaServer:
    """One GGUF behind one port; answers from its construction on."""

    def __init__(self, model: Path, name: str, options: Options, adapter: Path | None = None) -> None:
        shared_library()  # says which extra to install when it is missing
        import xllamacpp

        try:
            self._server: Any = xllamacpp.Server(_parameters(xllamacpp, model, name, options, adapter))
        except RuntimeError as error:
            raise ServeFailed(
                f"llama.cpp cannot serve {model.name} on {options.host} port {options.port} with {options.parallel} x "
                f"{options.context_tokens:,} tokens of context: {error} Its own words stand above; "
                "try a smaller --context-tokens or --parallel, or another --port"
            ) from error
        self._refuse_long_context(options)

    def busy(self) -> bool:
        """Whether a request is in work."""
        lines = str(self._server.handle_metrics()).splitlines()
        return any(line.startswith(_REQUESTS_IN_WORK) and not line.endswith(" 0") for line in lines)

    def close(self) -> None:
        """Nothing lies on the disk."""

    def _refuse_long_context(self, options: Options) -> None:
        """llama.cpp takes any length; beyond what the model was made for it talks nonsense without a word."""
        headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        with httpx2.Client(trust_env=False, headers=headers) as client:
            meta = client.get(f"{self._server.listening_address}/v1/models").json()["data"][0]["meta"]
        if options.context_tokens > meta["n_ctx_train"]:
            raise ServeFailed(
                f"--context-tokens {options.context_tokens:,} is longer than the {meta['n_ctx_train']:,} tokens that "
                "the model was made for"
            )


def _parameters(xllamacpp: Any, model: Path, name: str, options: Options, adapter: Path | None) -> Any:
    given = xllamacpp.CommonParams()
    if adapter is not None:
        lora = xllamacpp.CommonAdapterLoraInfo()
        lora.path, lora.scale = str(adapter), 1.0
        given.lora_adapters = [lora]
    given.model.path = str(model)
    given.model_alias = {name}
    given.offline = True
    given.hostnames = [options.host]
    given.port = options.port
    given.api_keys = [options.api_key] if options.api_key else []
    given.n_parallel = options.parallel
    given.n_ctx = options.context_tokens * options.parallel  # llama.cpp divides it among the requests
    given.fit_params = False  # a context that does not fit is an error, not a shorter context
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = options.threads
    given.endpoint_metrics = True
    given.endpoint_slots = given.endpoint_props = given.ui = False
    given.cors_origins = ""
    given.cache_ram_mib = 0
    given.verbosity = 1  # errors
    return given
