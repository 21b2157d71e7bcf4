"""Distribution alignment: teach a small language model to expect what the target model writes.

Source: Jiang et al., "LLMLingua: Compressing Prompts for Accelerated Inference of Large
Language Models", EMNLP 2023, section 4.3. The small model is tuned on instructions and the
target's answers to them, so that its perplexities come closer to the target's; here with LoRA
(Hu et al., ICLR 2022), whose adapters are merged into the saved model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, MissingExtraError
from ..models.alignment import Tokens, tokenize
from ..models.causal_lm import CausalLM, start_token
from ..models.loading import load_transformer
from ..types import JOINER

__all__ = ["Alignment", "Pair", "align", "read_pairs"]

_IGNORED = -100
"""The label of a token that is not learnt, as PyTorch's cross-entropy has it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An instruction and what the target model wrote in answer to it."""

    prompt: str
    output: str


@dataclass(frozen=True, slots=True)
class Alignment:
    """How well the model expects what the target writes, on pairs it was not trained on.

    Attributes
    ----------
    before, after
        Mean NLL in nats of the tokens of each held-out output, given its prompt.
    trained
        Pairs it was trained on.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    trained: int


def read_pairs(
    file: str | Path,
    prompt_fields: Sequence[str] = ("instruction", "input"),
    output_field: str = "output",
) -> list[Pair]:
    """Read pairs from JSON lines.

    Parameters
    ----------
    file
        An object a line.
    prompt_fields
        The keys whose texts, those that are there and not blank, make the prompt, parted by
        blank lines. The defaults are those of the Alpaca data.
    output_field
        The key of what the target model wrote.

    Raises
    ------
    InputError
        A line is no such object. The message names the line.
    """
    pairs = []
    with Path(file).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                pairs.append(_pair(line, f"{file}:{number}", prompt_fields, output_field))
    return pairs


def _pair(line: str, place: str, prompt_fields: Sequence[str], output_field: str) -> Pair:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: no JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object, got {type(row).__name__}")
    texts = [row.get(field) or "" for field in (*prompt_fields, output_field)]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{place}: what stands under {', '.join(prompt_fields)} and {output_field} must be text"
        )
    *prompt, output = texts
    given = JOINER.join(text for text in prompt if text.strip())
    if not given or not output.strip():
        raise InputError(
            f"{place}: needs a text under one of {', '.join(prompt_fields)} and under "
            f"{output_field}; there are {', '.join(row)}"
        )
    return Pair(given, output)


def align(
    model: str | Path,
    pairs: Sequence[Pair],
    out: str | Path,
    *,
    epochs: float = 3.0,
    rank: int = 16,
    learning_rate: float = 2e-4,
    batch_size: int = 8,
    max_tokens: int = 512,
    held_out: float = 0.05,
    seed: int = 0,
    device: str | None = None,
    dtype: Any = None,
    trust_remote_code: bool = False,
) -> Alignment:
    """Tune a causal language model on a target model's outputs, and save it.

    The loss is the mean NLL of the outputs' tokens, those of the prompts are only read
    (section 4.3). A call that was stopped goes on from its last checkpoint, which lies in
    `out`, when it is made again.

    Parameters
    ----------
    model
        A hub id or a folder.
    pairs
        What to learn from; see `read_pairs`.
    out
        The folder to save the tuned model in, ready to be the ``model`` of `LLMLingua`.
    epochs
        Times that each pair is read.
    rank
        Rank of the adapters, which all linear layers but the last get.
    learning_rate
        The highest; it falls linearly to 0.
    batch_size
        Pairs for each step.
    max_tokens
        Tokens of a pair that are read: of a longer one the end of the prompt, in up to half of
        them, and the start of the output.
    held_out
        The part of the pairs, at least one, that only measures.
    seed
        Of the choice of those, the order of the others and the adapters.
    device, dtype, trust_remote_code
        As `CausalLM` takes them.

    Raises
    ------
    InputError
        There are fewer than two pairs, or `out` holds a model already.
    MissingExtraError
        peft is not installed.
    ModelError
        The model cannot be loaded.
    """
    out = Path(out)
    if (out / "config.json").exists():
        raise InputError(f"{out} holds a model already; take another folder")
    if len(pairs) < 2:
        raise InputError(f"alignment needs at least 2 pairs, got {len(pairs)}")
    try:
        import peft
        import transformers
    except ImportError as error:
        raise MissingExtraError("training", "training") from error
    settings = {
        "tokenizer": None,
        "device": device,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
    }
    lm, tokenizer = load_transformer(model, "CausalLM", settings)
    read = _read(tokenizer, pairs, min(max_tokens, CausalLM(lm, tokenizer=tokenizer).window) - 1)
    order = np.random.default_rng(seed).permutation(len(read)).tolist()
    measured = [read[i] for i in order[: max(1, round(held_out * len(read)))]]
    learnt = [read[i] for i in order[len(measured) :]]
    before = _mean_nll(lm, tokenizer, measured)
    transformers.set_seed(seed)
    adapted: Any = peft.get_peft_model(
        lm,
        peft.LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            # GPT-2 keeps its linear layers transposed.
            fan_in_fan_out=lm.config.model_type == "gpt2",
        ),
    )
    start = start_token(tokenizer)
    checkpoints = out / "checkpoints"
    trainer = transformers.Trainer(
        model=adapted,
        args=transformers.TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            per_device_train_batch_size=batch_size,
            save_steps=200,
            save_total_limit=1,
            logging_steps=50,
            seed=seed,
            report_to="none",
            use_cpu=lm.device.type == "cpu",
            remove_unused_columns=False,
        ),
        train_dataset=[
            ([*start, *prompt.ids.tolist(), *output.ids.tolist()], len(start) + len(prompt))
            for prompt, output in learnt
        ],
        data_collator=_collate,
    )
    trainer.train(resume_from_checkpoint=any(checkpoints.glob("checkpoint-*")))
    merged = adapted.merge_and_unload().eval()
    after = _mean_nll(merged, tokenizer, measured)
    merged.save_pretrained(out)
    tokenizer.save_pretrained(out)
    shutil.rmtree(checkpoints)
    return Alignment(before, after, len(learnt))


def _read(tokenizer: Any, pairs: Sequence[Pair], most: int) -> list[tuple[Tokens, Tokens]]:
    """The prompt and the output of each pair, with at most so many tokens together."""
    prompts = tokenize(tokenizer, [pair.prompt + JOINER for pair in pairs])
    outputs = tokenize(tokenizer, [pair.output for pair in pairs])
    read = []
    for prompt, given in zip(prompts, outputs, strict=True):
        output = given.between(0, most - min(len(prompt), most // 2))
        read.append((prompt.between(max(0, len(prompt) + len(output) - most), len(prompt)), output))
    return read


def _mean_nll(
    model: Any, tokenizer: Any, read: Sequence[tuple[Tokens, Tokens]]
) -> tuple[float, ...]:
    judge = CausalLM(model, tokenizer=tokenizer)
    prompts, outputs = zip(*read, strict=True)
    return tuple(float(nll.mean()) for nll in judge.nll(outputs, prompts))


def _collate(rows: Sequence[tuple[list[int], int]]) -> dict[str, Any]:
    """A batch of tokens, each row with the number of those that are not learnt."""
    import torch

    ids = torch.zeros((len(rows), max(len(row) for row, _ in rows)), dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, _IGNORED)
    for i, (row, given) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        labels[i, given : len(row)] = ids[i, given : len(row)]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
