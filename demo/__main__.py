"""The main job, start to finish, on this machine: `make demo`.

    python -m demo                                   the teacher in demo/teacher, text from the standard library
    python -m demo --teacher ORG/NAME --data x.jsonl your own: a hub id or a folder, and your text

It starts the service with its embedded worker, submits one job with two targets through the SDK, downloads a variant,
and asks it a question in llama.cpp and in transformers. Everything lies under build/demo.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from demo.corpus import write_jsonl
from foundry.client.client import Foundry
from foundry.errors import FoundryError, StorageFull
from foundry.intake.checkpoint import open_checkpoint
from foundry.spec.job import is_hub_id
from foundry.spec.variant import Metrics, VariantManifest
from foundry.spec.weights import Shape

HERE = Path(__file__).parent
ROOT = HERE.parent
PROMPT = 'def read_file(path):\n    """'
DATA_BYTES = 4_000_000
LEAST_FREE_BYTES = 1_000_000_000
START_S = 60
CONSOLE = Console()


def main() -> int:
    """Return the exit status; every failure is said in one sentence with a way out."""
    args = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    try:
        _check_disk(args.folder)
        with _service(args) as foundry:
            _walk(foundry, args)
    except KeyboardInterrupt:
        CONSOLE.print("\n[yellow]Stopped.[/] The service and its worker are stopped too. `make demo` starts afresh.")
        return 130
    except FoundryError as error:
        CONSOLE.print(Panel(Text(error.message), title="The demo could not go on", border_style="red"))
        return 1
    CONSOLE.print(f"[dim]The whole demo took {time.monotonic() - began:.0f} s.[/]")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default=str(HERE / "teacher"), help="a folder, or ORG/NAME on the hub")
    parser.add_argument("--data", type=Path, help="of your own; by default the standard library's text")
    parser.add_argument("--prompt", default=PROMPT, help="what the downloaded variant is asked to continue")
    parser.add_argument("--tokens", type=float, default=100e3, help="length of the distillation")
    parser.add_argument("--port", type=int, default=8321)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "demo")
    return parser.parse_args()


