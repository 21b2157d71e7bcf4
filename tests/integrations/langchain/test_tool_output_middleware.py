from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.tools import ToolRuntime
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import Field, ValidationError

from laconic.core import TokenCounter
from laconic.core.methods.lexical import Lexical
from laconic.errors import InputError
from laconic.integrations._settings import CompressionSettings
from laconic.integrations.langchain import ToolOutputCompressionMiddleware
from laconic.integrations.langchain.tool_output_middleware import Shortener

COUNTER = TokenCounter.of(None)
QUESTION = "When does the train to Bern leave?"
ROWS = [f"The train to {city} leaves at {hour}:15." for hour, city in enumerate(["Oslo"] * 60)]
ROWS[31] = "The train to Bern leaves at 7:40."
TEXT = " ".join(ROWS)
RECORDS = [{"id": n, "track": n % 7, "note": f"{row} Mind the gap."} for n, row in enumerate(ROWS)]
IMAGE = {"type": "image", "base64": "aGVsbG8=", "mime_type": "image/png"}


class Scripted(GenericFakeChatModel):
    """Answers as it is told, and records what it was sent."""

    sent: list[list[BaseMessage]] = Field(default_factory=list)

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.sent.append(list(messages))
        return super()._generate(messages, *args, **kwargs)


@tool
def prose() -> str:
    """Give prose."""
    return TEXT


@tool
def table() -> list[dict[str, Any]]:
    """Give records, which LangChain writes as JSON."""
    return RECORDS


@tool
def numbers() -> list[int]:
    """Give JSON without strings."""
    return list(range(900))


@tool(response_format="content_and_artifact")
def with_artifact() -> tuple[str, Any]:
    """Give prose and an artifact."""
    return TEXT, {"rows": 60}


@tool
def blocks() -> list[Any]:
    """Give prose and an image."""
    return [{"type": "text", "text": TEXT}, IMAGE]


@tool
def brief() -> str:
    """Give little."""
    return "7:40"


@tool
def failing() -> str:
    """Fail at length."""
    raise ToolException(TEXT)


failing.handle_tool_error = True


@tool
def commanding(runtime: ToolRuntime) -> Command[Any]:
    """Give a command."""
    message = ToolMessage(TEXT, tool_call_id=runtime.tool_call_id)
    return Command(update={"messages": [message]})


TOOLS = [prose, table, numbers, with_artifact, blocks, brief, failing, commanding]


def outputs(
    middleware: ToolOutputCompressionMiddleware, *names: str, is_async: bool = False
) -> dict[str, ToolMessage]:
    """What tools, called in parallel, leave in the state of an agent; by their names."""
    calls = [{"id": f"call {name}", "name": name, "args": {}} for name in names]
    model = Scripted(messages=iter([AIMessage("", tool_calls=calls), "At 7:40."]))
    agent = create_agent(model, TOOLS, middleware=[middleware], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "a"}}
    given: Any = {"messages": [HumanMessage(QUESTION)]}
    waited = asyncio.run(agent.ainvoke(given, config)) if is_async else None
    state = waited or agent.invoke(given, config)
    found = [m for m in state["messages"] if isinstance(m, ToolMessage)]
    assert [m.content for m in model.sent[-1] if isinstance(m, ToolMessage)] == [
        m.content for m in found
    ]
    assert [m.tool_call_id for m in found] == [call["id"] for call in calls]
    return {m.tool_call_id.removeprefix("call "): m for m in found}


def lexical(**fields: Any) -> ToolOutputCompressionMiddleware:
    return ToolOutputCompressionMiddleware(**{"method": "lexical", "trigger_tokens": 100, **fields})


@pytest.mark.parametrize("is_async", [False, True])
def test_a_long_output_is_shortened_for_the_question_and_kept_whole_aside(is_async) -> None:
    output = outputs(lexical(target_tokens=60), "prose", is_async=is_async)["prose"]
    assert "The train to Bern leaves at 7:40." in output.text
    assert COUNTER.count(str(output.text)) <= 60
    assert output.artifact == TEXT
    assert (output.name, output.status) == ("prose", "success")
    assert output.additional_kwargs == {
        "compression": {
            "tokens_before": COUNTER.count(TEXT),
            "tokens_after": COUNTER.count(str(output.text)),
            "counter": COUNTER.name,
        }
    }


def test_an_artifact_of_the_tool_stays_and_the_whole_output_is_found_beside() -> None:
    output = outputs(lexical(rate=0.2), "with_artifact")["with_artifact"]
    assert output.artifact == {"rows": 60}
    assert len(str(output.text)) < len(TEXT) / 2
    assert output.additional_kwargs["compression"]["original"] == TEXT


