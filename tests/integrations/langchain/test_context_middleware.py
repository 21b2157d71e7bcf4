from __future__ import annotations

import asyncio
import json
import logging
from itertools import pairwise
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain.agents.structured_output import AutoStrategy, ProviderStrategy, ToolStrategy
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel, Field

from laconic.core import TokenCounter
from laconic.core.methods.lexical import Lexical
from laconic.errors import BudgetError, InputError
from laconic.integrations.langchain import (
    ContextCompressionMiddleware,
    ToolOutputCompressionMiddleware,
)

COUNTER = TokenCounter.of(None)
SYSTEM = "You are a patient guide who answers in one sentence."
FACT = "My cat is called Tom and lives in Lisbon."


class Scripted(GenericFakeChatModel):
    """Answers as it is told, and records what it was sent."""

    sent: list[list[BaseMessage]] = Field(default_factory=list)

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.sent.append(list(messages))
        return super()._generate(messages, *args, **kwargs)


def answering(*answers: AIMessage | str) -> Scripted:
    def script():
        yield from answers
        number = 0
        while True:
            number += 1
            yield f"That was answer {number}: trains run daily, and trams every ten minutes."

    return Scripted(messages=script())


@tool
def timetable(city: str) -> str:
    """Look up when trains leave."""
    return " ".join(f"From {city} a train leaves at {hour}:15 from track 4." for hour in range(12))


def calls(*names: str) -> AIMessage:
    return AIMessage(
        "I look that up.",
        tool_calls=[{"id": n, "name": "timetable", "args": {"city": n}} for n in names],
    )


def tokens(messages: list[BaseMessage], tools: Any = ()) -> int:
    """What an API would count at least: texts, calls, and four tokens for each message."""
    total = sum(COUNTER.count(json.dumps(convert_to_openai_tool(t))) for t in tools)
    for message in messages:
        total += 4 + COUNTER.count(str(message.text))
        for call in getattr(message, "tool_calls", ()):
            total += COUNTER.count(call["name"]) + COUNTER.count(json.dumps(call["args"]))
    return total


def assert_paired(messages: list[BaseMessage]) -> None:
    waiting: list[str] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            waiting.remove(message.tool_call_id)
        else:
            assert not waiting
            waiting = [call["id"] for call in getattr(message, "tool_calls", ())]
    assert not waiting


def thread(name: str) -> Any:
    return {"configurable": {"thread_id": name}}


def human(text: Any) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


def said(messages: list[BaseMessage]) -> str:
    return "\n".join(str(message.text) for message in messages)


def sent_for(middleware: ContextCompressionMiddleware, messages: list[Any], **fields: Any) -> Any:
    """What the middleware gives its handler."""
    request = ModelRequest(model=answering(), messages=messages, **fields)
    seen: list[ModelRequest] = []

    def handler(request: ModelRequest) -> ModelResponse:
        seen.append(request)
        return ModelResponse(result=[AIMessage("done")])

    middleware.wrap_model_call(request, handler)
    assert seen[0].system_message == request.system_message
    return seen[0].messages


def chat(turns: int) -> list[BaseMessage]:
    messages: list[BaseMessage] = []
    for turn in range(turns):
        messages += [
            HumanMessage(f"Question {turn}: what is platform {turn} like?", id=f"h{turn}"),
            AIMessage(f"Platform {turn} is long. It has {turn} benches and a roof.", id=f"a{turn}"),
        ]
    return messages


def test_what_fits_passes_as_the_same_objects() -> None:
    messages = [*chat(3), HumanMessage("And now?")]
    passed = sent_for(ContextCompressionMiddleware(4000), messages)
    assert len(passed) == len(messages)
    assert all(a is b for a, b in zip(passed, messages, strict=True))


@pytest.mark.parametrize("method", ["lexical", "extractive"])
def test_no_call_passes_the_budget_and_the_checkpoint_keeps_all(method) -> None:
    model, budget, tools = answering(), 500, [timetable]
    agent = create_agent(
        model,
        tools,
        system_prompt=SYSTEM,
        middleware=[ContextCompressionMiddleware(budget, method=method)],
        checkpointer=InMemorySaver(),
    )
    agent.invoke(human(FACT), thread("a"))
    for turn in range(44):
        text = f"Stop {turn}: it rained, the tram was late and the café had closed. What next?"
        state = agent.invoke(human(text), thread("a"))
        assert model.sent[-1][0] == SystemMessage(SYSTEM)
        assert model.sent[-1][-1].text == text
    assert len(state["messages"]) == 90
    assert state["messages"][0].content == FACT
    assert max(tokens(sent, tools) for sent in model.sent) <= budget
    assert len(model.sent[-1]) < 45
    agent.invoke(human("What is my cat called?"), thread("a"))
    assert "Tom" in said(model.sent[-1])
    assert tokens(model.sent[-1], tools) <= budget


