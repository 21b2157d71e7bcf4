"""`KVMemory` as its users see it: what it reads, answers, forgets and refuses."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from laconic.errors import BudgetError, InputError, ModelError, UnknownMethodError
from laconic.memory.kv import POLICIES, KVMemory
from laconic.memory.kv.policies.infinipot import InfiniPot

from .test_files import QUESTION, TEXT, Llama, ids_of, make_memory, snapshot

_TURNS = (
    "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "opens with a system message": "{{ '<s>system\nBe brief.</s>\n' }}" + _TURNS,
    "tags in plain letters": "<s>{% for m in messages %}[{{ m.role }}]\n{{ m.content }}</s>"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}",
    "roles must alternate": "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2"
    " == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + _TURNS,
}
_SAID = {"What does each Contributor grant?": "user", "A license.": "assistant", "Why?": "user"}
CONVERSATION = [{"role": role, "content": content} for content, role in _SAID.items()]
_OUT_OF_RANGE: list[dict[str, Any]] = [
    *({"temperature": value} for value in (-1, -0.5, float("nan"), "x")),
    *({"temperature": 1.0, "top_k": value} for value in (0, -1, 1.5, "x")),
    *({"temperature": 1.0, "top_p": value} for value in (-0.1, 1.5, float("nan"), "x")),
    *({"top_k": 0}, {"top_p": 7.0}, {"max_new_tokens": -1}, {"max_new_tokens": 1.5}),
    *({"seed": None}, {"seed": "x"}),
]
_CATALYST = 41  # tokens; 32 entries are kept
_UNFIT: list[tuple[Any, str, list[Any]]] = [
    (BudgetError, "budget", [True, 1, 0, -5, "x", 64.0, None, 20, 32 + _CATALYST]),
    (BudgetError, "keep", [1.0, 128, 500, 2.5, 128 - _CATALYST, 0, 0.0, -1, -0.5]),
    ((BudgetError, InputError), "keep", [True, "x", None, float("nan"), float("inf")]),
    ((UnknownMethodError, InputError), "policy", ["lru", "", None, 3, InfiniPot]),
    (InputError, "chunk", [0, -1, 1.5, "x", None]),
]
_NO_CONTENT: list[Any] = [
    *(None, 3, 1.5, b"text", object(), {1, 2}, {"role": "user", "content": "x"}, [1.5], [True]),
    *(["a"], [None], [CONVERSATION[0], "x"], [[1, 2], [3, 4]], [[1], 2], [-1], [600], [10**30]),
    *(torch.tensor(3), torch.tensor([1.5]), torch.tensor([True]), torch.ones((2, 3)).long()),
    *(torch.ones((1, 1, 3)).long(), "half a character: \ud83d", CONVERSATION),  # no template
]


@contextmanager
def scripted(model: Any, script: list[int], tell: Any = str) -> Iterator[list[int]]:
    """Whatever it is asked, the model answers so; gives the tokens that it hears."""
    heard: list[int] = []
    step = 0

    def speak(_: Any, __: Any, options: dict[str, Any], output: Any) -> None:
        nonlocal step
        tell("")
        given = options["input_ids"][0].tolist()
        step = step + 1 if len(given) == 1 else 0
        heard.extend(given)
        if script:
            output.logits[0, -1] = -10.0
            output.logits[0, -1, script[min(step, len(script) - 1)]] = 10.0

    with model.register_forward_hook(speak, with_kwargs=True):
        yield heard


def answers(*memories: KVMemory, most: int = 20, **options: Any) -> list[str]:
    return [m.generate(QUESTION, max_new_tokens=most, commit=False, **options) for m in memories]


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    """The same model, untouched by any memory."""
    return hf.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def memory(llama: Llama) -> KVMemory:
    """A memory that has read more than it holds."""
    (made := make_memory(llama)).observe(ids_of(llama, 200))
    return made


class TestReading:
    def test_text_ids_and_tensors_are_read_alike(self, llama: Llama) -> None:
        ids = llama[1].encode(TEXT[:300])
        alike = [TEXT[:300], ids, tuple(ids), [ids], torch.tensor(ids), torch.tensor([ids])]
        memories = [make_memory(llama) for _ in range(7)]
        for memory, form in zip(memories, [*alike, np.array(ids)], strict=True):
            memory.observe(form)
            assert snapshot(memory) == snapshot(memories[0])

    @pytest.mark.parametrize("size", [1, 7, 64])
    def test_several_calls_read_what_one_call_reads(self, llama: Llama, size: int) -> None:
        ids = ids_of(llama, 90)
        whole, parts = make_memory(llama, budget=256), make_memory(llama, budget=256)
        whole.observe(ids)
        for start in range(0, 90, size):
            parts.observe(ids[start : start + size])
        assert (whole.n_tokens, whole.seen) == (parts.n_tokens, parts.seen) == (90, 90)
        assert whole.places(1).tolist() == parts.places(1).tolist() == [list(range(90))] * 2
        assert len(set(answers(whole, parts, most=40))) == 1

    @pytest.mark.parametrize("nothing", ["", []])
    def test_nothing_can_be_read_and_distilled(self, llama: Llama, nothing: Any) -> None:
        memory, other = make_memory(llama), make_memory(llama)
        memory.distill()
        memory.distill("What?")
        assert snapshot(memory) == snapshot(other)
        memory.observe(nothing)
        assert memory.n_tokens == memory.seen <= 1  # of a text, the sign of its beginning
        memory.observe(TEXT[:200])
        other.observe(TEXT[:200])
        before = memory.nbytes, memory.seen, memory.places(0).tolist()
        memory.observe(nothing)
        assert (memory.nbytes, memory.seen, memory.places(0).tolist()) == before
        assert len(set(answers(memory, other))) == 1

    @pytest.mark.parametrize("policy", POLICIES)
    def test_one_token_is_enough(self, llama: Llama, policy: str) -> None:
        (memory := make_memory(llama, policy)).observe([5])
        memory.distill()
        assert (memory.n_tokens, memory.seen, memory.places(1).tolist()) == (1, 1, [[0], [0]])
        assert memory.generate([6], max_new_tokens=3)

    def test_twenty_thousand_tokens_go_through_a_pot_of_64(self, llama: Llama) -> None:
        memory = make_memory(llama, InfiniPot(catalyst="Sum up."), 64, keep=16)
        memory.observe(ids_of(llama, 70))
        most = memory.nbytes * 64 // memory.n_tokens
        text = (TEXT * 9)[:49_000]
        memory.observe(text)
        assert memory.seen == 70 + len(llama[1].encode(text, add_special_tokens=False)) > 20_000
        for layer in (0, 1):
            places = memory.places(layer)
            assert places.shape[1] == memory.n_tokens <= 64
            assert (places.diff(dim=1) > 0).all()
            assert places[:, -1].tolist() == [memory.seen - 1] * 2
        assert memory.nbytes <= most


class TestAnswers:
    @pytest.mark.parametrize(("read", "chunk"), [(0, 512), (100, 512), (100, 16)])
    def test_with_nothing_evicted_they_are_those_of_the_model(
        self, llama: Llama, plain: Any, read: int, chunk: int
    ) -> None:
        ids, memory = ids_of(llama, 130), make_memory(llama, budget=512, chunk=chunk)
        memory.observe(ids[:read])
        so_far = ids[:read]
        for prompt in (ids[read:], ids[40:60]):
            so_far = so_far + prompt
            expected = plain.generate(torch.tensor([so_far]), max_new_tokens=24, do_sample=False)
            new = expected[0, len(so_far) :].tolist()
            with scripted(llama[0], []) as heard:
                answer = memory.generate(prompt, max_new_tokens=24)
            assert heard == [*prompt, *new]
            assert answer == llama[1].decode(new, skip_special_tokens=True)
            so_far = so_far + new
            assert memory.seen == memory.n_tokens == len(so_far)

    def test_without_commit_nothing_is_left_of_them(self, memory: KVMemory) -> None:
        before, twin = snapshot(memory), memory.fork()
        assert len(set(answers(memory, memory, twin, most=60))) == 1
        assert snapshot(memory) == before
        for _ in range(2):
            answer = memory.generate(QUESTION, max_new_tokens=60)
            assert twin.generate(QUESTION, max_new_tokens=60) == answer
        assert snapshot(memory) == snapshot(twin) != before

    @pytest.mark.parametrize("most", [0, 1, 5, 300])
    def test_they_are_no_longer_than_asked(self, llama: Llama, memory: KVMemory, most: int) -> None:
        seen = memory.seen
        with scripted(llama[0], [40]):
            answer = memory.generate(range(9, 19), max_new_tokens=most)
        assert (memory.seen, memory.n_tokens <= 128) == (seen + 10 + most, True)
        assert answer == llama[1].decode([40] * most)

    def test_they_end_where_the_model_ends(self, llama: Llama, plain: Any) -> None:
        prompt = ids_of(llama, 60)
        usual = plain.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
        for ends in (int(usual[0, 64]), [2, 599, int(usual[0, 67])]):
            model = copy.deepcopy(plain)
            model.generation_config.eos_token_id = ends
            expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
            assert expected.shape[1] < 80
            memory = make_memory((model, llama[1]))
            answer = memory.generate(prompt, max_new_tokens=20)
            assert answer == llama[1].decode(expected[0, 60:], skip_special_tokens=True)
            assert memory.seen == expected.shape[1]

    @pytest.mark.parametrize(
        "text", ["a license", "one\ntwo, three\n four", "語 🙂 über\n  zwei  x\n"]
    )
    def test_the_pieces_of_a_stream_join_to_the_answer(self, llama: Llama, text: str) -> None:
        script = [*llama[1].encode(text, add_special_tokens=False), 2]
        pieces: list[str] = []
        with scripted(llama[0], script):
            answer = make_memory(llama, budget=512).generate(QUESTION, stream=pieces.append)
        assert answer == text
        assert "".join(pieces) == answer
        assert len(list(filter(None, pieces))) > 1

    def test_sampling_is_seeded_and_touches_no_other_dice(self, memory: KVMemory) -> None:
        dice = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        options: dict[str, Any] = {"temperature": 1.5, "top_k": 50, "top_p": 0.95}
        found = [answers(memory, seed=seed, **options)[0] for seed in (1, 1, 2, 3)]
        assert found[0] == found[1]
        assert len(set(found)) == 3
        assert torch.equal(torch.get_rng_state(), dice[0])
        assert (random.getstate(), str(np.random.get_state())) == dice[1:]
        for only in ({"top_k": 1}, {"top_p": 1e-6}):
            assert answers(memory, temperature=1.0, **only) == answers(memory)

    @pytest.mark.parametrize("options", _OUT_OF_RANGE, ids=str)
    def test_options_out_of_range_are_refused(self, memory: KVMemory, options: Any) -> None:
        before = snapshot(memory)
        with pytest.raises(InputError):
            memory.generate(QUESTION, **{"max_new_tokens": 3, **options})
        assert snapshot(memory) == before


class TestChat:
    @pytest.fixture(params=TEMPLATES)
    def chat(self, request: pytest.FixtureRequest, llama: Llama) -> Llama:
        tokenizer = copy.deepcopy(llama[1])
        tokenizer.chat_template = TEMPLATES[request.param]
        return llama[0], tokenizer

    def expected(self, chat: Llama, messages: Any, asks: bool = False) -> list[int]:
        text = chat[1].apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
        return list(chat[1].encode(text, add_special_tokens=False))

    @pytest.mark.parametrize("sizes", [[3], [2, 1], [1, 1, 1]], ids=str)
    def test_turn_by_turn_is_as_the_whole_conversation(self, chat: Llama, sizes: list[int]) -> None:
        memory, rest = make_memory(chat, "truncation"), list(CONVERSATION)
        with scripted(chat[0], []) as heard:
            for size in sizes:
                memory.observe(rest[:size])
                rest = rest[size:]
        assert heard == self.expected(chat, CONVERSATION)

    @pytest.mark.parametrize("ends", [True, False])
    def test_a_written_answer_is_a_turn_like_others(self, chat: Llama, ends: bool) -> None:
        """Whether the model ended it or max_new_tokens did, the template closes it."""
        asked = self.expected(chat, CONVERSATION[:1], asks=True)
        script = self.expected(chat, CONVERSATION[:2])[len(asked) :]
        script = script[: script.index(2) + ends]
        memory = make_memory(chat, "truncation", 256)
        with scripted(chat[0], script) as heard:
            answer = memory.generate(CONVERSATION[:1], max_new_tokens=len(script))
            memory.generate(CONVERSATION[2:], max_new_tokens=1)
        assert answer == CONVERSATION[1]["content"]
        whole = self.expected(chat, CONVERSATION, asks=True)
        assert heard[: len(whole)] == whole


class TestDistillation:
    def test_a_question_says_what_is_kept(self, memory: KVMemory) -> None:
        kept = []
        for question in (None, "What is a patent?", "a"):
            (other := memory.fork()).distill(question)
            kept.append(other.places(1).tolist())
            assert len(kept[-1][0]) == other.n_tokens == 32
        assert kept[0] != kept[1] != kept[2]

    @pytest.mark.parametrize("question", ["", [], [7] * 128], ids=["text", "ids", "long"])
    def test_one_empty_or_too_long_is_refused(self, memory: KVMemory, question: Any) -> None:
        before = snapshot(memory)
        with pytest.raises(BudgetError if len(question) else InputError):
            memory.distill(question)
        assert snapshot(memory) == before


class TestForks:
    def test_they_know_the_same_and_go_their_own_way(self, llama: Llama, memory: KVMemory) -> None:
        before, fork = snapshot(memory), memory.fork()
        assert snapshot(fork) == before
        assert (fork.policy, fork.budget) == (memory.policy, 128)
        assert len(set(answers(memory, fork))) == 1
        fork.observe(ids_of(llama, 150, start=500))
        fork.generate(QUESTION, max_new_tokens=9)
        assert snapshot(memory) == before != snapshot(fork)
        after = snapshot(fork)
        memory.clear()
        assert snapshot(memory) == snapshot(make_memory(llama))
        assert snapshot(fork) == after

    def test_they_cost_nothing(self, llama: Llama) -> None:
        process = pytest.importorskip("psutil").Process()
        memory = make_memory(llama, "truncation", 2000)
        memory.observe(ids_of(llama, 1500))
        before = process.memory_info().rss
        forks = [memory.fork() for _ in range(200)]
        assert process.memory_info().rss - before < 20 * memory.nbytes
        assert forks[-1].nbytes == memory.nbytes


class TestThreads:
    def test_many_sessions_over_one_model_are_as_in_turn(self, llama: Llama) -> None:
        policies = [name for name in POLICIES if "adaptive" not in name][:8]

        def talk(number: int) -> Any:
            memory = make_memory(llama, policies[number], 96)
            sessions = [memory.fork() for _ in range(8)]
            said: list[str] = []
            for turn in range(2):
                for i, session in enumerate(sessions):
                    session.observe(ids_of(llama, 40, start=60 * i + 7 * number + 300 * turn))
                    said.append(session.generate(QUESTION, max_new_tokens=6))
            return said, [snapshot(session) for session in sessions]

        in_turn = [talk(number) for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(talk, range(8))) == in_turn

    def test_one_memory_serves_several_one_after_the_other(self, llama: Llama) -> None:
        ids, alone, shared = ids_of(llama, 30), make_memory(llama), make_memory(llama)

        def use(_: int) -> None:
            for _turn in range(3):
                shared.observe(ids)
                assert (other := shared.fork()).places(1).shape[1] == other.n_tokens <= 128

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(use, range(8)))
        for _ in range(24):
            alone.observe(ids)
        assert snapshot(shared) == snapshot(alone)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["stream", "model"])
def test_an_interrupted_turn_leaves_no_trace(
    llama: Llama, memory: KVMemory, where: str, error: type[BaseException]
) -> None:
    before, calls = snapshot(memory), iter(range(100))

    def fail(*_: Any) -> None:
        if next(calls) == 3:
            raise error("enough")

    script = llama[1].encode("a copyright license to the work " * 9)
    tell, stream = (fail, lambda _: None) if where == "model" else (str, fail)
    with scripted(llama[0], script, tell), pytest.raises(error, match="enough"):
        memory.generate(QUESTION, stream=stream)
    assert snapshot(memory) == before
    assert memory.generate(QUESTION, max_new_tokens=3)  # nothing stays locked


class TestRefusals:
    @pytest.mark.parametrize(
        ("error", "name", "value"), [(e, name, value) for e, name, bad in _UNFIT for value in bad]
    )
    def test_options(self, llama: Llama, error: Any, name: str, value: Any) -> None:
        with pytest.raises(error):
            make_memory(llama, **{name: value})

    def test_models(self, llama: Llama, plain: Any) -> None:
        size: dict[str, Any] = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2}
        hybrid: Any = {"num_attention_heads": 2, "layer_types": ["conv", "full_attention"]}
        for model in (
            hf.MambaForCausalLM(hf.MambaConfig(**size, state_size=4)).eval(),
            hf.OpenAIGPTLMHeadModel(hf.OpenAIGPTConfig(n_embd=32, n_layer=1, n_head=2)).eval(),
            hf.Lfm2ForCausalLM(hf.Lfm2Config(**size, **hybrid, num_key_value_heads=2)).eval(),
            hf.LlamaForSequenceClassification(plain.config).eval(),
            *(copy.deepcopy(plain.model), copy.deepcopy(plain).train()),
            *(None, "llama", torch.nn.Linear(2, 2)),
        ):
            with pytest.raises(ModelError):
                make_memory((model, llama[1]), "truncation")

    @pytest.mark.parametrize("content", _NO_CONTENT)
    def test_contents(self, memory: KVMemory, content: Any) -> None:
        before = snapshot(memory)
        for call in (memory.observe, memory.generate, memory.distill):
            if content is not None or call != memory.distill:
                with pytest.raises(InputError):
                    call(content)
        assert snapshot(memory) == before

    def test_prompts_that_do_not_fit(self, llama: Llama, memory: KVMemory) -> None:
        before, room = snapshot(memory), 128 - _CATALYST
        for size in (room, room + 1, 128, 5000):
            with pytest.raises(BudgetError, match="observe"):
                memory.generate([7] * size)
        assert snapshot(memory) == before
        assert memory.generate([7] * (room - 1), max_new_tokens=2, commit=False)