def test_json_stays_json_of_the_same_structure() -> None:
    output = outputs(lexical(rate=0.8), "table")["table"]
    left = json.loads(str(output.text))
    assert [(r["id"], r["track"]) for r in left] == [(r["id"], r["track"]) for r in RECORDS]
    assert all(new["note"] in old["note"] for new, old in zip(left, RECORDS, strict=True))
    assert "Bern" in left[31]["note"]
    before, after = COUNTER.count(json.dumps(RECORDS)), COUNTER.count(str(output.text))
    assert after <= 0.8 * before
    assert json.loads(output.artifact) == RECORDS


def test_json_whose_structure_takes_more_than_the_target_is_shortened_as_far_as_it_goes() -> None:
    got = outputs(lexical(target_tokens=50), "table", "numbers")
    left = json.loads(str(got["table"].text))
    assert [record["id"] for record in left] == list(range(60))
    facts = got["table"].additional_kwargs["compression"]
    assert 50 < facts["tokens_after"] < facts["tokens_before"]
    assert json.loads(str(got["numbers"].text)) == list(range(900))
    assert got["numbers"].artifact is None


def test_blocks_that_are_no_text_are_untouched() -> None:
    output = outputs(lexical(target_tokens=60), "blocks")["blocks"]
    text, image = output.content
    assert image == IMAGE
    assert "7:40" in text["text"]
    assert COUNTER.count(text["text"]) <= 60
    assert output.artifact == [{"type": "text", "text": TEXT}, IMAGE]


def test_errors_commands_short_and_excluded_outputs_are_untouched() -> None:
    middleware = lexical(target_tokens=20, exclude_tools=["prose"])
    got = outputs(middleware, "failing", "commanding", "brief", "prose", "blocks")
    assert got["failing"].content == TEXT
    assert got["failing"].status == "error"
    assert got["commanding"].content == TEXT
    assert got["brief"].content == "7:40"
    assert got["prose"].content == TEXT
    touched = {name for name, m in got.items() if "compression" in m.additional_kwargs}
    assert touched == {"blocks"}


def test_the_query_can_come_from_the_call() -> None:
    asked: list[str] = []

    def query(request: Any) -> str:
        asked.append(request.tool_call["name"])
        return "trains at 12:15"

    output = outputs(lexical(target_tokens=30, query_from=query), "prose")["prose"]
    assert asked == ["prose"]
    assert "12:15" in output.text


def test_calls_in_parallel_are_each_shortened(caplog) -> None:
    with caplog.at_level(logging.WARNING, "laconic"):
        got = outputs(lexical(rate=0.3), "prose", "table", "with_artifact", "blocks")
    assert all("compression" in message.additional_kwargs for message in got.values())
    assert not caplog.records


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), InputError("out of memory")])
def test_when_the_compressor_fails_the_output_is_used_as_it_is(error, caplog) -> None:
    class Broken(Lexical):
        def score(self, request: Any) -> Any:
            raise error

    with caplog.at_level(logging.WARNING, "laconic"):
        output = outputs(lexical(compressor=Broken()), "prose")["prose"]
    assert output.content == TEXT
    assert output.artifact is None
    assert "out of memory" in caplog.text


def test_an_output_of_a_megabyte_is_shortened() -> None:
    @tool
    def prose() -> str:
        """Give much prose."""
        return " ".join(f"The train to Oslo leaves at {n}." for n in range(32_000))

    model = Scripted(
        messages=iter([AIMessage("", tool_calls=[{"id": "1", "name": "prose", "args": {}}]), "Ok"])
    )
    agent = create_agent(model, [prose], middleware=[lexical(target_tokens=200)])
    state = agent.invoke({"messages": [HumanMessage("What leaves at 777?")]})
    output = state["messages"][2]
    assert len(output.artifact) > 1_000_000
    assert COUNTER.count(output.content) <= 200
    assert "at 777." in output.content


def test_a_default_of_all_settings_works_without_a_model_download() -> None:
    output = outputs(ToolOutputCompressionMiddleware(trigger_tokens=10), "prose")["prose"]
    assert 0 < COUNTER.count(str(output.text)) <= 0.5 * COUNTER.count(TEXT)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"trigger_tokens": -1}, InputError),
        ({"trigger_tokens": True}, InputError),
        ({"exclude_tools": "prose"}, InputError),
        ({"target_token": 3}, ValidationError),
        ({"rate": 0.5, "target_tokens": 9}, ValidationError),
    ],
)
def test_wrong_settings_are_refused_at_once(fields, error) -> None:
    with pytest.raises(error):
        ToolOutputCompressionMiddleware(**fields)


def test_blocks_share_one_budget() -> None:
    blocks = [{"type": "text", "text": f"Fox {i} is red. " * 50} for i in range(30)]
    settings = CompressionSettings(method="lexical", target_tokens=200)
    content, facts = Shortener(settings, ()).shortened(ToolMessage(blocks, tool_call_id="1"), "fox")
    assert 0 < facts["tokens_after"] <= 200
    assert all(block["text"] for block in content)
