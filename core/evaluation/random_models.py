"""Small Hugging Face models with random weights and trained tokenizers, made offline.

What such a model says means nothing, but it says it through the real code of its architecture
and tokenizer: tests compare implementations on it, and benchmarks time them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import MissingExtraError, ModelError

__all__ = ["Kind", "build_model"]

Kind = Literal["gpt2", "llama", "qwen", "bert", "xlm-roberta", "modernbert"]
"""The first three are causal language models, the others classify tokens with two labels."""


def build_model(
    kind: Kind,
    folder: str | Path,
    texts: Iterable[str],
    *,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    vocabulary: int = 2000,
    positions: int = 512,
    seed: int = 0,
    std: float = 0.15,
) -> Path:
    """Save a model that the Auto classes of transformers load; same arguments, same files.

    Parameters
    ----------
    kind
        The architecture, with a tokenizer of the kind that is used with it: byte-level BPE
        for ``"gpt2"``, ``"qwen"`` and ``"modernbert"``, BPE with byte fallback for ``"llama"``,
        cased WordPiece for ``"bert"``, Unigram for ``"xlm-roberta"``.
    folder
        Where to save it; made if missing, its files of the same names replaced.
    texts
        What the tokenizer learns its pieces from.
    layers, width, heads
        Size of the transformer.
    vocabulary
        The most pieces to learn, and the rows of the embedding even if the texts yield fewer.
        Bytes, special tokens and the characters of the texts are never left out.
    positions
        Tokens that the model can read at once.
    seed
        Seed of the weights. The global random generators are left as they are.
    std
        Standard deviation of weights and biases. Norms keep their scale of 1.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    MissingExtraError
        torch or transformers is not installed.
    ModelError
        There is no such kind.
    """
    try:
        import torch
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise MissingExtraError("a random model", "torch") from error
    if kind not in get_args(Kind):
        raise ModelError(f"no kind {kind!r} of model; there are {', '.join(get_args(Kind))}")
    folder = Path(folder)
    learn, special = _TOKENIZERS[kind]
    make_tokenizer: Any = PreTrainedTokenizerFast
    tokenizer = make_tokenizer(
        tokenizer_object=learn(list(texts), vocabulary, list(dict.fromkeys(special.values()))),
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
        # GPT-2 would add the embedding of a token type.
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )
    tokenizer.save_pretrained(folder)
    _name_tokenizer_class(folder / "tokenizer_config.json")
    rows = max(vocabulary, len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        model = _model(kind, tokenizer, rows, layers, width, heads, positions)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=std, generator=generator)
    model.save_pretrained(folder)
    return folder


def _model(
    kind: Kind, tokenizer: Any, rows: int, layers: int, width: int, heads: int, positions: int
) -> Any:
    import transformers as hf

    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if kind == "gpt2":
        return hf.GPT2LMHeadModel(
            hf.GPT2Config(
                vocab_size=rows,
                n_positions=positions,
                n_embd=width,
                n_layer=layers,
                n_head=heads,
                **ids,
            )
        )
    size = {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
        **ids,
    }
    if kind == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**size))
    if kind == "qwen":
        return hf.Qwen3ForCausalLM(
            hf.Qwen3Config(**size, num_key_value_heads=heads, head_dim=width // heads)
        )
    if kind == "bert":
        return hf.BertForTokenClassification(hf.BertConfig(**size))
    if kind == "xlm-roberta":
        # Positions are counted from the id of the padding, 1, on.
        size["max_position_embeddings"] += 2
        return hf.XLMRobertaForTokenClassification(hf.XLMRobertaConfig(**size, type_vocab_size=1))
    return hf.ModernBertForTokenClassification(
        hf.ModernBertConfig(
            **size,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
        )
    )


def _name_tokenizer_class(file: Path) -> None:
    """Name the class that every version of transformers knows, not the newest one's own."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _learn_bpe(
    texts: Sequence[str], size: int, normalizer: Any, pre_tokenizer: Any, alphabet: Sequence[str]
) -> Any:
    """Learn BPE pieces.

    The trainers for WordPiece and Unigram give another result each time, this one does not, so
    that those vocabularies are made of its pieces.
    """
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=max(0, size), initial_alphabet=list(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _in_order(tokenizer: Any) -> list[str]:
    """Pieces as they were learned: characters, then merges."""
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _with_pieces(tokenizer: Any, pieces: Iterable[str], **settings: Any) -> Any:
    """Keep the merges and number the pieces anew."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.to_str())
    state["model"].update(vocab={piece: i for i, piece in enumerate(pieces)}, **settings)
    return Tokenizer.from_str(json.dumps(state))


def _byte_level(
    texts: Sequence[str],
    size: int,
    special: Sequence[str],
    normalizer: Any = None,
    pattern: str | None = None,
) -> Any:
    from tokenizers import Regex, decoders, pre_tokenizers, processors

    pre_tokenizer: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizer])
    # The alphabet comes in no order.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learnt = _learn_bpe(texts, size - len(special), normalizer, pre_tokenizer, alphabet)
    tokenizer = _with_pieces(learnt, [*_in_order(learnt), *special])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _qwen(texts: Sequence[str], size: int, special: Sequence[str]) -> Any:
    from tokenizers import normalizers

    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return _byte_level(texts, size, special, normalizers.NFC(), pattern)


def _modernbert(texts: Sequence[str], size: int, special: Sequence[str]) -> Any:
    from tokenizers import normalizers

    tokenizer = _byte_level(texts, size, special, normalizers.NFC())
    tokenizer.post_processor = _template(tokenizer, "[CLS]", "[SEP]")
    return tokenizer


def _llama(texts: Sequence[str], size: int, special: Sequence[str]) -> Any:
    from tokenizers import decoders, pre_tokenizers

    # Byte 10 of the newline has the id 13 as in Llama, and stands in no other piece.
    head = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    lines = [line for text in texts for line in text.splitlines()]
    mark = pre_tokenizers.Metaspace(prepend_scheme="first")
    learnt = _learn_bpe(lines, size - len(head), None, mark, ())
    tokenizer = _with_pieces(
        learnt,
        dict.fromkeys([*head, *_in_order(learnt)]),
        unk_token="<unk>",  # noqa: S106
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = _template(tokenizer, "<s>")
    return tokenizer


def _wordpiece(texts: Sequence[str], size: int, special: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=False)
    words = pre_tokenizers.BertPreTokenizer()
    marked = pre_tokenizers.Sequence([words, pre_tokenizers.Metaspace()])
    learnt = _in_order(_learn_bpe(texts, size, normalizer, marked, ()))
    characters = [piece for piece in learnt if len(piece) == 1]
    pieces = dict.fromkeys([*special, *characters, *(f"##{c}" for c in characters)])
    for piece in learnt:
        if len(pieces) < size:
            pieces[piece[1:] if piece.startswith("▁") and len(piece) > 1 else f"##{piece}"] = None
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = _template(tokenizer, "[CLS]", "[SEP]")
    return tokenizer


def _unigram(texts: Sequence[str], size: int, special: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    normalizer = normalizers.NFKC()
    marked = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    learnt = _learn_bpe(texts, size - len(special), normalizer, marked, ())
    counts = Counter(piece for text in texts for piece in learnt.encode(text).tokens)
    # A piece that only ever is part of a longer one counts as seen half a time.
    total = max(1, counts.total())
    scored = [(piece, math.log((counts[piece] or 0.5) / total)) for piece in _in_order(learnt)]
    *first, mask = special
    vocabulary = [*((piece, 0.0) for piece in first), *scored, (mask, 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=first.index("<unk>")))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = marked
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = _template(tokenizer, "<s>", "</s>")
    return tokenizer


def _template(tokenizer: Any, start: str, end: str = "") -> Any:
    """Put special tokens around a text."""
    from tokenizers import processors

    return processors.TemplateProcessing(
        single=f"{start} $A {end}".split(),
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end) if token],
    )


_BERT = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_XLM_ROBERTA = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}
_END = "<|endoftext|>"
_TOKENIZERS: dict[str, tuple[Any, dict[str, str]]] = {
    "gpt2": (_byte_level, {"bos_token": _END, "eos_token": _END, "unk_token": _END}),
    "llama": (_llama, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}),
    "qwen": (_qwen, {"eos_token": "<|im_end|>", "pad_token": _END}),
    "bert": (_wordpiece, _BERT),
    "xlm-roberta": (_unigram, _XLM_ROBERTA),
    "modernbert": (_modernbert, _BERT),
}
"""How to learn each tokenizer, and its special tokens in the order of their ids."""
