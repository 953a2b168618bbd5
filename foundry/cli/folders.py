"""The commands about a variant's folder: verify, measure, serve."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from foundry.cli.local import AsJson
from foundry.spec.measurement import Measurement
from foundry.spec.variant import Metrics

Folder = Annotated[
    Path, typer.Argument(metavar="VARIANT_DIR", exists=True, file_okay=False, help="The folder with manifest.json.")
]
Key = Annotated[
    str | None, typer.Option(help="The only public key that will do: ed25519:..., or a file that holds it.")
]


def verify(
    folder: Folder,
    key: Key = None,
    digests_only: Annotated[bool, typer.Option("--digests-only", help="Accept a variant without signature.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check every file of a variant against its manifest, and the manifest against its signature; offline."""
    from foundry.cli import render
    from foundry.engine.export.manifest import verify_folder
    from foundry.engine.export.signature import read_public_key

    trusted = read_public_key(key) if key else None
    manifest, signed_by = verify_folder(folder, trusted, may_be_unsigned=digests_only)
    total = sum(file.bytes for file in manifest.files)
    if as_json:
        about = {"target": manifest.target, "files": len(manifest.files), "bytes": total}
        render.print_json({**about, "signed_by": signed_by, "key_was_asked_for": trusted is not None})
        return
    render.out().print(
        f"{folder} is as it was made: {len(manifest.files)} files, {render.size(total)}, made for "
        f"{manifest.target} on {manifest.created_at:%Y-%m-%d}",
        highlight=False,
    )
    render.out().print(_signer(signed_by, asked_for=trusted is not None), highlight=False, soft_wrap=True)


def _signer(signed_by: str | None, *, asked_for: bool) -> str:
    """Who vouches for a variant, and what that is worth."""
    from foundry.client.home import home_folder
    from foundry.engine.export.signature import PUBLIC_KEY_FILE

    if signed_by is None:
        return "no signature: the digests fit the manifest, but anyone could have written both"
    own = home_folder() / PUBLIC_KEY_FILE
    if asked_for or (own.is_file() and own.read_text(encoding="ascii", errors="replace").strip() == signed_by):
        return f"signed by {signed_by}, {'the key asked for' if asked_for else 'the key of this installation'}"
    return (
        f"signed by {signed_by}; whether that is the key of the service that you trust, compare with its "
        f"{PUBLIC_KEY_FILE}, or pass it with --key"
    )


