"""The command line: export, run, verify, show, models.

Exit codes: 0 good; 1 wrong numbers or failed work; 2 wrong use, a missing file or an unknown model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="interlingua",
    help="Define a model once; export it to ONNX, XLA or TensorFlow, run it anywhere, and know that its numbers are right.\n\n"
    "Examples:\n\n"
    "  interlingua export ./bert-base --to onnx           writes model.onnx beside the weights and checks it\n\n"
    "  interlingua run ./minilm --text 'How are you?'     runs a checkpoint or an exported folder\n\n"
    "  interlingua verify ./gpt2                          every installed target against the float64 reference",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

MODEL = Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint's folder or its Hugging Face id.")]
HEAD = Annotated[str | None, typer.Option(help="Class name (BertForMaskedLM) or task (masked-lm); default: what config.json names.")]
INPUTS = Annotated[list[str] | None, typer.Option("--input", help="An input that is present; repeat for several. Default: the usual ones.")]
OUTPUTS = Annotated[list[str] | None, typer.Option("--output", help="An output or a glob such as 'hidden_states.*'; repeat for several.")]
DEVICE = Annotated[str, typer.Option(help="cpu, cuda, tpu; tensorrt for onnxruntime; a number where there are several: cuda:1.")]


class Format(StrEnum):
    """What an export writes."""

    onnx = "onnx"
    stablehlo = "stablehlo"
    saved_model = "saved_model"


class Target(StrEnum):
    """What a model is run on."""

    onnxruntime = "onnxruntime"
    xla = "xla"
    torch = "torch"
    tensorflow = "tensorflow"
    numpy = "numpy"


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line that says what is being done, on the terminal's error stream; plain text where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(text)


def _load(model: str, head: str | None, progress: Callable[[str], None]) -> Any:
    from .model import load

    progress(f"reading {model}")
    return load(model, head)


@app.command()
def export(
    model: MODEL,
    out: Annotated[Path | None, typer.Argument(help="Folder to write to; default: in place, beside the checkpoint's weights.")] = None,
    to: Annotated[Format, typer.Option(help="What to write.")] = Format.onnx,
    head: HEAD = None,
    input: INPUTS = None,
    output: OUTPUTS = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset, 17 to 24; default 23.")] = None,
    cache: Annotated[bool | None, typer.Option("--cache/--no-cache", help="Graphs with key and value caches, for heads that generate.")] = None,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Run the artifact against the float64 reference, and fail if it is wrong.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")] = False,
) -> None:
    """Write a model as ONNX, StableHLO or a SavedModel, and check its numbers.

    Example: interlingua export ./all-MiniLM-L6-v2 ./served --output sentence_embedding
    """
    with _progress() as progress:
        loaded = _load(model, head, progress)
        options: dict[str, Any] = {"opset": opset} if opset is not None else {}
        if options and to is not Format.onnx:
            raise typer.BadParameter("--opset goes with --to onnx")
        made = loaded.export(out, to.value, inputs=input, outputs=output, cache=cache, check=check, overwrite=overwrite, progress=progress, **options)
    place = Path(out or loaded.folder)
    for graph in made:
        typer.echo(f"{place / graph.file}  {_bytes((place / graph.file).stat().st_size)}" + "".join(f"  + {k} {_bytes(n)}" for k, n in graph.weights.items()))
        for name, error in graph.errors.items():
            typer.echo(f"  {name}: {graph.outputs[name]}  checked, off by at most {error:.1e}")
        if not graph.errors:
            for name, type in graph.outputs.items():
                typer.echo(f"  {name}: {type}")


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return ""


@app.command()
def verify(
    model: MODEL,
    on: Annotated[list[Target] | None, typer.Option(help="A target; repeat for several. Default: all that are installed.")] = None,
    head: HEAD = None,
    input: INPUTS = None,
    output: OUTPUTS = None,
    device: DEVICE = "cpu",
    seed: Annotated[int, typer.Option(help="Which random inputs.")] = 0,
) -> None:
    """Run a model on every target at two sizes, one padded, and compare each output with the float64 reference.

    Example: interlingua verify ./bert-base --on onnxruntime --on torch --output 'hidden_states.*'
    """
    from .runtime.verify import verify as run

    with _progress() as progress:
        loaded = _load(model, head, progress)
        targets = [t.value for t in on] if on else None
        report = run(loaded, targets, device=device, inputs=input, outputs=output, seed=seed, progress=progress)
    _print_report(report)
    raise typer.Exit(0 if report.ok else 1)


def _print_report(report: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report.model} against the float64 reference")
    for column in ("target", "sample", "output"):
        table.add_column(column)
    for column in ("error", "allowed"):
        table.add_column(column, justify="right")
    table.add_column("")
    for r in report.rows:
        table.add_row(r.target, r.sample, r.output, f"{r.error:.1e}", f"{r.limit:.1e}", "[green]ok[/]" if r.ok else "[red]DIFFERS[/]")
    Console().print(table)
    for target, place in report.first.items():
        typer.echo(f"{target}: the first layer that differs is {place}")


@app.command()
def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint's folder or Hugging Face id, or a folder that `export` wrote.")],
    text: Annotated[list[str] | None, typer.Option(help="Text, or @FILE with a text on each line; repeat for several.")] = None,
    pair: Annotated[list[str] | None, typer.Option(help="The second text of each pair: a question's context, a second sentence.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="An image file; repeat for several.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="A WAV file; repeat for several.")] = None,
    on: Annotated[Target, typer.Option(help="What to run on.")] = Target.onnxruntime,
    head: HEAD = None,
    device: DEVICE = "cpu",
    top_k: Annotated[int, typer.Option(help="How many answers to show.")] = 5,
) -> None:
    """Run a model on text, images or sound, and print a readable answer.

    Example: interlingua run ./bert-base --head masked-lm --text 'The capital of France is [MASK].'
    """
    from .runtime.answering import run_raw

    texts = [line for t in text or [] for line in (_lines(t) if t.startswith("@") else [t])]
    with _progress() as progress:
        answer = run_raw(
            model, on.value, head=head, device=device, text=texts or None, pair=pair, image=image or None, audio=audio or None, top_k=top_k, progress=progress
        )
    typer.echo(str(answer))


def _lines(text: str) -> list[str]:
    path = Path(text[1:])
    if not path.is_file():
        raise typer.BadParameter(f"no such file: {path}", param_hint="--text")
    return [line for line in path.read_text("utf-8").splitlines() if line.strip()]


@app.command()
def show(
    model: MODEL,
    head: HEAD = None,
    input: INPUTS = None,
    output: OUTPUTS = None,
    parameters: Annotated[bool, typer.Option("--parameters", help="List every parameter instead of the graph.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the graph as a page to fold and search in a browser.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
) -> None:
    """Print a model's graph, inputs, outputs and sizes.

    Example: interlingua show ./vit-base --html vit.html
    """
    from .runtime.showing import page, parameter_lines, summary

    loaded = _load(model, head, lambda text: None)
    graph = loaded.graph(input, output)
    typer.echo(summary(loaded, graph))
    if html is not None:
        from .ir.atomic import atomic_file

        with atomic_file(html, overwrite=overwrite) as path:
            path.write_text(page(loaded, graph), "utf-8")
        typer.echo(f"wrote {html}")
    elif parameters:
        typer.echo("\n".join(parameter_lines(loaded)))
    else:
        typer.echo(str(graph))


@app.command()
def models() -> None:
    """List the architectures and heads that are known."""
    from . import models as registry

    for name in registry.names():
        card = registry.card(name)
        typer.echo(f"{card.model_type}: {', '.join(card.heads)}")


def main() -> None:
    """The console script."""
    from .ir.errors import InterlinguaError

    try:
        app()
    except InterlinguaError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
