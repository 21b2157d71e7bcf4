"""What a chat answers depends on the messages alone, and nothing is read twice."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from laconic.core.evaluation.random_models import build_model
from laconic.errors import BudgetError, InputError, StateError
from laconic.memory.base import ModelMemory
from laconic.memory.chat import Chat
from laconic.memory.kv import KVMemory
from laconic.memory.latent.ccm import CCM
from laconic.memory.latent.memory import CCMMemory
from laconic.memory.latent.plan import Spec

from .latent.conftest import adapter

TEMPLATE = (
    "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }}:{{ c.function.arguments.city }}]"
    "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

Make = Callable[[], ModelMemory[Any]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    text = Path(__file__).parents[2].joinpath("LICENSE").read_text(encoding="utf-8")
    folder = tmp_path_factory.mktemp("models") / "llama"
    size = {"layers": 2, "width": 32, "heads": 2, "vocabulary": 600, "positions": 4096}
    build_model("llama", folder, [text], **size)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    return AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer


@pytest.fixture(params=["kv", "int8", "ccm"])
def make(request: pytest.FixtureRequest, pair: tuple[Any, Any]) -> Make:
    model, tokenizer = pair
    if request.param == "ccm":
        with torch.no_grad():
            ccm = CCM(model, Spec("merge", 4), adapter(model, 4))
        return lambda: CCMMemory(ccm, tokenizer, chunk=128)
    storage: Any = "int8" if request.param == "int8" else None
    return lambda: KVMemory(model, tokenizer, budget=160, keep=48, storage=storage)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answered(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def ask(chat: Chat, messages: list[Any], **options: Any) -> Any:
    return chat.reply(messages, **{"max_new_tokens": 8, **options})


def talk(chat: Chat, turns: int, messages: list[Any] | None = None) -> tuple[list[Any], list[Any]]:
    messages, replies = list(messages or []), []
    for turn in range(turns):
        messages.append(user(f"Stop {turn}: the tram was late and it rained. What is next?"))
        replies.append(ask(chat, messages))
        messages.append(answered(replies[-1].text))
    return messages, replies


def test_what_is_answered_does_not_depend_on_what_is_kept(make: Make) -> None:
    warm = Chat(make)
    system = [{"role": "system", "content": "Answer in one word."}]
    messages, replies = talk(warm, 6, system)
    assert len({reply.text for reply in replies}) > 1
    for turn, reply in enumerate(replies):
        cold = ask(Chat(make), messages[: 2 + 2 * turn])
        assert cold.text == reply.text
        assert (cold.input_tokens, cold.state) == (reply.input_tokens, reply.state)
        assert cold.cached_tokens == 0
    tiny, again = Chat(make, max_bytes=0), talk(Chat(make), 6, system)[1]
    assert again == replies
    assert [reply.text for reply in talk(tiny, 6, system)[1]] == [r.text for r in replies]
    assert ask(warm, messages[:-1]) == replies[-1]


def test_one_more_turn_costs_that_turn(make: Make) -> None:
    _, replies = talk(Chat(make), 12)
    read = [reply.input_tokens - reply.cached_tokens for reply in replies]
    assert max(read[1:]) <= 2 * read[0]
    assert replies[-1].cached_tokens > 10 * read[-1] / 2


def test_the_budget_holds_over_many_turns(make: Make) -> None:
    chat = Chat(make, max_bytes=0)
    held = make()
    _, replies = talk(chat, 60)
    after = chat.get(replies[-1].state)
    assert after.seen > 5 * held.budget
    assert after.n_tokens <= held.budget
    assert chat.nbytes <= after.nbytes


def test_forked_conversations_are_right(make: Make) -> None:
    chat = Chat(make)
    messages, _ = talk(chat, 3)
    left = ask(chat, [*messages, user("My cat is Tom.")])
    right = ask(chat, [*messages, user("My dog is Rex.")])
    edited = [user("Something else."), *messages[1:], user("My cat is Tom.")]
    assert left.cached_tokens == right.cached_tokens > 0
    assert ask(chat, edited).cached_tokens == 0
    assert ask(Chat(make), [*messages, user("My dog is Rex.")]).text == right.text
    assert left.state != right.state


def test_a_conversation_goes_on_behind_a_state(make: Make) -> None:
    chat = Chat(make)
    messages, replies = talk(chat, 4)
    whole = ask(chat, [*messages, user("And then?")])
    behind = ask(chat, [user("And then?")], behind=replies[-1].state)
    moved = Chat(make)
    key = moved.put(chat.get(replies[-1].state))
    assert ask(moved, [user("And then?")], behind=key).text == behind.text == whole.text
    assert behind.input_tokens == whole.input_tokens
    assert key in moved
    assert moved.put(make(), "mine") == "mine"


def test_what_is_held_is_known_as_long_as_somebody_has_it(make: Make) -> None:
    chat = Chat(make, max_bytes=0)
    memory = make()
    memory.observe([user("My cat is Tom."), answered("I see.")])
    key = chat.hold(memory)
    expected = ask(chat, [user("And then?")], behind=key).text
    talk(chat, 2)
    assert key in chat
    assert ask(chat, [user("And then?")], behind=key).text == expected
    assert chat.hold(memory, "mine") == "mine"
    del memory
    gc.collect()
    assert key not in chat


def test_a_state_that_is_got_is_ones_own(make: Make) -> None:
    chat = Chat(make)
    (reply,) = talk(chat, 1)[1]
    memory = chat.get(reply.state)
    seen = memory.seen
    memory.observe([user("Forget it.")])
    assert chat.get(reply.state).seen == seen
    with pytest.raises(StateError, match="not kept any more"):
        chat.get("nothing")
    with pytest.raises(StateError, match="put"):
        ask(chat, [user("Hi")], behind="nothing")


def test_a_long_last_message_is_read(make: Make) -> None:
    chat, long = Chat(make), " ".join(f"Shop {n} sells bread." for n in range(100))
    with pytest.raises(BudgetError):
        make().generate([user(long)])
    reply = ask(chat, [user(long)])
    assert reply.input_tokens > 5 * make().budget
    assert reply.output_tokens > 0
    assert chat.get(reply.state).n_tokens <= make().budget
    assert ask(Chat(make), [user(long)]) == reply


def test_stop_strings_end_the_answer_and_the_state_agrees(make: Make) -> None:
    chat = Chat(make)
    full = ask(chat, [user("Hello there")], max_new_tokens=24)
    stop = full.text[4:7]
    heard: list[str] = []
    cut = ask(chat, [user("Hello there")], max_new_tokens=24, stop=[stop], stream=heard.append)
    assert cut.text == full.text[: full.text.index(stop)]
    assert "".join(heard) == cut.text
    assert cut.finish_reason == "stop"
    assert cut.output_tokens < full.output_tokens
    told = make()
    told.observe([user("Hello there"), answered(cut.text)])
    follow = [user("And?")]
    assert chat.get(cut.state).generate(follow, max_new_tokens=8) == told.generate(
        follow, max_new_tokens=8
    )


def test_a_stream_says_what_is_answered(make: Make) -> None:
    heard: list[str] = []
    reply = ask(Chat(make), [user("Hello")], max_new_tokens=20, stream=heard.append)
    assert "".join(heard) == reply.text
    assert len(heard) > 1
    assert (reply.finish_reason, reply.output_tokens) == ("length", 20)


def test_tools_and_their_results_are_read(make: Make) -> None:
    chat = Chat(make)
    call = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": call}],
    }
    said = [user("Rain?")]
    reply = ask(chat, said, tools=[TOOL], answer_message=lambda text: called)
    assert reply.input_tokens > ask(chat, said).input_tokens
    result = {"role": "tool", "tool_call_id": "1", "content": "Sunny."}
    after = ask(chat, [*said, called, result], tools=[TOOL])
    assert after.cached_tokens > 0
    assert ask(Chat(make), [*said, called, result], tools=[TOOL]).text == after.text
    # With other tools it is another conversation.
    assert ask(chat, [*said, called, result]).cached_tokens == 0


def test_an_answer_begins_as_it_is_told(make: Make) -> None:
    chat, heard = Chat(make), list[str]()
    reply = ask(chat, [user("Hello")], begin="Sure: ", stream=heard.append)
    assert reply.text.startswith("Sure: ")
    assert "".join(heard) == reply.text
    assert reply.text != "Sure: " + ask(chat, [user("Hello")]).text


def test_a_reply_is_found_by_what_it_was_given_behind(make: Make) -> None:
    chat = Chat(make)
    key = chat.put(make())
    reply = ask(chat, [user("Human: Hello")], behind=key)
    assert chat.replied(key, "Hello", answered(reply.text)) == reply.state
    assert chat.replied(key, "Bye", answered(reply.text)) is None
    assert chat.replied(key, "Hello", answered("Another.")) is None
    assert chat.replied("nothing", "Hello", answered(reply.text)) is None


def test_threads_get_what_they_would_get_alone(make: Make) -> None:
    chat = Chat(make)
    asked = [[user(f"City {n}?"), answered("Yes."), user("Why?")] for n in range(6)] * 2
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda messages: ask(chat, messages).text, asked))
    assert replies == [ask(Chat(make), messages).text for messages in asked]


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ("Hello", "list of dicts"),
        ([], "nothing to answer"),
        ([answered("Hi")], "nothing to answer"),
        ([{"content": "Hi"}], "role"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "image_url"),
        ([{"role": "assistant", "tool_calls": [{"id": "1"}]}, user("?")], "function"),
        ([{"role": "user", "content": "x", "name": object()}], "JSON"),
    ],
)
def test_what_cannot_be_read_is_refused(pair: Any, messages: Any, error: str) -> None:
    chat = Chat(lambda: KVMemory(*pair, budget=160))
    with pytest.raises(InputError, match=error):
        ask(chat, messages)


def test_blocks_of_text_are_read(pair: Any) -> None:
    chat = Chat(lambda: KVMemory(*pair, budget=160))
    blocks = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "you"}]
    spoken = ask(chat, [user("Hello\nyou")])
    assert ask(chat, [{"role": "user", "content": blocks}]) == spoken


def test_what_a_template_leaves_out_is_said(pair: Any) -> None:
    model, tokenizer = pair
    plain = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    plain.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    chat = Chat(lambda: KVMemory(model, plain, budget=160))
    with pytest.raises(InputError, match="'system'"):
        ask(chat, [{"role": "system", "content": "Be kind."}, user("Hi")])
    with pytest.raises(InputError, match="tool 'weather'"):
        ask(chat, [user("Hi")], tools=[TOOL])


@pytest.mark.parametrize("stop", ["x", [""], [3]])
def test_bad_stop_strings_are_refused(pair: Any, stop: Any) -> None:
    with pytest.raises(InputError, match="stop"):
        ask(Chat(lambda: KVMemory(*pair, budget=160)), [user("Hi")], stop=stop)


def test_max_bytes_is_checked() -> None:
    with pytest.raises(InputError, match="max_bytes"):
        Chat(lambda: None, max_bytes=-1)  # type: ignore[arg-type, return-value]


def test_the_parts_that_are_read_are_the_whole_that_the_template_writes(make: Make) -> None:
    memory = make()
    said = [{"role": "system", "content": "Be kind."}, user("Hello"), answered("Hi")]
    asked = [user("Rain?")]
    parts = memory.token_ids(said, tools=[TOOL])
    memory.observe(said, tools=[TOOL])
    parts += memory.token_ids(asked, asks=True, tools=[TOOL])
    assert memory.tokenizer.decode(parts) == memory.tokenizer.apply_chat_template(
        [*said, *asked], tools=[TOOL], tokenize=False, add_generation_prompt=True
    )
