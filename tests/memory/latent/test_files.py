from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from laconic.errors import StateError
from laconic.memory.latent import CCM, Spec
from laconic.memory.latent.files import read_official

from ..kv.conftest import make
from .conftest import adapter, conversation, model, recurrent

SPEC = Spec("merge", 2, sink=1, positions="slots")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[CCM, Path]:
    base = model("llama")
    ccm = CCM(base, SPEC, adapter(base))
    ccm.save_pretrained(tmp_path / "adapter")
    return ccm, tmp_path / "adapter"


def test_a_loaded_adapter_answers_bit_by_bit_as_the_saved_one(saved: tuple[CCM, Path]) -> None:
    ccm, folder = saved
    other = CCM.from_pretrained(model("llama"), folder)
    assert other.spec == SPEC
    assert (other.adapter.rank, other.adapter.alpha) == (4, 16)
    with torch.no_grad():
        assert torch.equal(recurrent(other, conversation()), recurrent(ccm, conversation()))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "2312.03414" in card
    assert "rank 4" in card
    assert not list(folder.glob(".*"))


def test_an_adapter_fits_its_model_in_other_precisions(saved: tuple[CCM, Path]) -> None:
    _, folder = saved
    for dtype in (torch.bfloat16, torch.float16):
        ccm = CCM.from_pretrained(model("llama").to(dtype), folder)
        assert recurrent(ccm, conversation()).dtype == dtype


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_reads_the_same_tensors(saved: tuple[CCM, Path]) -> None:
    peft = pytest.importorskip("peft")
    ccm, folder = saved
    with torch.no_grad():
        for a, b in ccm.adapter.tensors().values():
            assert a.abs().sum() > 0
            assert b.abs().sum() > 0
    read = peft.PeftModel.from_pretrained(make("llama"), folder)
    held = dict(read.named_parameters())
    for name, (a, b) in ccm.adapter.tensors().items():
        assert torch.equal(held[f"base_model.model.{name}.lora_A.default.weight"], a)
        assert torch.equal(held[f"base_model.model.{name}.lora_B.default.weight"], b)


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "ccm_config.json"
    header = json.loads(file.read_text())
    change(header)
    file.write_text(json.dumps(header))


def _truncate(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def _flip(folder: Path) -> None:
    file = folder / "comp_embeddings.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (_truncate, "damaged"),
    "one bit": (_flip, "damaged"),
    "no config": (lambda f: (f / "ccm_config.json").unlink(), "missing"),
    "config is no JSON": (lambda f: (f / "ccm_config.json").write_text("{"), "damaged"),
    "config is a list": (lambda f: (f / "ccm_config.json").write_text("[]"), "damaged"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "damaged"),
    "foreign": (lambda f: _rewrite(f, lambda h: h.pop("format")), "no CCM adapter"),
    "newer": (lambda f: _rewrite(f, lambda h: h.update(version=2)), "version 2"),
    "no spec": (lambda f: _rewrite(f, lambda h: h.pop("spec")), "damaged"),
    "bad spec": (lambda f: _rewrite(f, lambda h: h["spec"].update(sink=-1)), "damaged"),
    "odd spec": (lambda f: _rewrite(f, lambda h: h["spec"].update(rows=1)), "damaged"),
    "more COMP": (
        lambda f: _rewrite(f, lambda h: h["spec"].update(comp_tokens=3)),
        "2 COMP embeddings, and the memory needs 3",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_damaged_is_refused(
    saved: tuple[CCM, Path], damage: Callable[[Path], Any], message: str
) -> None:
    ccm, folder = saved
    damage(folder)
    with pytest.raises(StateError, match=message):
        CCM.from_pretrained(ccm.model, folder)


def test_an_adapter_of_another_model_is_refused(saved: tuple[CCM, Path]) -> None:
    _, folder = saved
    with pytest.raises(StateError, match="its class"):
        CCM.from_pretrained(model("qwen3"), folder)
    with pytest.raises(StateError, match="its shapes"):
        CCM.from_pretrained(make("llama", num_hidden_layers=2), folder)
    with pytest.raises(StateError, match="its embeddings"):
        CCM.from_pretrained(make("llama", vocab_size=130), folder)
    tuned = model("llama")
    with torch.no_grad():
        tuned.model.layers[1].self_attn.q_proj.weight.mul_(1.5)
    with pytest.raises(StateError, match="the weights differ"):
        CCM.from_pretrained(tuned, folder)


class _Tokenizer:
    def __init__(self, *words: str) -> None:
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}


def test_an_adapter_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    base = model("llama")
    CCM(base, SPEC, adapter(base)).save_pretrained(tmp_path, _Tokenizer("a", "b"))
    CCM.from_pretrained(base, tmp_path, _Tokenizer("a", "b"))
    with pytest.raises(StateError, match="another tokenizer"):
        CCM.from_pretrained(base, tmp_path, _Tokenizer("b", "a"))


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("update", ["concat", "merge"])
def test_official_adapters_are_read(tmp_path: Path, kind: str, update: Any) -> None:
    base = model("llama")
    lora = adapter(base)
    prefix = "base_model.model."
    comp = lora.comp_embeddings.detach()
    # Merged memories have embeddings of placeholders behind those of COMP tokens.
    comp = torch.cat([comp, comp + 1]) if update == "merge" else comp
    older = "gist_embeddings" if kind == "bin" else "comp_embeddings"
    tensors = {f"{prefix}model.embed_tokens.{older}.weight": comp}
    for name, (a, b) in lora.tensors().items():
        tensors[f"{prefix}{name}.lora_A.weight"] = a.detach().clone()
        tensors[f"{prefix}{name}.lora_B.default.weight"] = b.detach().clone()
    if kind == "bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 16}')
    read = read_official(tmp_path, Spec(update, 2), base)
    for one, other in zip(read.parameters(), lora.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(StateError, match="COMP embeddings, and the memory needs 3"):
        read_official(tmp_path, Spec(update, 3), base)
    with pytest.raises(StateError, match="another model"):
        read_official(tmp_path, Spec(update, 2), make("llama", hidden_size=128))


class _Code:
    def __reduce__(self) -> Any:
        return (print, ("code of a file ran",))


def test_official_files_that_would_run_code_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = model("llama")
    with pytest.raises(StateError, match="holds none of"):
        read_official(tmp_path, Spec(), base)
    torch.save({"x": _Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(StateError, match="no plain tensors"):
        read_official(tmp_path, Spec(), base)
    assert capsys.readouterr().out == ""
    torch.save({"x": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(StateError, match="no embeddings"):
        read_official(tmp_path, Spec(), base)


def test_files_hold_what_peft_calls_by_name(saved: tuple[CCM, Path]) -> None:
    _, folder = saved
    names = set(load_file(folder / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert len(names) == 3 * 4 * 2