def test_all_of_the_budget_is_used_before_anything_is_cut() -> None:
    middleware = ContextCompressionMiddleware(1000)
    longest = 0
    for turns in range(1, 40):
        messages = [*chat(turns), HumanMessage("And now?")]
        passed = sent_for(middleware, messages)
        if len(passed) < len(messages):
            break
        longest = tokens(passed)
    assert 850 < longest <= 1000


def test_async_gives_what_sync_gives() -> None:
    def agent(model: Scripted) -> Any:
        return create_agent(
            model,
            [timetable],
            middleware=[ContextCompressionMiddleware(400)],
            checkpointer=InMemorySaver(),
        )

    async def run(agent: Any) -> None:
        for turn in range(12):
            await agent.ainvoke(human(f"Turn {turn}: where is track {turn}?"), thread("a"))

    script = [calls("Rome", "Oslo"), "They leave at a quarter past.", calls("Bern")]
    models = answering(*script), answering(*script)
    waited, called = agent(models[0]), agent(models[1])
    asyncio.run(run(waited))
    for turn in range(12):
        called.invoke(human(f"Turn {turn}: where is track {turn}?"), thread("a"))
    contents = [[[m.content for m in sent] for sent in model.sent] for model in models]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 14


def test_calls_in_parallel_stay_with_their_results_through_a_long_run() -> None:
    cities = [f"city{n}" for n in range(24)]
    pairs = [calls(a, b) for a, b in zip(cities[::2], cities[1::2], strict=True)]
    model, budget = answering(*pairs, "Done."), 1200
    agent = create_agent(
        model,
        [timetable],
        middleware=[ContextCompressionMiddleware(budget)],
        checkpointer=InMemorySaver(),
    )
    state = agent.invoke(human("Compare the trains of all these cities."), thread("a"))
    assert len(model.sent) == 13
    assert tokens(state["messages"]) > 3 * budget
    for sent in model.sent:
        assert_paired(sent)
        assert tokens(sent, [timetable]) <= budget
        assert "Compare the trains of all these cities." in said(sent)
    for sent, pair in zip(model.sent[1:], pairs, strict=True):
        assert [m.tool_call_id for m in sent[-2:]] == [c["id"] for c in pair.tool_calls]


def test_it_works_beside_the_middleware_that_shortens_outputs() -> None:
    cities = [f"city{n}" for n in range(24)]
    pairs = [calls(a, b) for a, b in zip(cities[::2], cities[1::2], strict=True)]
    model = answering(*pairs, "Done.")
    agent = create_agent(
        model,
        [timetable],
        middleware=[
            ContextCompressionMiddleware(700),
            ToolOutputCompressionMiddleware(method="lexical", trigger_tokens=60, target_tokens=40),
        ],
        checkpointer=InMemorySaver(),
    )
    state = agent.invoke(human("Which train leaves first?"), thread("a"))
    outputs = [m for m in state["messages"] if isinstance(m, ToolMessage)]
    assert [m.artifact for m in outputs] == [timetable.invoke({"city": c}) for c in cities]
    for sent in model.sent:
        assert_paired(sent)
        assert tokens(sent, [timetable]) <= 700
    assert tokens(state["messages"]) > 1000


def test_threads_do_not_see_each_other() -> None:
    model = answering()
    agent = create_agent(
        model, [], middleware=[ContextCompressionMiddleware(300)], checkpointer=InMemorySaver()
    )
    agent.invoke(human(FACT), thread("a"))
    for turn in range(15):
        for name in "ab":
            agent.invoke(human(f"{name}{turn}: the tram was late and it rained."), thread(name))
    agent.invoke(human("What is my cat called?"), thread("b"))
    assert "Tom" not in said(model.sent[-1])
    assert "a3:" not in said(model.sent[-1])
    agent.invoke(human("What is my cat called?"), thread("a"))
    assert "Tom" in said(model.sent[-1])


@pytest.mark.parametrize("max_threads", [1, 2])
def test_a_forgotten_thread_is_read_again(max_threads) -> None:
    def contents(middleware: ContextCompressionMiddleware) -> Any:
        model = answering()
        agent = create_agent(model, [], middleware=[middleware], checkpointer=InMemorySaver())
        for turn in range(12):
            for name in "abc":
                agent.invoke(human(f"{name}{turn}: the tram was late, it rained."), thread(name))
        return [tokens(sent) for sent in model.sent], said(model.sent[-1])

    few, last = contents(ContextCompressionMiddleware(250, max_threads=max_threads))
    assert max(few) <= 250
    assert "c11:" in last
    assert "a" + "11:" not in last


