"""The loop: what it reads is what the model reads, and it never holds more than the pot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from laconic.errors import BudgetError, ModelError
from laconic.memory.kv.cache import Storage
from laconic.memory.kv.engine import Engine, State
from laconic.memory.kv.policies import POLICIES, get_policy

from .conftest import FAMILIES, Family, make

CATALYST = [5, 6, 7, 8]


def engine(
    model: Any,
    policy: str = "infinipot",
    pot: int = 64,
    keep: int = 32,
    storage: Storage | None = None,
    **options: Any,
) -> Engine:
    made = get_policy(policy, **options)
    catalyst = CATALYST if made.catalyst else []
    return Engine(model, made, pot, keep, 17, catalyst, storage=storage)


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(9, 128, (count,), generator=generator)


@contextmanager
def watched(model: Any) -> Iterator[list[int]]:
    """Entries of a layer, on average over the layers, after each forward pass, and in it."""
    seen: list[int] = []

    def look(module: Any, _: Any, options: dict[str, Any], __: Any) -> None:
        counts = [layer.get_seq_length() for _, layer in options["past_key_values"].full()]
        seen.append(math.ceil(sum(counts) / max(1, len(counts))))

    hook = model.register_forward_hook(look, with_kwargs=True)
    yield seen
    hook.remove()


class TestNothingEvicted:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_chunks_say_what_the_whole_says(self, family: Family, name: str) -> None:
        model, ids = family(name), tokens(200)
        with torch.inference_mode():
            full = model(ids[None]).logits[0]
        reader = engine(model, pot=300, keep=100)
        state = reader.start()
        for start in range(0, 200, 29):
            reader.feed(state, ids[start : start + 29])
            assert state.logits is not None
            last = min(start + 29, 200) - 1
            torch.testing.assert_close(state.logits, full[last], atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("name", ["llama", "gemma2", "cohere"])
    def test_novelty_is_the_model_s_own_surprise(self, family: Family, name: str) -> None:
        model, ids = family(name), tokens(90)
        with torch.inference_mode():
            expected = cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
        reader = engine(model, pot=200)
        state = reader.start()
        for part in ids.split(31):
            reader.feed(state, part)
        for _, layer in state.cache.full():
            nll = layer.notes["nll"]
            assert nll[:, 0].isinf().all()
            torch.testing.assert_close(nll[:, 1:], expected.expand(nll.shape[0], -1))


class TestDistillation:
    @pytest.mark.parametrize("name", ["llama", "gemma3", "glm"])
    def test_what_is_kept_is_what_was_there_moved(self, family: Family, name: str) -> None:
        """Nothing is left of the catalyst, and keys are those of the token at its new place."""
        model = family(name)
        reader = engine(model)
        state = reader.start()
        reader.feed(state, tokens(60))
        before = state.copy()
        reader.distill(state)
        for (i, was), (_, now) in zip(before.cache.full(), state.cache.full(), strict=True):
            index = now.notes["place"].long()
            assert now.keys.shape[2] == 32
            torch.testing.assert_close(
                now.values[0], was.values[0].gather(1, index[..., None].expand(-1, -1, 16))
            )
            by = torch.arange(32) - index
            kept = was.keys.gather(2, index[None, ..., None].expand(-1, -1, -1, 16))
            torch.testing.assert_close(now.keys, reader.rotator.move(kept, by, i))
        for (_, was), (_, now) in zip(before.cache.sliding(), state.cache.sliding(), strict=True):
            assert torch.equal(was.values, now.values)
            assert now.cumulative_length == 32
        assert (state.position, state.seen) == (32, 60)
        assert torch.equal(state.logits, before.logits)

    def test_heads_keep_their_own(self, family: Family) -> None:
        reader = engine(family("llama"))
        state = reader.start()
        reader.feed(state, tokens(300))
        places = [layer.notes["place"] for _, layer in state.cache.full()]
        assert not torch.equal(places[0][0], places[0][1])
        assert not torch.equal(places[0], places[1])
        for place in places:
            assert (place.diff(dim=1) > 0).all()

    @pytest.mark.parametrize("name", FAMILIES)
    def test_positions_say_nothing_but_order(self, family: Family, name: str) -> None:
        """A state whose entries stand elsewhere goes on in the same way."""
        model = family(name)
        reader = engine(model)
        state = reader.start()
        reader.feed(state, tokens(100))
        moved = state.copy()
        by = 40
        for i, layer in enumerate(moved.cache.layers):
            steps = torch.full(layer.keys.shape[1:3], by)
            layer.keys = reader.rotator.move(layer.keys, steps, i)
        for _, layer in moved.cache.sliding():
            layer.cumulative_length += by
        here, there = tokens(5, 1), tokens(5, 1)
        with torch.inference_mode():
            expected = reader._forward(state, here, None, 0)
            moved.position += by
            found = reader._forward(moved, there, None, 0)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3", "stablelm"])
    @pytest.mark.parametrize("storage", get_args(Storage))
    def test_generate_goes_on_from_an_evicted_cache(
        self, family: Family, name: str, storage: Storage
    ) -> None:
        model = family(name)
        reader = engine(model, storage=storage)
        state = reader.start()
        reader.feed(state, tokens(150))
        greedy, by_hand = state.copy(), []
        for _ in range(6):
            assert greedy.logits is not None
            by_hand.append(int(greedy.logits.argmax()))
            reader.feed(greedy, torch.tensor(by_hand[-1:]))
        start = state.position
        written = model.generate(
            torch.tensor([by_hand[:1]]),
            past_key_values=state.cache,
            attention_mask=torch.ones((1, start + 1), dtype=torch.long),
            position_ids=torch.tensor([[start]]),
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=None,
        )
        assert written[0].tolist() == by_hand

    @pytest.mark.parametrize("policy", POLICIES)
    def test_reading_in_other_pieces_keeps_the_same(self, family: Family, policy: str) -> None:
        model, ids = family("llama"), tokens(240)
        kept = []
        for size in (240, 64, 17):
            reader = engine(model, policy)
            state = reader.start()
            for part in ids.split(size):
                reader.feed(state, part)
            kept.append([layer.notes["place"].tolist() for _, layer in state.cache.full()])
        assert kept[0] == kept[1] == kept[2]


class TestBound:
    @given(
        st.sampled_from(["llama", "gemma3", "mistral"]),
        st.sampled_from(list(POLICIES)),
        st.integers(8, 60),
        st.floats(0.1, 0.9),
        st.lists(st.integers(1, 90), min_size=1, max_size=6),
        st.booleans(),
        st.sampled_from(get_args(Storage)),
    )
    def test_the_pot_is_never_exceeded(
        self,
        family: Family,
        name: str,
        policy: str,
        pot: int,
        keep: float,
        pieces: list[int],
        asks: bool,
        storage: Storage,
    ) -> None:
        model = family(name)
        try:
            reader = engine(model, policy, pot, max(1, int(keep * pot)), storage)
        except BudgetError:
            assert max(1, int(keep * pot)) + len(CATALYST) >= pot
            return
        state = reader.start()
        with watched(model) as seen:
            for i, count in enumerate(pieces):
                reader.feed(state, tokens(count, i))
                state.turn += 1
                assert state.entries <= pot
                assert state.position <= pot + int((reader.policy.spread - 1) * reader.keep)
            if asks and state.entries + 3 <= pot:
                reader.distill(state, tokens(3))
        assert max(seen) <= pot
        assert state.seen == sum(pieces)
        lengths = [layer.get_seq_length() for _, layer in state.cache.full()]
        assert max(lengths, default=state.position) == state.position

    @pytest.mark.parametrize("name", ["gemma3", "mistral"])
    def test_windows_are_bounded_by_themselves(self, family: Family, name: str) -> None:
        reader = engine(family(name))
        state = reader.start()
        for i in range(10):
            reader.feed(state, tokens(50, i))
            for _, layer in state.cache.sliding():
                assert layer.keys.shape[2] <= 23
                assert layer.cumulative_length == state.position <= 64


class TestCopies:
    def test_a_copy_goes_its_own_way(self, family: Family) -> None:
        reader = engine(family("gemma3"), "snapkv", watches=8)
        state = reader.start()
        reader.feed(state, tokens(100))
        before = fingerprint(state)
        other = state.copy()
        reader.feed(other, tokens(100, 1))
        reader.distill(other)
        assert fingerprint(state) == before
        assert fingerprint(other) != before

    def test_a_failed_catalyst_leaves_no_trace(
        self, family: Family, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reader = engine(family("llama"))
        state = reader.start()
        reader.feed(state, tokens(60))
        before = fingerprint(state)
        with pytest.raises(IndexError):
            reader.distill(state, torch.tensor([100_000]))
        assert fingerprint(state) == before


def fingerprint(state: State) -> list[Any]:
    held = [t.tolist() for layer in state.cache.layers for t in layer.tensors().values()]
    weights = [w.tolist() for w in state.recorder.weights.values()] if state.recorder else []
    return [held, weights, state.position, state.seen, state.turn]


class TestRefusals:
    def test_a_pot_without_room_is_refused(self, family: Family) -> None:
        with pytest.raises(BudgetError, match="raise the budget or keep less"):
            engine(family("llama"), pot=10, keep=6)
        with pytest.raises(BudgetError, match="and at least one more"):
            engine(family("llama"), "tova", pot=10, keep=10)

    def test_positions_that_cannot_be_moved_are_refused(self) -> None:
        import transformers as hf

        size = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64}
        learned = hf.GPT2LMHeadModel(hf.GPT2Config(**size)).eval()
        with pytest.raises(ModelError, match="no rotary position embedding"):
            engine(learned)
        alibi = hf.BloomForCausalLM(
            hf.BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=64)
        ).eval()
        with pytest.raises(ModelError, match="no rotary position embedding"):
            engine(alibi)

    def test_latent_attention_is_refused(self) -> None:
        import transformers as hf

        config = hf.DeepseekV3Config(
            vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16,
            num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
            first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8,
            qk_nope_head_dim=8, v_head_dim=8,
        )  # fmt: skip
        model = hf.DeepseekV3ForCausalLM(config).eval()
        with pytest.raises(ModelError, match="do not move"):
            engine(model)

    def test_what_is_no_causal_model_is_refused(self, family: Family) -> None:
        import transformers as hf

        size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        bert = hf.BertModel(hf.BertConfig(**size, intermediate_size=32, vocab_size=64)).eval()
        with pytest.raises(ModelError, match="causal language model, got BertModel"):
            engine(bert)
        training = make("llama")
        training.train()
        with pytest.raises(ModelError, match="training mode"):
            engine(training)

    def test_a_scheme_that_changes_beyond_a_window_has_one(self) -> None:
        rope = {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 2.0}
        model = make("llama", rope_parameters=rope, max_position_embeddings=128)
        engine(model, pot=128)
        with pytest.raises(ModelError, match="at most 128"):
            engine(model, pot=129)
