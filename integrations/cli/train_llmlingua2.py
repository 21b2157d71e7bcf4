"""`laconic train llmlingua2`: the steps of `laconic.core.training.llmlingua2`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ...core.errors import InputError, MissingExtraError, ModelError

__all__ = ["add_parsers", "run"]


def add_parsers(parser: argparse.ArgumentParser) -> None:
    """Add the steps and their options."""
    parser.description = (
        "LLMLingua-2's recipe: ask a large model to strike out words (collect), label the words "
        "that it left (annotate), leave out the worst (filter), and train a token classifier that "
        "does the same (fit). Each step reads what the one before wrote."
    )
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    _add_collect(steps.add_parser("collect", help="ask a large model to strike out words"))
    _add_annotate(steps.add_parser("annotate", help="label the words that it left"))
    _add_filter(steps.add_parser("filter", help="leave out the texts that fit worst"))
    _add_fit(steps.add_parser("fit", help="train a token classifier on the labels"))


def _add_collect(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Cut documents into chunks of whole sentences, say what it will cost, and ask a model to "
        "shorten each. Answers are written one by one: a stopped run goes on when it is started "
        "again."
    )
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="FILE",
        help="JSON lines (.jsonl, .jsonl.gz), text files, or folders of .txt",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON lines of pairs")
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model", metavar="PROVIDER:NAME", help="as LangChain's init_chat_model takes it"
    )
    model.add_argument(
        "--own-model",
        metavar="MODULE:NAME",
        help="a LangChain chat model of your own, or a function that makes one",
    )
    parser.add_argument("--temperature", type=float, default=0.3, help="of --model, default 0.3")
    parser.add_argument("--field", default="text", help="key of the text in JSON lines")
    parser.add_argument(
        "--instruction",
        metavar="FILE",
        help="a JSON object: system, and user with {text} where the text is to be",
    )
    parser.add_argument("--max-tokens", type=int, default=512, help="of a chunk, default 512")
    parser.add_argument("--counter", help="tokenizer whose tokens count (default cl100k_base)")
    parser.add_argument("--limit", type=int, help="take only so many chunks")
    parser.add_argument("--parallel", type=int, default=4, help="requests at once, default 4")
    parser.add_argument("--attempts", type=int, default=3, help="at each request, default 3")
    parser.add_argument("--estimate", action="store_true", help="say what it costs, send nothing")
    parser.add_argument(
        "--rate", type=float, default=0.4, help="part expected to be left, default 0.4"
    )
    parser.add_argument("--price-in", type=float, help="dollars for a million tokens sent")
    parser.add_argument("--price-out", type=float, help="dollars for a million tokens answered")


def _add_annotate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Label each word of the originals that stands in the compressed text (LLMLingua-2, "
        "section 3.2), and print how far that worked."
    )
    parser.add_argument(
        "--data", required=True, metavar="FILE", help="pairs: JSON lines of origin and compressed"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON lines of labels")
    parser.add_argument(
        "--window",
        type=int,
        default=150,
        help="words and marks to look at on each side, default 150",
    )
    parser.add_argument(
        "--similarity",
        type=float,
        default=0.85,
        help="from which on another word will do, default 0.85; 1 for none",
    )
    parser.add_argument("--stemmer", default="english", help="Snowball algorithm, default english")


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Leave out the texts with the highest variation rate (words that the model made up), and "
        "of the others those with the highest alignment gap (LLMLingua-2, section 3.3)."
    )
    parser.add_argument("--data", required=True, metavar="FILE", help="what annotate wrote")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON lines of labels")
    parser.add_argument(
        "--variation", type=float, default=0.05, help="part to leave out, default 0.05"
    )
    parser.add_argument("--gap", type=float, default=0.1, help="part to leave out, default 0.1")


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a token classifier on labelled words, keep the epoch that is best on documents "
        "that it was not trained on, and measure it on others. A stopped run goes on when it is "
        "started again."
    )
    parser.add_argument(
        "--data", required=True, metavar="FILE", help="what filter or annotate wrote"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the model is saved")
    parser.add_argument(
        "--model",
        help="hub id or folder of a token classifier or an encoder (default: all-MiniLM-L6-v2)",
    )
    parser.add_argument("--epochs", type=int, default=10, help="default 10")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="default 0.00005")
    parser.add_argument("--batch-size", type=int, default=10, help="default 10")
    parser.add_argument(
        "--held-out", type=float, default=0.2, help="part never trained on, default 0.2"
    )
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--device", help="default: the best there is")


def run(options: argparse.Namespace) -> None:
    """Take one step of the recipe."""
    {"collect": _collect, "annotate": _annotate, "filter": _filter, "fit": _fit}[options.step](
        options
    )


def _collect(options: argparse.Namespace) -> None:
    """Print what it costs, and ask a model unless only that was wanted."""
    from ...core.training.llmlingua2 import collect, requests
    from ...core.training.llmlingua2.documents import read_documents

    if not (options.estimate or options.model or options.own_model):
        raise InputError("collect needs --model or --own-model, or --estimate to send nothing")
    instruction = _instruction(options.instruction) if options.instruction else requests.INSTRUCTION
    chunks = requests.chunk(
        read_documents(options.data, options.field),
        instruction=instruction,
        counter=options.counter,
        max_tokens=options.max_tokens,
    )[: options.limit]
    missing = collect.still_to_ask(chunks, options.out)
    cost = requests.estimate(
        missing,
        instruction=instruction,
        counter=options.counter,
        rate=options.rate,
        price_in=options.price_in,
        price_out=options.price_out,
    )
    print(f"{cost}; {len(chunks) - len(missing):,} are there already", flush=True)
    if options.estimate:
        return
    result = collect.collect(
        chunks,
        _answerer(options),
        options.out,
        instruction=instruction,
        parallel=options.parallel,
        attempts=options.attempts,
        progress=True,
    )
    print(f"{result}\nsaved in {options.out}")


def _instruction(file: str) -> Any:
    from ...core.training.llmlingua2.requests import Instruction

    try:
        given = json.loads(Path(file).read_text(encoding="utf-8"))
        return Instruction(str(given["system"]), str(given["user"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: expected a JSON object with system, and user with {{text}} in it: {error}"
        ) from error


def _answerer(options: argparse.Namespace) -> Callable[[str, str], str]:
    """A LangChain chat model as a function from two messages to a text."""
    model = _own(options.own_model) if options.own_model else _named(options)

    def answer(system: str, user: str) -> str:
        return str(model.invoke([("system", system), ("user", user)]).text)

    return answer


def _named(options: argparse.Namespace) -> Any:
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        raise MissingExtraError("collect --model", "agents") from error
    try:
        return init_chat_model(options.model, temperature=options.temperature)
    except Exception as error:
        raise ModelError(
            f"LangChain makes no chat model of {options.model!r}: {error}; it must be "
            f"provider:name, with the provider's package and key"
        ) from error


def _own(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            f"cannot import {name!r}: {error}; it must be module:name, and the module's folder in "
            f"PYTHONPATH"
        ) from error
    model = found() if callable(found) and not hasattr(found, "invoke") else found
    if not hasattr(model, "invoke"):
        raise ModelError(f"{name} is no LangChain chat model and makes none: it has no invoke")
    return model


def _annotate(options: argparse.Namespace) -> None:
    """Label words, and print the rates."""
    from tqdm import tqdm

    from ...core.training.llmlingua2.annotate import annotate, write_labelled
    from ...core.training.llmlingua2.collect import read_pairs
    from ...core.training.llmlingua2.quality import quantiles

    how = {
        "window": options.window,
        "similarity": options.similarity,
        "stemmer": options.stemmer,
    }
    pairs = read_pairs(options.data)
    labelled = [annotate(pair, **how) for pair in tqdm(pairs, unit="text", disable=None)]
    print(quantiles(labelled))
    write_labelled(options.out, labelled)
    print(f"saved in {options.out}")


def _filter(options: argparse.Namespace) -> None:
    """Leave out the worst, and print how many and why."""
    from ...core.training.llmlingua2.annotate import read_labelled, write_labelled
    from ...core.training.llmlingua2.quality import quantiles, select

    labelled = read_labelled(options.data)
    print(quantiles(labelled))
    chosen = select(labelled, variation=options.variation, gap=options.gap)
    write_labelled(options.out, chosen.kept)
    print(f"{chosen}\nsaved in {options.out}")


def _fit(options: argparse.Namespace) -> None:
    """Train a token classifier, and print what it is worth."""
    from ...core.training.llmlingua2.annotate import read_labelled
    from ...core.training.llmlingua2.fit import fit

    result = fit(
        read_labelled(options.data),
        options.out,
        model=options.model,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        held_out=options.held_out,
        seed=options.seed,
        device=options.device,
    )
    print(f"{result}\nsaved in {options.out}")
