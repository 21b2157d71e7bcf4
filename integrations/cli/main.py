"""The commands and their options; what they do is in the module of that name."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module, metadata

from ...core.errors import LaconicError
from . import lab
from .train_llmlingua2 import add_parsers as add_llmlingua2_parsers

__all__ = ["main"]

EXIT_ERROR = 1
"""Exit code when a command could not do what was asked; argparse exits with 2 on bad usage."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments
        The words after ``laconic``; None for those of this process.

    Returns
    -------
    int
        0 when it went well, 1 when it did not and said why.
    """
    options = _parser().parse_args(arguments)
    if options.verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        run: Callable[[argparse.Namespace], None] = import_module(
            f".{options.command}", __package__
        ).run
        run(options)
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (LaconicError, OSError) as error:
        print(f"laconic {options.command}: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="laconic", description="Make LLM applications pay for fewer tokens."
    )
    parser.add_argument(
        "--version", action="version", version=f"laconic {metadata.version('laconic')}"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log each compression")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_compress(commands.add_parser("compress", help="compress files or standard input"))
    _add_bench(commands.add_parser("bench", help="measure methods on questions with answers"))
    _add_train(commands.add_parser("train", help="train the models that methods judge with"))
    _add_chat(commands.add_parser("chat", help="talk with a local model in a cache of fixed size"))
    _add_demo(commands.add_parser("demo", help="compress what a retriever finds, on real text"))
    return parser


def _add_compress(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compress text, Markdown or JSON lines. Each file is a document; so is each line of a "
        "file that ends in .jsonl, which is an object with a key 'text', and optionally 'id' and "
        "others that are carried through."
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="default, and '-': standard input")
    parser.add_argument("-q", "--query", help="what the text is wanted for")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("-r", "--rate", type=float, help="fraction of tokens to keep (default 0.5)")
    size.add_argument("-t", "--tokens", type=int, help="tokens to keep at most")
    parser.add_argument("-m", "--method", default="auto", help="default: auto, the best that runs")
    parser.add_argument("--keep", action="append", default=[], help="text that must survive")
    parser.add_argument(
        "--per-document", action="store_true", help="the budget holds for each document alone"
    )
    parser.add_argument("--counter", help="tokenizer whose tokens count, e.g. o200k_base")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object a kept document, with spans"
    )
    parser.add_argument("--jsonl", action="store_true", help="standard input is JSON lines")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure how often the answer survives (retention), tokens per second (speed), what "
        "numbers, names and negations are left (survival), or what of injected instructions "
        "(injection), what a bounded KV cache costs (memory), what learned memories take (latent), "
        "what memories recall (lab, recall), or whether many at once stay whole (soak)."
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=(
            *("retention", "speed", "encoding", "reference", "rates", "survival", "injection"),
            *("memory", "latent", "lab", "recall", "soak"),
        ),
        default="retention",
        metavar="WHAT",
        help="retention (default), speed, encoding: time beside one pass of the encoder, "
        "reference: time and memory beside llmlingua and "
        "Selective Context as published, with the same random weights, rates: tokens kept "
        "beside tokens asked for, at any length, survival: numbers, names, negations and modals "
        "left with and without guards, injection: instructions in texts of strangers, left whole, "
        "in part or not at all, memory: time, bytes and errors of bounded "
        "KV caches beside one that grows, latent: bytes and training time of learned memories, "
        "lab: what caches and learned memories recall on the study model, "
        "recall: what a text memory finds "
        "again in LoCoMo's conversations, or soak: many text memories at once, killed again and "
        "again",
    )
    parser.add_argument(
        "--data",
        default=[],
        nargs="+",
        metavar="FILE",
        help="JSON lines: question, answers, documents; see laconic.core.evaluation.datasets; "
        "all but memory, latent, lab, recall and soak need some",
    )
    parser.add_argument(
        "--methods",
        help="comma-separated, A+B for a pipeline; the first is tested against each of the others "
        "(default lexical,truncate,random,lead; for lab all learned memories)",
    )
    parser.add_argument("--rates", default=".5,.25,.1,.05", help="comma-separated")
    parser.add_argument(
        "--held-out",
        type=float,
        metavar="PART",
        help="retention: only questions about documents that `laconic train pruner --held-out "
        "PART` never trains on",
    )
    parser.add_argument(
        "--no-question",
        action="store_true",
        help="retention: do not tell the methods what will be asked",
    )
    parser.add_argument(
        "--headroom",
        type=float,
        default=3.0,
        help="how many times the budget the first method of a pipeline leaves, default 3",
    )
    parser.add_argument("--limit", type=int, help="take only so many examples of a file")
    parser.add_argument("--counter", help="tokenizer whose tokens count (default cl100k_base)")
    parser.add_argument(
        "--out", metavar="FOLDER", help="save tables, figures and plots there; lab: adapters"
    )
    parser.add_argument(
        "--model",
        help="hub id or folder; memory: of a language model (default: random weights), survival: "
        "of the token classifier of llmlingua2, retention: of the pruner's adapter, lab: what "
        "`laconic train lab` saved, comma-separated folders",
    )
    parser.add_argument(
        "--keep",
        metavar="KINDS",
        help="survival: what guards keep, comma-separated kinds of laconic.core.guards.must_keep "
        "(default numbers,names,negations,modals)",
    )
    parser.add_argument(
        "--tables",
        default="pots,ablations,noise",
        help=f"lab: comma-separated, of {', '.join(lab.TABLES)}; the last two teach memories "
        "first, some 15 minutes for each, and keep them in --out (default: the others)",
    )
    parser.add_argument("--policies", help="memory: comma-separated (default: all there are)")


def _add_train(parser: argparse.ArgumentParser) -> None:
    recipes = parser.add_subparsers(dest="recipe", required=True, metavar="RECIPE")
    align = recipes.add_parser(
        "align", help="tune a small language model on what the target model writes"
    )
    align.description = (
        "Distribution alignment (LLMLingua, section 4.3): tune a causal language model with LoRA "
        "on instructions and a target model's outputs, and print how much better it expects "
        "outputs that it was not trained on. A stopped run goes on when it is started again."
    )
    align.add_argument("--model", required=True, help="hub id or folder of the small model")
    align.add_argument("--data", required=True, metavar="FILE", help="JSON lines")
    align.add_argument("--out", required=True, metavar="FOLDER", help="where the model is saved")
    align.add_argument(
        "--prompt",
        default="instruction,input",
        metavar="KEYS",
        help="the keys whose texts make the prompt (default: instruction,input)",
    )
    align.add_argument("--output", default="output", metavar="KEY", help="default: output")
    align.add_argument("--epochs", type=float, default=3.0, help="default 3")
    align.add_argument("--rank", type=int, default=16, help="of the adapters, default 16")
    align.add_argument("--learning-rate", type=float, default=2e-4, help="default 0.0002")
    align.add_argument("--batch-size", type=int, default=8, help="default 8")
    align.add_argument("--max-tokens", type=int, default=512, help="of a pair, default 512")
    align.add_argument("--device", help="default: the best there is")
    _add_train_pruner(
        recipes.add_parser("pruner", help="teach an encoder which sentences answer a question")
    )
    add_llmlingua2_parsers(
        recipes.add_parser("llmlingua2", help="distil a word classifier from a large model")
    )
    _add_train_tagger(
        recipes.add_parser("tagger", help="teach an encoder which words people ask about")
    )
    lab.add_parser(
        recipes.add_parser("lab", help="train the small model that memories are studied on")
    )
    _add_train_ccm(
        recipes.add_parser("ccm", help="train an adapter that compresses a model's conversations")
    )


def _add_train_pruner(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Teach an encoder, by low-rank updates and two heads, which sentences answer a question. "
        "Half of all documents are never trained on; measure on those. A stopped run goes on "
        "when it is started again."
    )
    shape = "question, answers, documents"
    _add_adapter_options(parser, shape, steps=1500, windows=6, windows_help="of a question")
    parser.add_argument(
        "--extra",
        nargs="+",
        default=(),
        metavar="FILE",
        help="more such files, of which nothing is held out",
    )
    parser.add_argument("--questions", type=int, default=4, help="for each step, default 4")
    parser.add_argument(
        "--passages", type=int, default=20, help="of a question that may be read, default 20"
    )
    parser.add_argument(
        "--weighed-questions",
        type=int,
        default=40,
        help="of each file, that only teach how to weigh, default 40",
    )


def _add_train_tagger(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Teach an encoder, by low-rank updates and a head, which words of a text people ask "
        "about: answers, and what questions share with the sentences that answer them. Half of "
        "all documents are never trained on. A stopped run goes on when it is started again."
    )
    shape = "with several questions about a text: context, qas"
    _add_adapter_options(parser, shape, steps=400, windows=16, windows_help="for each step")
    parser.add_argument(
        "--least-questions", type=int, default=3, help="about a text that is read, default 3"
    )


def _add_adapter_options(
    parser: argparse.ArgumentParser, shape: str, *, steps: int, windows: int, windows_help: str
) -> None:
    """What every training of an adapter of the bundled encoder takes."""
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="FILE",
        help=f"JSON lines: {shape}; see laconic.core.evaluation.datasets",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the adapter is saved")
    parser.add_argument("--model", help="hub id or folder (default: all-MiniLM-L6-v2)")
    parser.add_argument("--steps", type=int, default=steps, help=f"default {steps}")
    parser.add_argument(
        "--windows", type=int, default=windows, help=f"{windows_help}, default {windows}"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="default 0.001")
    parser.add_argument("--joint", type=int, default=3, help="upper layers that learn, default 3")
    parser.add_argument("--rank", type=int, default=32, help="of the updates, default 32")
    parser.add_argument("--max-tokens", type=int, default=192, help="of a window, default 192")
    parser.add_argument(
        "--held-out", type=float, default=0.5, help="part never trained on, default 0.5"
    )
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--device", help="default: the best there is")


def _add_train_ccm(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compressed context memory (CCM): train a conditional LoRA and a few COMP tokens that "
        "turn each turn of a conversation into a few key/value entries. The model itself stays "
        "as it is. The defaults are the paper's. A stopped run goes on when it is started again."
    )
    parser.add_argument("--model", required=True, help="hub id or folder of the model")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="JSON lines: a list of turns, or an object with turns, input and output",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the adapter is saved")
    parser.add_argument(
        "--update", choices=("concat", "merge", "ema"), default="concat", help="default concat"
    )
    parser.add_argument("--comp-tokens", type=int, default=2, help="of a turn, default 2")
    parser.add_argument(
        "--alone", action="store_true", help="compress turns without seeing the memory"
    )
    parser.add_argument("--sink", type=int, default=0, help="first tokens that stay, default 0")
    parser.add_argument(
        "--positions",
        choices=("skip", "slots"),
        default="slots",
        help="skip as published, or slots (default), which do not grow with the conversation",
    )
    parser.add_argument("--steps", type=int, default=2000, help="default 2000")
    parser.add_argument("--batch-size", type=int, default=128, help="default 128")
    parser.add_argument(
        "--micro-batch", type=int, default=8, help="conversations in memory at once, default 8"
    )
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="default 0.0003")
    parser.add_argument("--rank", type=int, default=8, help="of the adapter, default 8")
    parser.add_argument("--alpha", type=float, default=16.0, help="of the adapter, default 16")
    parser.add_argument("--max-turn-tokens", type=int, default=256, help="default 256")
    parser.add_argument("--max-tokens", type=int, default=1024, help="of it all, default 1024")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument(
        "--checkpointing", action="store_true", help="compute activations twice to save memory"
    )
    parser.add_argument("--device", help="default: the best there is")


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Talk with a model of transformers on this machine. Its KV cache never holds more entries "
        "than the budget, however long the conversation: when it is full, a policy says what "
        "stays. Each line of standard input is a turn, or a command such as /help."
    )
    parser.add_argument("--model", required=True, help="hub id or folder of a language model")
    parser.add_argument(
        "--memory",
        default="infinipot",
        metavar="POLICY",
        help="what stays when the cache is full: a key of laconic.memory.kv.POLICIES "
        "(default infinipot)",
    )
    parser.add_argument(
        "--adapter",
        metavar="FOLDER",
        help="what `laconic train ccm` saved: turns are compressed (CCM), and no policy is needed",
    )
    parser.add_argument(
        "--budget", type=int, default=1024, help="entries that a layer may hold (default 1024)"
    )
    parser.add_argument(
        "--keep", type=float, default=0.5, help="part that stays when it is full (default 0.5)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, help="of an answer (default 256)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="default 0: the likeliest token"
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="a system message, read before the first turn"
    )
    parser.add_argument("--load", metavar="FILE", help="go on from what /save wrote")
    parser.add_argument("--device", help="default: the best there is")
    parser.add_argument("--dtype", help="default: that of the weights, on a CPU float32")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Index the Python language reference with FAISS and the bundled encoder, ask questions "
        "through a LangChain retriever and a LlamaIndex query engine, and show what is kept."
    )
    parser.add_argument("question", nargs="*", help="ask this instead of the prepared questions")
    parser.add_argument("-r", "--rate", type=float, default=0.25, help="default 0.25")
    parser.add_argument("-m", "--method", default="auto", help="default: auto, the best that runs")
    parser.add_argument(
        "--price", type=float, default=2.5, help="dollars for a million input tokens"
    )