def test_a_fork_knows_nothing_of_the_branch_that_was_left() -> None:
    model = answering()
    agent = create_agent(
        model, [], middleware=[ContextCompressionMiddleware(300)], checkpointer=InMemorySaver()
    )
    for turn in range(12):
        agent.invoke(human(f"Turn {turn}: the tram was late, and it rained."), thread("a"))
    before = agent.get_state(thread("a"))
    agent.invoke(human(FACT), thread("a"))
    for turn in range(12, 20):
        agent.invoke(human(f"Turn {turn}: the tram was late, and it rained."), thread("a"))
    agent.invoke(human("What is my cat called?"), thread("a"))
    assert "Tom" in said(model.sent[-1])
    agent.invoke(human("What is my cat called?"), before.config)
    assert "Tom" not in said(model.sent[-1])
    assert "Turn 12" not in said(model.sent[-1])
    assert tokens(model.sent[-1]) <= 300


def test_an_edited_message_is_seen_as_it_is_now() -> None:
    model = answering()
    agent = create_agent(
        model, [], middleware=[ContextCompressionMiddleware(300)], checkpointer=InMemorySaver()
    )
    state = agent.invoke(human(FACT), thread("a"))
    for turn in range(12):
        agent.invoke(human(f"Turn {turn}: the tram was late, and it rained."), thread("a"))
    edited = HumanMessage("My cat is called Bella.", id=state["messages"][0].id)
    agent.update_state(thread("a"), {"messages": [edited]})
    agent.invoke(human("What is my cat called?"), thread("a"))
    assert "Bella" in said(model.sent[-1])
    assert "Tom" not in said(model.sent[-1])


def test_another_middleware_goes_on_from_the_same_checkpoint() -> None:
    saver, model = InMemorySaver(), answering()
    for turn in range(20):
        agent = create_agent(
            model, [], middleware=[ContextCompressionMiddleware(300)], checkpointer=saver
        )
        agent.invoke(human(f"Turn {turn}: the tram was late, and it rained."), thread("a"))
    assert max(tokens(sent) for sent in model.sent) <= 300
    assert len(agent.get_state(thread("a")).values["messages"]) == 40


def test_without_a_checkpointer_each_call_stands_alone() -> None:
    model = answering()
    agent = create_agent(model, [], middleware=[ContextCompressionMiddleware(300)])
    messages = [*chat(30), HumanMessage("What is platform 3 like?")]
    agent.invoke({"messages": messages})
    assert tokens(model.sent[-1]) <= 300
    assert "It has 3 benches" in said(model.sent[-1])


def test_the_beginning_stays_until_the_memory_is_full_again() -> None:
    model = answering()
    agent = create_agent(
        model, [], middleware=[ContextCompressionMiddleware(1500)], checkpointer=InMemorySaver()
    )
    for turn in range(80):
        agent.invoke(human(f"Stop {turn}: it rained and the tram was late again."), thread("a"))
    full = model.sent[-31:]
    assert all(len(sent) < 80 for sent in full)
    kept = 0
    for before, after in pairwise(full):
        # All but the quotation and the question are there again, and at the same places.
        old = [m.content for m in before if "lc_source" not in m.additional_kwargs][:-1]
        kept += [m.content for m in after][: len(old)] == old
    assert kept >= 12


def test_what_is_long_is_compressed_once() -> None:
    done: list[str] = []

    class Counting(Lexical):
        def compress(self, passages: Any, **options: Any) -> Any:
            if not options["query"]:
                done.append(passages[0].text)
            return super().compress(passages, **options)

    model = answering()
    agent = create_agent(
        model,
        [],
        middleware=[ContextCompressionMiddleware(2000, method=Counting())],
        checkpointer=InMemorySaver(),
    )
    for turn in range(30):
        story = " ".join(f"On stop {turn} passenger {n} bought bread." for n in range(20))
        agent.invoke(human(story), thread("a"))
    assert len(done) == len(set(done)) >= 20


def test_images_and_other_blocks_are_untouched() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    thought = {"type": "reasoning", "reasoning": "It is a cat.", "extras": {"signature": "c2ln"}}
    messages = [
        *chat(40),
        HumanMessage([{"type": "text", "text": "What is on this picture?"}, image, "Say it."]),
        AIMessage([thought, {"type": "text", "text": "A cat."}]),
        HumanMessage("What colour has the cat on the picture?"),
    ]
    passed = sent_for(ContextCompressionMiddleware(2600, recall=0.1), messages)
    assert len(passed) < len(messages)
    shown = [m for m in passed if isinstance(m.content, list)]
    assert shown == messages[-3:-1]
    assert all(a is b for a, b in zip(shown, messages[-3:-1], strict=True))


