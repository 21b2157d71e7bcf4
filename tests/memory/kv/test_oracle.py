"""Agreement with kvpress 0.5.5, whose choices on a random Llama of three layers are stored.

`oracles/kvpress.safetensors` holds the weights, two texts of 96 tokens, and for five of its
presses and each layer the kept indices, keys, values and re-rotated keys.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors import safe_open

from laconic.memory.kv.engine import Engine
from laconic.memory.kv.policies import Policy, get_policy

_FILE = Path(__file__).parent / "oracles" / "kvpress.safetensors"

POLICIES: dict[str, Policy] = {
    "streaming": get_policy("streaming_llm", sink=4),
    "knorm": get_policy("knorm"),
    "keydiff": get_policy("keydiff"),
    "tova": get_policy("tova"),
    "snapkv": get_policy("snapkv", watches=8, pool=5),
}


@pytest.fixture(scope="module")
def oracle() -> dict[str, torch.Tensor]:
    with safe_open(_FILE, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def model(oracle: dict[str, torch.Tensor]) -> Any:
    with safe_open(_FILE, framework="pt") as file:
        config = hf.LlamaConfig(**json.loads(file.metadata()["config"]))
    made = hf.LlamaForCausalLM(config)
    weights = {k.removeprefix("model."): v for k, v in oracle.items() if k.startswith("model.")}
    made.load_state_dict(weights)
    return made.eval()


@pytest.mark.parametrize("text", [0, 1])
@pytest.mark.parametrize("press", POLICIES)
def test_the_same_entries_are_kept_and_moved(
    press: str, text: int, model: Any, oracle: dict[str, torch.Tensor]
) -> None:
    engine = Engine(model, POLICIES[press], pot=97, keep=48, chunk=96, catalyst=[])
    state = engine.start()
    engine.feed(state, oracle["ids"][text])
    engine.distill(state)
    for i, layer in state.cache.full():
        theirs = {
            part: oracle[f"{press}.{i}.{part}"][text]
            for part in ("index", "keys", "values", "rerotated")
        }
        order = theirs["index"].argsort(-1)
        assert torch.equal(layer.notes["place"].long(), theirs["index"].gather(1, order))
        # Theirs stand in the order of their scores, and are re-rotated in that of their places.
        values = theirs["values"].gather(1, order[..., None].expand(-1, -1, 16))
        torch.testing.assert_close(layer.values[0], values, atol=1e-5, rtol=0)
        torch.testing.assert_close(layer.keys[0], theirs["rerotated"], atol=1e-5, rtol=0)