def measure(
    folder: Folder,
    format: Annotated[list[str] | None, typer.Option(help="Of this format alone; can be given several times.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Text as for a job: its held-out documents are scored."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="By default all processors that this may use.")] = None,
    context_tokens: Annotated[
        int | None, typer.Option(min=2, help="Of the KV cache; by default the target's context.")
    ] = None,
    save: Annotated[
        bool, typer.Option("--save/--no-save", help="Note the figures in the folder's measured.jsonl.")
    ] = True,
    upload: Annotated[
        bool, typer.Option("--upload", help="Send the figures to the service that has the variant.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="With --upload: what people call this device.")] = None,
    target: Annotated[
        str | None, typer.Option(help="With --upload: judge by this target's budget, not by the variant's own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a variant here: load time, memory, speed, loss. The exit status is 1 when it is over its budget."""
    from foundry.cli import render, tables
    from foundry.engine.export import measure as measuring
    from foundry.engine.export.manifest import verify_folder
    from foundry.serve.options import free_threads

    manifest, _ = verify_folder(folder, may_be_unsigned=True)
    context = context_tokens or manifest.budget.context_tokens
    found = []
    for one in measuring.measure(
        folder, manifest, measuring.shipped_formats(manifest, format or ()),
        texts=measuring.held_out_texts(data) if data else (), threads=threads or free_threads(),
        context_tokens=context,
    ):  # fmt: skip
        found.append(one)
        if save:
            measuring.note(folder, one)
    kept = _upload(folder, [one.metrics for one in found], context, device, target) if upload else []
    over = [reason for sent in kept for reason in sent.over_budget]
    if not kept or target is None:
        over = [reason for one in found for reason in one.over_budget]
    if as_json:
        render.print_json({
            "measured": [one.metrics.model_dump(mode="json", exclude_none=True) for one in found],
            "over_budget": over,
            "uploaded": [sent.id for sent in kept],
        })  # fmt: skip
    else:
        render.out().print(tables.measured_table([one.metrics for one in found]))
        for reason in over:
            render.say(f"over the budget of {target or manifest.target}: {reason}", style="bold red")
        for sent in kept:
            render.say(f"{sent.metrics.model}: kept as {sent.id} of {sent.variant_id}, {_verdict(sent)}")
    if over:
        raise typer.Exit(1)


def _upload(
    folder: Path, rows: Sequence[Metrics], context_tokens: int, device: str | None, target: str | None
) -> list[Measurement]:
    """Send figures to the variant whose manifest lies in the folder. Raises `NotFound` when the service has none."""
    from foundry.cli.service_client import service
    from foundry.engine.export.manifest import NAME
    from foundry.engine.workspace import sha256_of
    from foundry.errors import NotFound

    digest = sha256_of(folder / NAME)
    with service() as foundry:
        variant = next((one for one in foundry.variants.list() if one.manifest_sha256 == digest), None)
        if variant is None:
            raise NotFound(
                f"the service has no variant with the manifest of {folder}; it was made elsewhere, deleted, or "
                "belongs to another project: choose its service with --profile or FOUNDRY_URL and FOUNDRY_KEY"
            )
        return [
            foundry.variants.add_measurement(
                variant.id, row, manifest_sha256=digest, context_tokens=context_tokens, device=device, target=target
            )
            for row in rows
        ]


def _verdict(one: Measurement) -> str:
    if one.fits_budget is None:
        return f"which does not settle whether it fits {one.target}"
    return f"{'within' if one.fits_budget else 'over'} the budget of {one.target}"


def serve(
    folder: Folder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8322,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    format: Annotated[
        str | None, typer.Option(help="Which of its formats; by default the one its device runs.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="llamacpp (GGUF) or transformers (safetensors); by default transformers where there is a GPU."
        ),
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter/--no-adapter", help="With the LoRA adapter that lies beside the weights, if any.")
    ] = True,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="FOUNDRY_SERVE_KEY", help="Clients must send it; better given by the variable."),
    ] = None,
    context_tokens: Annotated[
        int | None, typer.Option(min=1, help="Prompt and answer together; by default the target's context.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Requests at once, each with a KV cache of its own.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="By default all processors that this may use.")] = None,
    drain_s: Annotated[float, typer.Option(min=0, help="How long requests in work may take to end at the stop.")] = 30,
    key: Key = None,
) -> None:
    """Serve a variant with OpenAI's interface: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics."""
    from foundry.cli.listening import listen, url_of
    from foundry.engine.export.signature import read_public_key
    from foundry.serve import service
    from foundry.serve.offer import open_variant
    from foundry.serve.options import Options, free_threads

    with listen(host, port) as listener:
        port = listener.getsockname()[1]
    trusted = read_public_key(key) if key else None
    offer = open_variant(folder, format, trusted, runtime=runtime, with_adapter=adapter)
    options = Options(
        host=host, port=port, api_key=api_key, context_tokens=context_tokens or offer.context_tokens,
        parallel=parallel, threads=threads or free_threads(),
    )  # fmt: skip

    def ready() -> None:
        form = offer.form + (" with its adapter" if offer.adapter else "")
        print(f"Serving {offer.name} ({form}) at {url_of(host, port)}/v1", flush=True)

    for line in service.cautions(offer, options):
        _say(line)
    service.serve(offer, options, drain_s=drain_s, ready=ready)


def _say(line: str) -> None:
    from foundry.cli.render import say

    say(line, style="yellow")