def test_a_shortened_message_keeps_all_but_its_text() -> None:
    long = " ".join(f"Shop {n} sells bread and opens at {n}." for n in range(200))
    call = calls("x")
    output = ToolMessage(
        [{"type": "text", "text": long}, {"type": "image", "base64": "aGk="}],
        tool_call_id="x",
        id="t1",
        name="timetable",
        artifact={"rows": 7},
        additional_kwargs={"mine": 1},
    )
    messages = [HumanMessage("Where is bread?"), call, output]
    *_, shown = sent_for(ContextCompressionMiddleware(2000), messages)
    assert shown.content[1] == output.content[1]
    assert COUNTER.count(shown.content[0]["text"]) < 400
    assert shown.model_copy(update={"content": output.content}) == output
    assert output.content[0]["text"] == long


def test_a_turn_of_a_megabyte_is_brought_into_the_budget() -> None:
    story = " ".join(f"Chapter {n} tells of a storm and of ship {n}." for n in range(24_000))
    assert len(story) > 1_000_000
    middleware = ContextCompressionMiddleware(1000)
    passed = sent_for(middleware, [HumanMessage(story), AIMessage("Oh."), HumanMessage("Go on.")])
    assert tokens(passed) <= 1000
    assert passed[-1].text == "Go on."
    # A last message larger than the budget is compressed as well.
    (passed,) = sent_for(middleware, [HumanMessage(story, id="x")])
    assert tokens([passed]) <= 1000
    assert passed.id == "x"
    assert "Chapter" in passed.text


def test_empty_messages_and_the_same_id_twice_do_no_harm() -> None:
    messages = [HumanMessage("", id="1"), AIMessage("", id="1"), *chat(30), *chat(30)]
    messages.append(HumanMessage("And now?", id="1"))
    passed = sent_for(ContextCompressionMiddleware(300), messages)
    assert tokens(passed) <= 300
    assert passed[-1] is messages[-1]
    assert sent_for(ContextCompressionMiddleware(300), []) == []


