"""A local model in LlamaIndex: a real one with random weights, whose words do not matter."""

from __future__ import annotations

import asyncio
import copy
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.base.llms.types import ImageBlock, TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate

from laconic.errors import InputError, ModelError, StateError, UnknownMethodError
from laconic.integrations.llama_index import LaconicLLM
from laconic.integrations.llama_index.llm import STATE
from laconic.memory.chat import Chat
from laconic.memory.kv import KVMemory
from laconic.memory.latent.memory import CCMMemory

Make = Callable[..., LaconicLLM]


@pytest.fixture(params=["infinipot", "streaming_llm", "ccm"])
def make(request: pytest.FixtureRequest, local_model: tuple[Any, Any], ccm: Any) -> Make:
    def made(**fields: Any) -> LaconicLLM:
        fields = {"memory": request.param, "max_tokens": 8, **fields}
        if request.param == "ccm":
            return LaconicLLM(*local_model, adapter=ccm, **fields)
        return LaconicLLM(*local_model, **{"budget": 160, **fields})

    return made


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def talk(llm: LaconicLLM, turns: int) -> list[Any]:
    said, replies = [ChatMessage(role="system", content="Be brief.")], []
    for turn in range(turns):
        said.append(user(f"Stop {turn}: the tram was late and it rained. What is next?"))
        replies.append(llm.chat(said))
        said.append(replies[-1].message)
    return replies


def test_an_answer_is_that_of_the_chat(make: Make, local_model: tuple[Any, Any], ccm: Any) -> None:
    llm = make()

    def memory() -> Any:
        if llm.memory == "ccm":
            return CCMMemory(ccm, local_model[1])
        return KVMemory(*local_model, llm.memory, 160)

    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where to?"}]
    expected = Chat(memory).reply(said, max_new_tokens=8)
    reply = llm.chat([ChatMessage(**m) for m in said])
    assert (reply.message.content, reply.message.role) == (expected.text, "assistant")
    assert reply.raw["finish_reason"] == expected.finish_reason
    assert reply.additional_kwargs == {
        "prompt_tokens": expected.input_tokens,
        "completion_tokens": expected.output_tokens,
        "total_tokens": expected.input_tokens + expected.output_tokens,
        "cached_tokens": 0,
    }


def test_a_longer_list_costs_what_is_new(make: Make) -> None:
    usage = [reply.additional_kwargs for reply in talk(make(), 10)]
    read = [use["prompt_tokens"] - use["cached_tokens"] for use in usage]
    assert usage[-1]["prompt_tokens"] > 5 * read[-1]
    assert max(read[1:]) < 2 * min(read[1:])


def test_streams_and_waiting_give_the_same(make: Make) -> None:
    llm = make(max_tokens=24)
    said = [user("Where does the tram go?")]
    whole = llm.chat(said)
    parts = list(llm.stream_chat(said))
    assert len(parts) > 2
    assert "".join(part.delta for part in parts) == whole.message.content
    assert parts[-1].message == whole.message
    assert parts[-1].additional_kwargs["completion_tokens"] == 24
    for before, after in itertools.pairwise(parts):
        assert after.message.content.startswith(before.message.content)

    async def run() -> tuple[Any, list[Any], Any, list[Any]]:
        chat = await llm.achat(said)
        stream = [part async for part in await llm.astream_chat(said)]
        done = await llm.acomplete("Where does the tram go?")
        pieces = [part async for part in await llm.astream_complete("Where does the tram go?")]
        return chat, stream, done, pieces

    chat, stream, done, pieces = asyncio.run(run())
    assert chat.message == whole.message
    assert [(p.delta, p.message) for p in stream] == [(p.delta, p.message) for p in parts]
    assert done.text == llm.complete("Where does the tram go?").text == whole.message.content
    streamed = list(llm.stream_complete("Where does the tram go?"))
    assert [p.text for p in pieces] == [p.text for p in streamed]
    assert streamed[-1].text == whole.message.content


def test_pieces_come_while_the_model_writes(make: Make) -> None:
    llm = make(max_tokens=2000)
    stream = llm.stream_chat([user("Go on.")])
    first = next(stream)
    assert first.delta
    stream.close()  # which also ends the writing, long before 2000 tokens
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "work" in thread.name:
            thread.join()
            break
    else:
        pytest.fail("no thread was writing")


def test_the_loop_goes_on_while_the_model_writes(make: Make) -> None:
    llm = make(max_tokens=60)

    async def run() -> int:
        ticks, done = 0, asyncio.ensure_future(llm.achat([user("Go on.")]))
        while not done.done():
            ticks += 1
            await asyncio.sleep(0)
        return ticks

    assert asyncio.run(run()) > 2


def test_options_of_a_call(make: Make) -> None:
    llm = make(max_tokens=20)
    said = [user("Where does the tram go?")]
    whole = llm.chat(said).message.content
    assert llm.chat(said, stop=None).message.content == whole
    assert llm.chat(said, max_tokens=3).additional_kwargs["completion_tokens"] == 3
    hot = {llm.chat(said, temperature=2.0, seed=seed).message.content for seed in range(4)}
    assert len(hot) > 1
    stopped = llm.chat(said, stop=[whole[4:6]]).message.content
    assert stopped == whole[: whole.index(whole[4:6])]
    assert make(stop=[whole[4:6]]).chat(said).message.content == stopped
    with pytest.raises(InputError, match=r"unknown options \['max_length'\]"):
        llm.chat(said, max_length=3)
    with pytest.raises(InputError, match="temperature"):
        list(llm.stream_chat(said, temperature=-1))


