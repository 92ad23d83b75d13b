"""The command line: export, run, generate, verify, show, models.

Exit codes: 0 good; 1 wrong numbers or failed work; 2 wrong use: an unknown name, a place that is not there, existing output.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_arguments import one_of, texts
from .runtime.steps import steps

FORMATS = ("onnx", "stablehlo", "saved_model")
FLOATS = ("f32", "f16", "bf16")
SCHEMES = ("int8", "int8-weights", "int4-weights")
TARGETS = ("onnxruntime", "xla", "torch", "tensorflow", "tf2onnx", "numpy")
GENERATING = ("onnxruntime", "xla", "torch")
ON = f"One of {', '.join(TARGETS)}"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

MODEL = Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint's folder or its Hugging Face id.")]
HEAD = Annotated[str | None, typer.Option(metavar="NAME", help="Class name (BertForMaskedLM) or task (masked-lm); default: what config.json names.")]
INPUTS = Annotated[
    list[str] | None, typer.Option("--input", metavar="NAME", help="An input that is present; repeat for several. Default: the usual ones.")
]
OUTPUTS = Annotated[list[str] | None, typer.Option("--output", metavar="GLOB", help="An output, or several as 'hidden_states.*'; repeat for more.")]
SCHEME = Annotated[
    str | None, typer.Option(metavar="SCHEME", callback=one_of(SCHEMES), help=f"Weights in fewer bits, for ONNX: one of {', '.join(SCHEMES)}.")
]
MAX_ERROR = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="With --quantize: keep layers in float32 until no output is off by more than this share of its magnitude."),
]
SWITCH_OFF = Annotated[list[str] | None, typer.Option(metavar="PASS", help="Leave out a pass of the ONNX export (`show --passes`); repeat for more.")]
NEW = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Write one graph, generator, that takes ids and gives them with N new ones, the likeliest.")
]
DEVICE = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, tpu; tensorrt for onnxruntime; with a number where there are several: cuda:1.")]


def _load(model: str, head: str | None, progress: Callable[[str], None] = lambda text: None, **options: Any) -> Any:
    from .model import load

    progress(f"reading {model}")
    return load(model, head, **options)


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"interlingua {__version__}")
        raise typer.Exit


@app.callback()
def interlingua(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Define a model once; export it to ONNX, XLA or TensorFlow, run it anywhere, and know that its numbers are right.

    \b
    Examples:
      interlingua export ./bert-base                   writes model.onnx beside the weights, and checks it
      interlingua run ./minilm --text 'How are you?'   runs a checkpoint or an exported folder
      interlingua generate ./gpt2 'Once upon a time'   writes what follows, as it comes
      interlingua verify ./gpt2                        every installed target against the float64 reference
      interlingua show ./vit --html vit.html           the graph as a page to fold and search
    """


@app.command()
def export(
    model: MODEL,
    out: Annotated[Path | None, typer.Argument(metavar="FOLDER", help="Where to write; default: in place, beside the checkpoint's weights.")] = None,
    to: Annotated[str, typer.Option(metavar="FORMAT", callback=one_of(FORMATS), help=f"One of {', '.join(FORMATS)}.")] = "onnx",
    head: HEAD = None,
    input: INPUTS = None,
    output: OUTPUTS = None,
    opset: Annotated[int | None, typer.Option(min=17, max=24, metavar="N", help="ONNX opset, 17 to 24; default 23.")] = None,
    cache: Annotated[
        bool | None,
        typer.Option("--cache/--no-cache", help="Graphs with key/value caches; default: for heads that generate, if no input or output is chosen."),
    ] = None,
    all_positions: Annotated[bool, typer.Option("--all-positions", help="With caches: the logits of all positions, as --assistant needs.")] = False,
    generate: NEW = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Run what is written against the float64 reference, and fail if it is wrong.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")] = False,
    dtype: Annotated[str, typer.Option(metavar="FLOAT", callback=one_of(FLOATS), help=f"Floats in ONNX files: one of {', '.join(FLOATS)}.")] = "f32",
    quantize: SCHEME = None,
    max_error: MAX_ERROR = None,
    switch_off: SWITCH_OFF = None,
) -> None:
    """Write a model as ONNX, StableHLO or a SavedModel.

    What is written is run against the float64 reference before it appears; where it differs by more than rounding, nothing appears.

    \b
    Examples:
      interlingua export ./bert-base
      interlingua export ./all-MiniLM-L6-v2 ./served --output sentence_embedding
      interlingua export ./bert-base ./small --quantize int8 --max-error 0.02
      interlingua export ./bert-base ./half --dtype f16
      interlingua export ./gpt2 ./one-file --generate 64
      interlingua export ./vit ./vit-xla --to stablehlo --output logits --output 'hidden_states.*'
    """
    for name, value in {"opset": opset, "switch-off": switch_off}.items():
        if value is not None and to != "onnx":
            raise typer.BadParameter(f"it is for ONNX, not for {to}; leave it out", param_hint=f"--{name}")
    with steps() as progress:
        loaded = _load(model, head, progress)
        if out is None and not Path(model).expanduser().is_dir():
            raise typer.BadParameter(f"{model} is no folder but a hub's id: say where to write", param_hint="FOLDER")
        special = {"opset": opset, "generate": generate, "quantize": quantize, "max_error": max_error, "switch_off": switch_off}
        options: dict[str, Any] = {"dtype": dtype, "all_positions": all_positions, **{k: v for k, v in special.items() if v is not None}}
        made = loaded.export(out, to, inputs=input, outputs=output, cache=cache, check=check, overwrite=overwrite, progress=progress, **options)
    _list_graphs(Path(out or loaded.folder), made)