BROKEN = {
    "no open call": [*chat(20), ToolMessage("Noon.", tool_call_id="x"), HumanMessage("When?")],
    "FunctionMessage": [*chat(20), FunctionMessage("Noon.", name="f"), HumanMessage("When?")],
    "JSON": [*chat(20), HumanMessage([{"type": "text", "text": "?"}, {"type": "x", "x": b"x"}])],
    "cannot be compressed": [
        *chat(20),
        calls("x " * 900),
        ToolMessage("Noon.", tool_call_id="x " * 900),
    ],
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_cannot_be_followed_is_sent_as_it_is_with_a_warning(fault, caplog) -> None:
    messages = BROKEN[fault]
    middleware = ContextCompressionMiddleware(300)
    with caplog.at_level(logging.WARNING, "laconic"):
        passed = sent_for(middleware, messages)
    assert all(a is b for a, b in zip(passed, messages, strict=True))
    assert fault in caplog.text
    # What comes after is bounded again.
    assert tokens(sent_for(middleware, [*chat(20), HumanMessage("When?")])) <= 300


def test_where_system_and_tools_take_all_there_is_a_warning(caplog) -> None:
    messages = [*chat(20), HumanMessage("When?")]
    with caplog.at_level(logging.WARNING, "laconic"):
        passed = sent_for(
            ContextCompressionMiddleware(50),
            messages,
            system_message=SystemMessage(SYSTEM * 9),
            tools=[timetable, {"type": "web_search"}],
        )
    assert passed == messages
    assert "system message and the tools take" in caplog.text


@pytest.mark.parametrize("strategy", [AutoStrategy, ProviderStrategy, ToolStrategy])
def test_the_form_of_the_response_is_counted(strategy: Any) -> None:
    class Journey(BaseModel):
        """Where somebody goes, and when the train leaves that takes them there."""

        city: str = Field(description="The city, as it is written on the timetable.")
        hour: int = Field(description="The hour of the day, from 0 to 23.")

    messages = [*chat(40), HumanMessage("?")]
    form = strategy(Journey)
    passed = sent_for(ContextCompressionMiddleware(600), messages, response_format=form)
    assert tokens(passed) <= 600 - COUNTER.count(json.dumps(Journey.model_json_schema()))


def test_a_system_prompt_that_changes_is_counted_each_time() -> None:
    middleware, messages = ContextCompressionMiddleware(600), chat(40)
    for length in (1, 30, 10, 39, 2):
        system = SystemMessage("Be kind. " * length)
        passed = sent_for(middleware, [*messages, HumanMessage("?")], system_message=system)
        assert tokens([system, *passed]) <= 600


def test_when_a_compressor_fails_the_budget_is_kept() -> None:
    class Broken(Lexical):
        def score(self, request: Any) -> Any:
            raise RuntimeError("out of memory")

    long = " ".join(f"Shop {n} sells bread and opens at {n}." for n in range(200))
    passed = sent_for(ContextCompressionMiddleware(300, method=Broken()), [HumanMessage(long)])
    assert tokens(passed) <= 300


def test_when_a_counter_fails_nothing_is_lost(caplog) -> None:
    def count(text: str) -> int:
        if "banana" in text:
            raise RuntimeError("no such token")
        return len(text) // 4

    messages = [*chat(20), HumanMessage("banana?")]
    with caplog.at_level(logging.WARNING, "laconic"):
        passed = sent_for(ContextCompressionMiddleware(300, counter=count), messages)
    assert passed == messages
    assert "no such token" in caplog.text


def test_only_the_model_is_heard_in_a_stream() -> None:
    for persist in (False, True):
        agent = create_agent(
            answering(),
            [],
            middleware=[ContextCompressionMiddleware(300, persist=persist)],
            checkpointer=InMemorySaver(),
        )
        for turn in range(12):
            text = f"Turn {turn}: the tram was late, and it rained all day long."
            stream = agent.stream(human(text), thread("a"), stream_mode="messages")
            heard = "".join(str(chunk.text) for chunk, _ in stream)
            assert heard == (
                f"That was answer {turn + 1}: trains run daily, and trams every ten minutes."
            )


@pytest.mark.parametrize("is_async", [False, True])
def test_persist_bounds_the_checkpoint(is_async) -> None:
    model = answering(calls("Rome"), "At a quarter past.")
    agent = create_agent(
        model,
        [timetable],
        system_prompt=SYSTEM,
        middleware=[ContextCompressionMiddleware(600, persist=True)],
        checkpointer=InMemorySaver(),
    )

    def ask(text: str) -> Any:
        if is_async:
            return asyncio.run(agent.ainvoke(human(text), thread("a")))
        return agent.invoke(human(text), thread("a"))

    sizes, seen = [], set()
    for turn in range(40):
        messages = ask(f"Turn {turn}: the tram was late, and it rained.")["messages"]
        assert_paired(messages)
        ids = [message.id for message in messages]
        assert len(set(ids)) == len(ids)
        assert all("lc_source" not in message.additional_kwargs for message in messages)
        sizes.append(len(messages))
        seen.update(ids)
    assert max(tokens(sent, [timetable]) for sent in model.sent) <= 600
    assert tokens(messages[:-1]) <= 600
    assert max(sizes) < 40 < len(seen)
    # It is rewritten now and then, not with each turn.
    assert sum(after < before for before, after in pairwise(sizes)) < 12


def test_persist_does_nothing_where_nothing_is_to_be_done() -> None:
    middleware = ContextCompressionMiddleware(300, persist=True)
    update = middleware.before_model({"messages": [*chat(30), HumanMessage("?")]}, None)
    _, *shown = update["messages"]
    assert tokens(shown) <= 300
    assert middleware.before_model({"messages": shown}, None) is None
    quiet = ContextCompressionMiddleware(300)
    assert quiet.before_model({"messages": chat(30)}, None) is None


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"budget": 0}, BudgetError),
        ({"budget": 100, "recall": 2}, InputError),
        ({"budget": 100, "method": "longllmlingua"}, InputError),
        ({"budget": 100, "max_threads": 0}, InputError),
    ],
)
def test_wrong_settings_are_refused_at_once(fields, error) -> None:
    with pytest.raises(error):
        ContextCompressionMiddleware(**fields)


def test_a_call_that_a_cancelled_run_left_open_does_not_end_the_budget(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = answering()
    agent = create_agent(
        model, middleware=[ContextCompressionMiddleware(500)], checkpointer=InMemorySaver()
    )
    agent.update_state(thread("a"), {"messages": [HumanMessage("Hi."), calls("Rome", "Oslo")]})
    for day in range(40):
        agent.invoke(human(f"On day {day} we walked far and wide in the wet rain."), thread("a"))
        assert tokens(model.sent[-1]) <= 500
    assert_paired(model.sent[-1])
    assert "Rome" in caplog.text
