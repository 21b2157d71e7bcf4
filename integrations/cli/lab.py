"""`laconic train lab` and `laconic bench lab`: the study model, and what memories do for it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ...core.errors import InputError, ModelError, UnknownMethodError
from ._models import load_model

if TYPE_CHECKING:
    from ...memory.latent.base import LatentMemory

__all__ = ["TABLES", "add_parser", "bench", "train"]

_LONGEST = 1024
"""Tokens; the study model has learnt from conversations of up to 36 turns of 28 on average."""

_JUDGED = 25
"""Conversations by which a model is judged."""

_ACCEPTED = 0.98
"""The part of facts that a model must find in its whole context to be studied."""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laconic train lab`."""
    parser.description = (
        "Train the study model from scratch, a Llama of a million parameters that looks up facts "
        "in its context. A stopped run goes on when it is started again."
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where it is saved")
    parser.add_argument("--steps", type=int, default=3000, help="default 3000")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--device", help="default: the CPU")


def train(options: argparse.Namespace) -> None:
    """Train the model, and say how much it finds in its whole context."""
    from ...memory.evaluation.pots import POTS, conversations, recall
    from ...memory.training.facts import Facts
    from ...memory.training.lab import LabRecipe, train_lab

    task = Facts()
    recipe = LabRecipe(steps=options.steps, seed=options.seed, bf16=options.bf16)
    print(train_lab(options.out, recipe, task, device=options.device, progress=True))
    drawn = conversations(task, _LONGEST, count=_JUDGED, facts=16, marked=True, followers=4)
    full = {"full cache": POTS["full cache"]}
    (found,) = recall(*_load(Path(options.out)), full, 64, drawn)
    print(f"{found.interval} of the facts in its whole context, {_JUDGED} conversations")
    if found.interval.value < _ACCEPTED:
        raise ModelError(
            f"a model that finds so little is none to study memories on; delete {options.out} and "
            f"train it with more steps"
        )
    print(f"saved in {options.out}")


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
        ("turns are marked", {"marked": True}),
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
    print(f"{title}: {facts} facts, {n} conversations of each length\n")
    print(f"| context held by | {' | '.join(f'{length:,} tokens' for length in lengths)} | bytes |")
    print(f"|---|{'--:|' * (len(lengths) + 1)}")
    for name, row in found.items():
        cells = " | ".join(str(one.interval) for one in row)
        print(f"| {name} | {cells} | {row[-1].nbytes:,} |")
    print(flush=True)


def _print_turns(folders: Sequence[Path], options: argparse.Namespace) -> None:
    """Recall of learned memories, by how many turns they have compressed."""
    from ...memory.evaluation.steps import FAMILY

    _print_learned(FAMILY, folders, options)


def _print_variants(folders: Sequence[Path], options: argparse.Namespace) -> None:
    """Recall of compressed context memory with one thing changed."""
    from ...memory.evaluation.steps import VARIANTS

    _print_learned(VARIANTS, folders, options)


def _print_learned(
    ways: Mapping[str, Any], folders: Sequence[Path], options: argparse.Namespace
) -> None:
    """Teach each memory on each model, if that was not done before, and print what they recall."""
    from ...memory.evaluation.steps import study
    from ...memory.latent import CCM
    from ...memory.training.facts import Facts

    chosen = options.methods.split(",") if options.methods else list(ways)
    if unknown := set(chosen) - set(ways):
        raise UnknownMethodError(f"no memory {min(unknown)!r}; there are {', '.join(ways)}")
    slugs = {name: "-".join(name.lower().split()) for name in chosen}
    missing = [f / slug for f in folders for slug in slugs.values() if not (f / slug).is_dir()]
    if missing and not options.out:
        raise InputError(
            f"there is no adapter in {missing[0]}, so one is taught first; --out FOLDER says where "
            f"it goes"
        )
    count, pooled = options.limit or 1000, None
    for seed, folder in enumerate(folders):
        model, tokenizer = _load(folder)
        memories: dict[str, LatentMemory] = {}
        for name, slug in slugs.items():
            if (folder / slug).is_dir():
                memories[name] = CCM.from_pretrained(model, folder / slug, tokenizer)
            else:
                out = Path(options.out) / folder.resolve().name / slug
                memories[name] = _taught(model, tokenizer, ways[name], out, seed)
        found = study(model, memories, Facts(), held_out=count, seed=seed)
        pooled = found.beside(pooled)
    models = f"{len(folders)} model{'s' if len(folders) > 1 else ''}"
    print(f"{models}, {count} conversations of each length on each\n\n{pooled}\n", flush=True)


def _taught(model: Any, tokenizer: Any, way: Any, out: Path, seed: int) -> LatentMemory:
    """A memory whose adapter is taught, and saved if there is a format for it."""
    from ...memory.evaluation.steps import RECIPE, taught
    from ...memory.latent import CCM

    memory = taught(model, way, replace(RECIPE, seed=seed), folder=out, progress=True)
    if type(memory) is CCM:
        memory.save_pretrained(out, tokenizer)
    return memory


TABLES = {
    "pots": _print_pots,
    "ablations": _print_ablations,
    "noise": _print_noise,
    "turns": _print_turns,
    "variants": _print_variants,
}
"""What `laconic bench lab` prints."""


def _load(folder: Path) -> tuple[Any, Any]:
    if not (folder / "config.json").is_file():
        raise ModelError(f"there is no model in {folder}; make one with `laconic train lab`")
    return load_model(str(folder), "cpu")