def test_it_serves_prompts_and_counts_tokens(make: Make) -> None:
    counts = TokenCountingHandler(tokenizer=str.split)
    llm = make(callback_manager=CallbackManager([counts]))
    text = llm.predict(PromptTemplate("Where does {what} go?"), what="the tram")
    assert text == llm.complete("Where does the tram go?").text
    usage = llm.chat([user("Where does the tram go?")]).additional_kwargs
    assert counts.prompt_llm_token_count == 3 * usage["prompt_tokens"]
    assert counts.completion_llm_token_count == 3 * usage["completion_tokens"]
    assert llm.metadata.context_window == 4096
    assert (llm.metadata.num_output, llm.metadata.is_chat_model) == (8, True)


def test_long_prompts_have_no_limit(make: Make) -> None:
    llm = make()
    # An adapter is made for so many positions.
    times, least = (150, 1500) if llm.memory == "ccm" else (400, 4096)
    reply = llm.chat([user("The tram was late and it rained. " * times)])
    assert reply.additional_kwargs["prompt_tokens"] > least
    assert reply.additional_kwargs["completion_tokens"] > 0


def test_a_message_that_is_no_text_is_refused(make: Make) -> None:
    llm = make()
    shown = ChatMessage(blocks=[TextBlock(text="See"), ImageBlock(url="https://example.com/a.png")])
    with pytest.raises(InputError, match="reads text only"):
        llm.chat([shown])
    with pytest.raises(InputError, match="nothing to answer"):
        llm.chat([user("Hi."), ChatMessage(role="assistant", content="Hello.")])
    thought = ChatMessage(
        role="assistant", blocks=[ThinkingBlock(content="Hm."), TextBlock(text="Yes.")]
    )
    plain = ChatMessage(role="assistant", content="Yes.")
    expected = llm.chat([user("Hi."), plain, user("So?")])
    assert llm.chat([user("Hi."), thought, user("So?")]).message == expected.message


def test_tool_calls_reach_the_template(local_model: tuple[Any, Any]) -> None:
    tokenizer = copy.deepcopy(local_model[1])
    tokenizer.chat_template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
        "{{ c.function.arguments.at }}{% endfor %}{{ m.content }}{{ m.tool_call_id }}{% endfor %}"
    )
    llm = LaconicLLM(local_model[0], tokenizer, budget=160, max_tokens=8)
    done = ChatMessage(role="tool", content="Sun.", additional_kwargs={"tool_call_id": "a"})
    replies = []
    for kwargs in ({"at": "Rome"}, '{"at": "Rome"}'):
        call = ToolCallBlock(tool_call_id="a", tool_name="look", tool_kwargs=kwargs)
        asks = ChatMessage(role="assistant", blocks=[call])
        replies.append(llm.chat([user("Hi."), asks, done]))
    assert replies[0].message == replies[1].message
    written = len(tokenizer.encode("Hi.lookRomeSun.a", add_special_tokens=False))
    assert abs(replies[0].raw["usage"]["prompt_tokens"] - written) <= 3


def test_a_template_without_a_role_is_named(local_model: tuple[Any, Any]) -> None:
    tokenizer = copy.deepcopy(local_model[1])
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    llm = LaconicLLM(local_model[0], tokenizer, budget=160)
    with pytest.raises(InputError, match="System role not supported"):
        llm.chat([ChatMessage(role="system", content="x"), user("Hi.")])
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        llm.chat([user("Hi.")])


def test_a_model_is_loaded_by_its_folder(local_model: tuple[Any, Any], ccm: Any, tmp_path) -> None:
    folder, adapter = local_model[0].config.name_or_path, tmp_path / "adapter"
    said = [user("Where does the tram go?")]
    expected = LaconicLLM(*local_model, budget=160, max_tokens=8).chat(said).message
    llm = LaconicLLM(folder, budget=160, max_tokens=8, device="cpu")
    assert llm.chat(said).message == expected
    assert llm.model_name == folder
    ccm.save_pretrained(adapter, local_model[1])
    loaded = LaconicLLM(*local_model, memory="ccm", adapter=adapter, max_tokens=8)
    expected = LaconicLLM(*local_model, memory="ccm", adapter=ccm, max_tokens=8).chat(said).message
    assert loaded.chat(said).message == expected


def test_what_cannot_be_is_refused_at_once(local_model: tuple[Any, Any], tmp_path) -> None:
    with pytest.raises(InputError, match="needs an adapter"):
        LaconicLLM(*local_model, memory="ccm")
    with pytest.raises(InputError, match="has no adapter"):
        LaconicLLM(*local_model, adapter=tmp_path)
    with pytest.raises(UnknownMethodError):
        LaconicLLM(*local_model, memory="no such policy")
    with pytest.raises(StateError):
        LaconicLLM(*local_model, memory="ccm", adapter=tmp_path)
    with pytest.raises(ModelError, match="needs its tokenizer"):
        LaconicLLM(local_model[0])
    gone = ChatMessage(role="assistant", content="", additional_kwargs={STATE: "gone"})
    with pytest.raises(StateError, match="not kept any more"):
        LaconicLLM(*local_model, budget=160).chat([gone, user("Hi.")])
