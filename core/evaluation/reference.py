"""The published implementations, to compare with: their scores, their texts, their speed.

`reference_compressor` runs llmlingua 0.2 on a model in a local folder, without the network and
without what it does to the process around it. `SelectiveContextReference` does what Selective
Context's published code does, one sentence at a time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..budget import TokenCounter
from ..errors import InputError, MissingExtraError, ModelError

__all__ = [
    "SelectiveContextReference",
    "reference_compressor",
    "reference_word_probabilities",
]

_LLMLINGUA2_NAMES = {
    "bert": "bert-base-multilingual-cased",
    "xlm-roberta": "xlm-roberta-large",
}
"""What llmlingua looks for in a model's name to learn how its tokens make words."""


def reference_compressor(folder: str | Path, *, llmlingua2: bool = False) -> Any:
    """Make an llmlingua ``PromptCompressor`` on the CPU.

    Its results are those of llmlingua, defects included. Random generators, torch's settings and
    the environment are as before afterwards and after each of its compressions; only what its
    dependencies set when they are first imported stays.

    Parameters
    ----------
    folder
        A model with safetensors weights: a causal one for LLMLingua and LongLLMLingua; mBERT or
        XLM-RoBERTa with two token labels for LLMLingua-2. The folder's name does not matter.
    llmlingua2
        Whether it is to be LLMLingua-2.

    Raises
    ------
    MissingExtraError
        llmlingua is not installed.
    ModelError
        There is no such folder, or llmlingua cannot use its model in this way.
    """
    folder = Path(folder)
    name = _llmlingua_name(folder, llmlingua2)
    try:
        with _process_restored():
            from llmlingua import PromptCompressor
            from transformers import DynamicCache
    except ImportError as error:
        raise MissingExtraError("llmlingua's own compressor", "bench") from error
    # llmlingua asks tiktoken for this encoding, and gets the one that is loaded already.
    TokenCounter.of("cl100k_base")
    with _process_restored():
        compressor = PromptCompressor(
            str(folder),
            device_map="cpu",
            model_config={"trust_remote_code": False, "use_safetensors": True},
            use_llmlingua2=llmlingua2,
        )
    _find_sentence_model()
    compressor.model_name = name
    compressor.model.eval()
    if llmlingua2:
        compress = compressor.compress_prompt_llmlingua2
        compressor.compress_prompt_llmlingua2 = _process_restored()(compress)
    elif not hasattr(DynamicCache, "from_legacy_cache"):
        compressor.model = _TakesListsAsCache(compressor.model)
    return compressor


def reference_word_probabilities(
    compressor: Any, text: str, **options: Any
) -> list[list[tuple[str, float]]]:
    """What llmlingua's LLMLingua-2 thinks of each word.

    Parameters
    ----------
    compressor
        A `reference_compressor` for LLMLingua-2.
    text
        One text that is not blank.
    **options
        For ``compress_prompt_llmlingua2``: ``force_tokens``, ``force_reserve_digit``,
        ``token_to_word``, ``chunk_end_tokens``.

    Returns
    -------
    list of list of (str, float)
        For each chunk, its words as llmlingua merges them (XLM-RoBERTa's with their ``▁``) and
        the probability, 0 to 1, that each is to be kept, before consecutive ones are dropped.
    """
    words: list[list[str]] = []
    probabilities: list[list[float]] = []

    def merge(*args: Any, **kwargs: Any) -> Any:
        result = real_merge(*args, **kwargs)
        words.append(list(result[0]))  # a copy, for llmlingua strips them later
        return result

    def average(*args: Any, **kwargs: Any) -> Any:
        result = real_average(*args, **kwargs)
        probabilities.append([float(probability) for probability in result])
        return result

    private = "_PromptCompressor__"
    watched = {"merge_token_to_word": merge, "token_prob_to_word_prob": average}
    real_merge, real_average = (getattr(compressor, private + name) for name in watched)
    try:
        for name, function in watched.items():
            setattr(compressor, private + name, function)
        compressor.compress_prompt_llmlingua2([text], rate=0.5, **options)
    finally:
        for name in watched:
            delattr(compressor, private + name)
    return [list(zip(*chunk, strict=True)) for chunk in zip(words, probabilities, strict=True)]