def _list_graphs(place: Path, made: Any) -> None:
    """What was written: files with their sizes, and outputs with their errors."""
    for graph in made:
        weights = "".join(f"  + {k} {_bytes(n)}" for k, n in graph.weights.items())
        typer.echo(f"{place / graph.file}  {_bytes((place / graph.file).stat().st_size)}{weights}")
        for line in _outputs(graph.outputs, graph.errors):
            typer.echo(f"  {line}")


def _outputs(types: dict[str, str], errors: dict[str, float]) -> Iterator[str]:
    """A line for each output, or for several that differ in their numbers only, with the greatest error."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, type in types.items():
        alike.setdefault((re.sub(r"\d+", "*", name), type), []).append(name)
    for (pattern, type), names in alike.items():
        told = f"{names[0]}: {type}" if len(names) == 1 else f"{pattern}: {len(names)} of {type}"
        yield told + (f"  checked, off by at most {max(errors[k] for k in names):.1e}" if errors else "")


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


@app.command()
def verify(
    model: MODEL,
    on: Annotated[
        list[str] | None,
        typer.Option(metavar="TARGET", callback=one_of(TARGETS), help=f"{ON}; repeat for several. Default: all that are installed."),
    ] = None,
    head: HEAD = None,
    input: INPUTS = None,
    output: OUTPUTS = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Another checkpoint of the same model, whose numbers are the right ones.")
    ] = None,
    device: DEVICE = "cpu",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Which random inputs.")] = 0,
) -> None:
    """Compare every target with the float64 reference.

    A model is run at two sizes, one padded. Where an output differs by more than rounding, the first layer that does is named and the exit
    code is 1.

    \b
    Examples:
      interlingua verify ./bert-base
      interlingua verify ./bert-base --on onnxruntime --on torch --output 'hidden_states.*'
      interlingua verify ./converted --against ./original
    """
    from .runtime.verify import verify as run

    with steps() as progress:
        loaded = _load(model, head, progress)
        truth = None if against is None else _load(against, head or loaded.head, progress)
        _check_same(loaded, truth or loaded, against)
        report = run(loaded, on or None, device=device, inputs=input, outputs=output, truth=truth, seed=seed, progress=progress)
    _print_report(report)
    raise typer.Exit(0 if report.ok else 1)


def _check_same(model: Any, other: Any, name: str | None) -> None:
    shapes = {p.key: list(p.shape) for p in other.params}
    for p in model.params:
        if (shape := shapes.get(p.key)) != list(p.shape):
            told = f"{name} is another model: {p.key} has shape {shape}, expected {list(p.shape)}"
            raise typer.BadParameter(told, param_hint="--against")


def _print_report(report: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("target", "sample", "output"):
        table.add_column(column, overflow="fold")
    for column in ("error", "allowed"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for r in report.rows:
        table.add_row(r.target, r.sample, r.output, f"{r.error:.1e}", f"{r.limit:.1e}", "[green]ok[/]" if r.ok else "[red]DIFFERS[/]")
    console = Console(highlight=False)
    console.print(table, width=console.width if console.is_terminal else None)
    typer.echo(str(report))


@app.command()
def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint's folder or Hugging Face id, or a folder that `export` wrote.")],
    text: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Text, or @FILE with a text on each line; repeat for several.")] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="What goes with each text: a question's context, a second sentence, the choices of one text."),
    ] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A candidate label (zero-shot tasks); repeat for several.")] = None,
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="An image file; repeat for several.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A WAV file; repeat for several.")] = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="A pipeline's task (fill-mask, ner, ...); default: the head's.")] = None,
    on: Annotated[
        str | None, typer.Option(metavar="TARGET", callback=one_of(TARGETS), help=f"{ON}; default: what the folder was exported for.")
    ] = None,
    head: HEAD = None,
    device: DEVICE = "cpu",
    top_k: Annotated[int, typer.Option(min=1, metavar="N", help="How many answers to show.")] = 5,
) -> None:
    """Run a model on text, images or sound.

    \b
    Examples:
      interlingua run ./bert-base --task fill-mask --text 'The capital of France is [MASK].'
      interlingua run ./minilm --text @sentences.txt
      interlingua run ./squad --text 'Who wrote it?' --pair 'It was written by Ada.'
      interlingua run ./mnli --task zero-shot-classification --text 'How dull!' --label praise --label complaint
      interlingua run ./clip --image cat.jpg --label 'a cat' --label 'a dog'
      interlingua run ./wav2vec2 --audio speech.wav --on torch
    """
    from .runtime.answering import answer_table

    raw = {"text": texts(text, "--text"), "pair": texts(pair, "--pair"), "label": label or None, "image": image or None, "audio": audio or None}
    with steps() as progress:
        table, notes = answer_table(task, model, _load, on, head=head, device=device, top_k=top_k, progress=progress, **raw)
    typer.echo(str(table))
    for note in notes:
        typer.echo(f"note: {note}", err=True)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint's folder or Hugging Face id, or a folder that `export` wrote.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What is to be continued or answered.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="The most tokens to add.")] = 64,
    num_beams: Annotated[int | None, typer.Option(min=1, metavar="N", help="Beams; 1 takes the likeliest token. Default: the checkpoint's.")] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")] = False,
    temperature: Annotated[float | None, typer.Option(metavar="T", help="With --sample: above 1 is bolder, below 1 safer.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, metavar="N", help="With --sample: draw from the N likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(metavar="P", help="With --sample: draw from the likeliest tokens that together have P.")] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="With --sample: which draw.")] = 0,
    assistant: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What guesses tokens for MODEL to read at once: a smaller model, or int8-weights. Saves time.")
    ] = None,
    on: Annotated[str | None, typer.Option(metavar="TARGET", callback=one_of(GENERATING), help=f"One of {', '.join(GENERATING)}.")] = None,
    head: HEAD = None,
    device: DEVICE = "cpu",
) -> None:
    """Write what follows a text, token by token.

    \b
    Examples:
      interlingua generate ./gpt2 'The capital of France is'
      interlingua generate ./t5-small 'translate English to German: How are you?' --num-beams 4
      interlingua generate ./gpt2 'Once upon a time' --sample --top-p 0.9 --seed 7
    """
    from .runtime.generation import generator_for

    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    if unused := [k for k, x in given.items() if x is not None and not sample]:
        raise typer.BadParameter("it says how tokens are drawn; pass --sample too", param_hint=f"--{unused[0].replace('_', '-')}")
    with steps() as progress:
        made = generator_for(model, partial(_load, progress=progress), on, head=head, device=device, assistant=assistant)
    beams = num_beams or (1 if sample else made.options.num_beams)
    stream = partial(typer.echo, nl=False) if beams == 1 else None
    options = {k: x for k, x in given.items() if x is not None} | {"max_new_tokens": max_new_tokens, "num_beams": beams, "seed": seed}
    found = made.text(text, do_sample=sample, stream=stream, **options)
    typer.echo("" if stream else found[0])


@app.command()
def show(
    model: MODEL,
    head: HEAD = None,
    input: INPUTS = None,
    output: OUTPUTS = None,
    parameters: Annotated[bool, typer.Option("--parameters", help="List every parameter instead of the graph.")] = False,
    passes: Annotated[bool, typer.Option("--passes", help="List what each pass of the ONNX export changes instead of the graph.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the graph as a page to fold and search in a browser.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
) -> None:
    """Print a model's inputs, outputs, sizes and graph.

    \b
    Examples:
      interlingua show ./vit-base
      interlingua show ./vit-base --parameters
      interlingua show ./vit-base --passes
      interlingua show ./vit-base --output 'attentions.*' --html vit.html
    """
    from .ir.text import print_graph
    from .runtime.showing import page, parameter_lines, pass_lines, summary

    with steps() as progress:
        loaded = _load(model, head, progress)
        graph = loaded.graph(input, output)
    if html is not None:
        from .ir.atomic import atomic_file

        with atomic_file(html, overwrite=overwrite) as path:
            path.write_text(page(loaded, graph), "utf-8")
    typer.echo(summary(loaded, graph))
    if parameters:
        typer.echo("\n".join(["", *parameter_lines(loaded)]))
    elif passes:
        from .exporters.onnx import passes_for

        typer.echo("\n".join(["", *pass_lines(graph, passes_for(graph))]))
    elif html is None:
        typer.echo("\n" + print_graph(graph, data=False), nl=False)
    if html is not None:
        typer.echo(f"wrote {html}")


@app.command()
def models() -> None:
    """List the architectures and heads that are known.

    Behind each head stands the task that chooses it.

    \b
    Examples:
      interlingua models
      interlingua export ./bert-base ./out --head masked-lm
    """
    from . import models as registry
    from .ir.card import TASKS
    from .ir.errors import UsageError

    for name in registry.names():
        card = registry.card(name)
        tasks: dict[str, str] = {}
        for task in TASKS:
            with suppress(UsageError):  # an architecture without a head for it
                tasks.setdefault(registry.choose_head(card, {}, task)[0], task)
        typer.echo(card.model_type)
        for head in card.heads:
            typer.echo(f"  {head:<36} {tasks.get(head, '')}".rstrip())


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {message}", err=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script; `arguments` are by default those of the process."""
    from .ir.errors import InterlinguaError

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's notes about this machine
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            app(arguments, prog_name="interlingua")
    except InterlinguaError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