def _check_disk(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise StorageFull(
            f"{folder} has {free / 1e6:,.0f} MB free; the demo needs {LEAST_FREE_BYTES / 1e6:,.0f} MB. Free some "
            "space, or put it elsewhere: make demo ARGS='--folder /other/disk'"
        )


@contextmanager
def _service(args: argparse.Namespace) -> Iterator[Foundry]:
    """`foundry up` in a process of its own, stopped whatever happens."""
    home = args.folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    teachers = [] if is_hub_id(args.teacher) else ["--teachers", str(Path(args.teacher).resolve())]
    command = [sys.executable, "-m", "foundry.cli", "up", "--home", str(home), "--port", str(args.port), *teachers]
    log = args.folder / "service.log"
    _title(
        "1",
        "Start the service",
        "foundry up: Flask behind gunicorn, an embedded worker, SQLite, a folder",
    )
    (home / "url").unlink(missing_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT)
    try:
        yield _connect(process, home, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _connect(process: subprocess.Popen[bytes], home: Path, log: Path) -> Foundry:
    deadline = time.monotonic() + START_S
    while not (home / "url").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-2000:].strip()
            raise FoundryError(
                f"the service did not start. It said:\n\n{said}\n\nAny free port: make demo ARGS='--port 0'"
            )
        time.sleep(0.1)
    foundry = Foundry((home / "url").read_text().strip(), (home / "key").read_text().strip())
    CONSOLE.print(f"  {foundry.url}, key in {_short(home / 'key')}, log in {_short(log)}")
    return foundry


def _walk(foundry: Foundry, args: argparse.Namespace) -> None:
    data = args.data or _standard_library_text(args.folder)
    _title("2", "Upload the domain data", "text that the students learn on; some of it is held out to measure on")
    dataset = foundry.datasets.upload(data)
    CONSOLE.print(f"  {dataset.id}: {dataset.documents:,} documents, {dataset.bytes / 1e6:.1f} MB")

    _title(
        "3",
        "Submit one job with two targets",
        "prune, distil, evaluate, export; both students learn from one teacher pass",
    )
    job = foundry.jobs.create(_spec(args, dataset.id))
    CONSOLE.print(f"  {job.id}: {job.status}")
    job = foundry.jobs.wait(job.id, progress=True)
    variants = [foundry.variants.get(variant_id) for variant_id in job.variant_ids]
    manifests = [VariantManifest.model_validate(foundry.variants.manifest(v.id)) for v in variants]
    _print_comparison(manifests)

    smallest = min(zip(variants, manifests, strict=True), key=lambda pair: pair[1].parameters)
    _title("4", "Download a variant", "ranged, resumable, every file checked against its digest")
    folder = foundry.variants.download(smallest[0].id, args.folder / "variants" / smallest[0].target)
    for artifact in smallest[1].files:
        if artifact.path.endswith((".gguf", ".safetensors")):
            CONSOLE.print(f"  {artifact.path:31} {artifact.bytes / 1e6:6.2f} MB  sha256 {artifact.sha256[:12]}…")

    _title("5", "Ask it", "the GGUF in llama.cpp and the safetensors in transformers, each on its own")
    _ask_both(folder, smallest[1], args.prompt)
    _closing(folder, args)


def _standard_library_text(folder: Path) -> Path:
    path = folder / "standard-library.jsonl"
    write_jsonl(path, DATA_BYTES)
    return path


def _spec(args: argparse.Namespace, dataset_id: str) -> dict[str, Any]:
    """Two devices that can take three quarters and half of the teacher."""
    if is_hub_id(args.teacher):
        targets: list[Any] = ["laptop", "smartphone"]
        teacher = args.teacher
    else:
        teacher = str(Path(args.teacher).resolve())
        checkpoint = open_checkpoint(Path(teacher))
        parameters = checkpoint.family.parameter_count(checkpoint.shape, checkpoint.present)
        targets = [
            {"name": "tablet", "max_params": int(parameters * 0.75)},
            {"name": "watch", "max_params": int(parameters * 0.5)},
        ]
    return {
        "name": "demo",
        "teacher": teacher,
        "data": dataset_id,
        "targets": targets,
        "prune": {"calibration_tokens": 16_384, "candidates": 3, "local_epochs": 2},
        "distill": {"tokens": int(args.tokens), "sequence_tokens": 256, "batch_tokens": 2048, "checkpoint_steps": 25},
        "evaluate": {"tokens": 16_384},
        "formats": ["safetensors", "gguf:f16", "gguf:q4_k_m"],
    }


def _print_comparison(manifests: list[VariantManifest]) -> None:
    title = "What came out, measured on text that no stage has trained on"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for column in ("params, M", "MB", "loss", "perplexity", "agrees", "tokens/s"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("teacher", *_cells(_row(manifests[0], "teacher")), end_section=True)
    for manifest in manifests:
        rows = [m for m in manifest.metrics if m.model in ("pruned", "distilled") or m.model.startswith("gguf")]
        for metrics in rows:
            table.add_row(f"{manifest.target}, {metrics.model}", *_cells(metrics))
        table.add_section()
    CONSOLE.print(table)
    CONSOLE.print(
        "[dim]loss: nats per token; for a GGUF what the format costs, against the safetensors on the same text. "
        "agrees: where the likeliest next token is the teacher's. tokens/s: llama.cpp on one thread here.[/]"
    )
    for manifest in manifests:
        CONSOLE.print(f"  {manifest.target}: {_cut(manifest.shape, manifest)}")


def _row(manifest: VariantManifest, model: str) -> Metrics:
    return next(m for m in manifest.metrics if m.model == model)


def _cells(metrics: Metrics) -> list[str]:
    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    if metrics.model.startswith("gguf"):
        loss, perplexity = cell(metrics.runtime_loss_difference, "+.4f"), ""
    else:
        loss, perplexity = cell(metrics.held_out_loss, ".3f"), cell(metrics.perplexity, ".2f")
    return [
        cell(metrics.parameters / 1e6 if metrics.parameters else None, ".2f"),
        cell(metrics.file_bytes / 1e6 if metrics.file_bytes else None, ".2f"),
        loss,
        perplexity,
        cell(metrics.top1_agreement_ratio, ".1%"),
        cell(metrics.decode_tokens_per_s, ",.0f"),
    ]


def _cut(shape: Shape, manifest: VariantManifest) -> str:
    return f"{shape.in_words}; {'fits' if manifest.fits_budget else 'is over'} its budget"


def _ask_both(folder: Path, manifest: VariantManifest, prompt: str) -> None:
    from foundry.engine.export.apart import LLAMACPP, TRANSFORMERS, ask
    from foundry.engine.export.runtime import Questions
    from foundry.engine.models import load_tokenizer

    tokenizer = load_tokenizer(folder / "safetensors")
    ids = tokenizer(prompt)["input_ids"]
    quantised = next(f.path for f in manifest.files if f.format == "gguf:q4_k_m")
    for label, module, model in (
        ("llama.cpp, 4-bit GGUF", LLAMACPP, folder / quantised),
        ("transformers, safetensors", TRANSFORMERS, folder / "safetensors"),
    ):
        answers = ask(module, Questions(model=str(model), prompts=[ids], continue_tokens=60))
        text = Text(prompt, style="dim")
        text.append(str(tokenizer.decode(answers.continuations[0].tokens)), style="bold green")
        CONSOLE.print(Panel(text, title=label, title_align="left", border_style="cyan"))


def _closing(folder: Path, args: argparse.Namespace) -> None:
    lines = [
        f"The variant, with its manifest and model card: {_short(folder)}",
        f"How good it is, as a page for the browser: {_short(folder / 'report.html')}",
        f"Database, artifacts and workspaces of the service: {_short(args.folder / 'home')}",
        "",
        "Next, with a model of your own (a folder, or ORG/NAME on the hub):",
        "  .venv/bin/foundry plan --teacher ./my-teacher --target smartphone",
        "  make demo ARGS='--teacher ./my-teacher --data ./my-text.jsonl'",
        "  .venv/bin/foundry up                 and, in another terminal:",
        "  .venv/bin/foundry submit spec.yaml   (docs/quickstart.md has a spec)",
    ]
    CONSOLE.print(Panel("\n".join(lines), title="Where everything lies", title_align="left", border_style="green"))


def _title(number: str, title: str, explanation: str) -> None:
    CONSOLE.print(f"\n[bold cyan]{number}  {title}[/]\n[dim]   {explanation}[/]", highlight=False)


def _short(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


if __name__ == "__main__":
    sys.exit(main())