class SelectiveContextReference:
    """Selective Context as published, on a causal model: a forward pass for each sentence.

    Its phrases need a parser of their own and are left out.

    Parameters
    ----------
    folder
        A model with safetensors weights whose tokenizer has a token for the beginning.

    Raises
    ------
    MissingExtraError
        torch or transformers is not installed.
    ModelError
        There is no such folder, or no token for the beginning.
    """

    def __init__(self, folder: str | Path) -> None:
        _config(Path(folder))
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise MissingExtraError("Selective Context", "torch") from error
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        model: Any = AutoModelForCausalLM.from_pretrained(str(folder), use_safetensors=True)
        self.model = model.eval()
        if self.tokenizer.bos_token is None:
            raise ModelError(f"the tokenizer in {folder} has no token for the beginning")

    def sentences(self, text: str) -> list[str]:
        """Cut a text behind full stops and question marks, its white space made single spaces."""
        cut = re.split(
            r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=\.|\?)\s", re.sub(r"\s+", " ", text).strip()
        )
        return [sentence.strip() for sentence in cut if sentence.strip()]

    def self_information(self, text: str) -> list[list[tuple[str, float]]]:
        """Tokens of each sentence with their self-information in nats.

        A sentence longer than the model reads fails, as it does in the published code.
        """
        import torch

        result = []
        for sentence in self.sentences(text):
            tokens = self.tokenizer(
                self.tokenizer.bos_token + sentence, add_special_tokens=False, return_tensors="pt"
            )
            with torch.no_grad():
                logits = self.model(**tokens).logits[0]
            information = -torch.log(torch.softmax(logits, dim=-1))
            ids = tokens["input_ids"][0].tolist()
            result.append(
                [
                    (self.tokenizer.decode([token]), float(information[place, token]))
                    for place, token in enumerate(ids[1:])
                ]
            )
        return result

    def compress(
        self,
        text: str,
        *,
        reduce_ratio: float = 0.35,
        level: Literal["sentence", "token"] = "token",
    ) -> str:
        """Drop the part `reduce_ratio` of the units that say least.

        Raises
        ------
        InputError
            There is no such level.
        """
        if level not in ("sentence", "token"):
            raise InputError(f"level is 'sentence' or 'token', got {level!r}")
        scored = self.self_information(text)
        if level == "token":
            units = [pair for sentence in scored for pair in sentence]
        else:
            units = [
                (sentence, float(np.mean([value for _, value in pairs])))
                for sentence, pairs in zip(self.sentences(text), scored, strict=True)
            ]
        if not units:
            return ""
        threshold = np.nanpercentile([value for _, value in units], 100 * reduce_ratio)
        kept = ["" if value < threshold else unit for unit, value in units]
        return ("" if level == "token" else " ").join(kept)


class _TakesListsAsCache:
    """A causal model whose cache goes in and comes out as a list of [keys, values], by layer.

    llmlingua cuts the tensors of that list, which transformers no longer takes since 5.0.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, input_ids: Any, *, past_key_values: Any = None, **options: Any) -> Any:
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        if past_key_values is not None:
            for layer, (keys, values) in enumerate(past_key_values):
                cache.update(keys, values, layer)
        output = self._model(input_ids, past_key_values=cache, **options)
        output.past_key_values = [[layer.keys, layer.values] for layer in cache.layers]
        return output


def _config(folder: Path) -> dict[str, Any]:
    """The model's configuration, read so that a wrong name is not looked up on the hub."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} is no folder with a model: {error}") from error
    return config


def _llmlingua_name(folder: Path, llmlingua2: bool) -> str:
    """The name under which llmlingua can use the model."""
    config = _config(folder)
    labels_tokens = any("ForTokenClassification" in a for a in config.get("architectures") or ())
    if not llmlingua2:
        if labels_tokens:
            raise ModelError(f"{folder} holds a token classifier, expected a causal model")
        return str(folder)
    kind = config.get("model_type", "")
    if not labels_tokens or kind not in _LLMLINGUA2_NAMES:
        raise ModelError(
            f"{folder} holds a model of type {kind!r}; llmlingua runs LLMLingua-2 only on token "
            f"classifiers of type {' or '.join(_LLMLINGUA2_NAMES)}"
        )
    return _LLMLINGUA2_NAMES[kind]


def _find_sentence_model() -> None:
    """Let nltk see the Punkt data that comes with llama-index, for want of its own."""
    import nltk

    spec = importlib.util.find_spec("llama_index")
    for parent in (spec.submodule_search_locations or []) if spec else []:
        folder = str(Path(parent) / "core" / "_static" / "nltk_cache")
        if folder not in nltk.data.path:
            nltk.data.path.append(folder)


@contextlib.contextmanager
def _process_restored() -> Iterator[None]:
    """Undo what llmlingua does to random generators, environment and torch's settings."""
    import torch

    hash_seed = os.environ.get("PYTHONHASHSEED")
    generators = random.getstate(), np.random.get_state()
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = flags
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        if hash_seed is not None:
            os.environ["PYTHONHASHSEED"] = hash_seed
        else:
            os.environ.pop("PYTHONHASHSEED", None)
