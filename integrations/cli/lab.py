"""`laconic train lab` and `laconic bench lab`: the study model, and what memories do for it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...core.errors import InputError, ModelError

__all__ = ["TABLES", "add_parser", "bench", "train"]

_LONGEST = 1024
"""Tokens; the study model has learnt from conversations of up to 36 turns of 28 on average."""

_ACCEPTED = 0.98
"""The part of facts that a model must find in its whole context to be studied."""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laconic train lab`."""
    parser.description = (
        "Train the study model from scratch, a Llama of a million parameters that looks up facts "
        "in its context, and CCM adapters for it. A stopped run goes on when it is started again."
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where all is saved")
    parser.add_argument("--steps", type=int, default=4000, help="of the model, default 4000")
    parser.add_argument(
        "--adapter-steps", type=int, default=1500, help="of each adapter, default 1500"
    )
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--device", help="default: the CPU")


def train(options: argparse.Namespace) -> None:
    """Train the model, and adapters if it is good enough."""
    from ...memory.evaluation.steps import MEMORIES, RECIPE, study, taught
    from ...memory.training.facts import Facts
    from ...memory.training.lab import BASE, LabRecipe, train_lab

    out, task = Path(options.out), Facts()
    if not (out / BASE / "config.json").exists():
        recipe = LabRecipe(steps=options.steps, seed=options.seed, bf16=options.bf16)
        print(train_lab(out / BASE, recipe, task, device=options.device, progress=True))
    model, tokenizer = _load(out, options.device)
    for turns, score in study(model, {}, task, turns=(16, 36)).scores["full"].items():
        print(f"{turns} turns, all in context: {score.interval} of {score.n} answers")
        if score.accuracy < _ACCEPTED:
            raise ModelError(
                f"a model that finds {score.accuracy:.1%} in its whole context is none to study "
                f"memories on; delete {out / BASE} and train it with more steps"
            )
    how = replace(RECIPE, steps=options.adapter_steps, seed=options.seed, bf16=options.bf16)
    for name, build in MEMORIES.items():
        folder = out / name.lower()
        memory: Any = taught(model, build, task, how, folder=folder, progress=True)
        memory.save_pretrained(folder, tokenizer)
        (folder / "checkpoint.pt").unlink()
        memory.adapter.detach_from_model()
        print(f"{name}: saved in {folder}")


def bench(options: argparse.Namespace) -> None:
    """Print the tables that were asked for, over all models that were given."""
    if not options.model:
        raise InputError("bench lab needs --model FOLDER: what `laconic train lab` saved")
    folders = [Path(folder) for folder in options.model.split(",")]
    tables = options.tables.split(",")
    if unknown := set(tables) - set(TABLES):
        raise InputError(f"no table {min(unknown)!r}; there are {', '.join(TABLES)}")
    for name in tables:
        TABLES[name](folders, options)


def _print_pots(folders: Sequence[Path], options: argparse.Namespace) -> None:
    """Recall by context length, of each policy and with each pot."""
    from ...memory.evaluation.pots import POTS

    for pot in (64, 128, 256):
        lengths = [pot * times for times in (1, 2, 4, 8, 16) if pot * times <= _LONGEST]
        _print_recall(f"{pot} entries", POTS, folders, pot, lengths, options.limit or 128)


def _print_ablations(folders: Sequence[Path], options: argparse.Namespace) -> None:
    """Recall of InfiniPot with a part left out."""
    from ...memory.evaluation.pots import ABLATIONS

    _print_recall("64 entries", ABLATIONS, folders, 64, (256, 1024), options.limit or 128)


def _print_noise(folders: Sequence[Path], options: argparse.Namespace) -> None:
    """Recall where filler is as surprising as facts, and where facts are overwritten."""
    from ...memory.evaluation.pots import POTS

    for title, kind in (
        ("a tenth of the filler is any token", {"noise": 0.1}),
        ("facts are overwritten", {"overwriting": True}),
    ):
        _print_recall(
            f"64 entries, {title}", POTS, folders, 64, (256, 1024), options.limit or 128, **kind
        )


def _print_recall(
    title: str,
    ways: Mapping[str, Any],
    folders: Sequence[Path],
    pot: int,
    lengths: Sequence[int],
    count: int,
    **kind: Any,
) -> None:
    """One row for each way of holding conversations, one column for each length."""
    from ...memory.evaluation.pots import Recalled, conversations, recall
    from ...memory.training.facts import Facts

    facts = pot // 16
    found: dict[str, list[Recalled]] = {}
    total = len(folders) * len(lengths) * len(ways)
    with tqdm(total=total, desc=title, disable=None) as bar:
        for length in lengths:
            pooled: dict[str, Recalled] = {}
            for seed, folder in enumerate(folders):
                drawn = conversations(Facts(), length, count=count, facts=facts, seed=seed, **kind)
                for one in recall(*_load(folder), ways, pot, drawn):
                    pooled[one.name] = one.beside(pooled.get(one.name))
                    bar.update()
            for name, one in pooled.items():
                found.setdefault(name, []).append(one)
    n = len(folders) * count
    print(f"{title}: {facts} facts, {len(folders)} models, {n} conversations of each length\n")
    print(f"| context held by | {' | '.join(f'{length:,} tokens' for length in lengths)} | bytes |")
    print(f"|---|{'--:|' * (len(lengths) + 1)}")
    for name, row in found.items():
        cells = " | ".join(str(one.interval) for one in row)
        print(f"| {name} | {cells} | {row[-1].nbytes:,} |")
    print(flush=True)


def _print_turns(folders: Sequence[Path], options: argparse.Namespace) -> None:
    """Recall of learned memories by how many turns they have compressed."""
    from ...memory.evaluation.steps import FAMILY, MEMORIES, RECIPE, Study, study, taught
    from ...memory.latent import CCM
    from ...memory.latent.base import LatentMemory
    from ...memory.training.facts import Facts

    pooled: Study | None = None
    for seed, folder in enumerate(folders):
        model, tokenizer = _load(folder)
        task, memories = Facts(), dict[str, LatentMemory]()
        for name in MEMORIES:
            memories[name] = CCM.from_pretrained(model, folder / name.lower(), tokenizer)
        for name in options.methods.split(",") if options.methods else ():
            recipe = replace(RECIPE, seed=seed)
            memories[name] = taught(model, FAMILY[name], task, recipe, progress=True)
        found = study(model, memories, task, held_out=options.limit or 1000, seed=seed)
        pooled = found.beside(pooled)
    print(pooled)


TABLES = {
    "pots": _print_pots,
    "ablations": _print_ablations,
    "noise": _print_noise,
    "turns": _print_turns,
}
"""What `laconic bench lab` prints."""


def _load(folder: Path, device: str | None = None) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ...memory.training.lab import BASE

    if not (folder / BASE / "config.json").is_file():
        raise ModelError(f"there is no {folder / BASE}; make it with `laconic train lab --out`")
    model = AutoModelForCausalLM.from_pretrained(folder / BASE, local_files_only=True)
    return model.float().eval().to(device or "cpu"), AutoTokenizer.from_pretrained(folder / BASE)
