from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from laconic.core.budget import TokenCounter
from laconic.core.training.llmlingua2 import collect as module
from laconic.core.training.llmlingua2.collect import collect, read_pairs, still_to_ask
from laconic.core.training.llmlingua2.documents import Document, cut, read_documents
from laconic.core.training.llmlingua2.requests import (
    INSTRUCTION,
    Chunk,
    Instruction,
    chunk,
    estimate,
)
from laconic.errors import InputError, ModelError

TEXT = "The sky is blue. Paris is the capital of France. Fish swim in the sea. Cats sleep."
WORDS = TokenCounter("words", lambda text: len(text.split()))
CHARACTERS = TokenCounter("characters", len)


def pieces(text: str, counter: TokenCounter, most: int) -> list[str]:
    return [text[slice(*span)] for span in cut(text, counter, most)]


def shorter(_: str, user: str) -> str:
    """Answer with the words that are longer than three letters."""
    return " ".join(word for word in user.rpartition("\n")[2].split() if len(word) > 3)


def chunks(count: int) -> list[Chunk]:
    documents = [Document(f"text {i}", f"Number {i} is a text about cats.") for i in range(count)]
    return chunk(documents)


class TestCutting:
    def test_chunks_end_with_sentences_and_are_as_long_as_may_be(self) -> None:
        assert pieces(TEXT, WORDS, 10) == [
            "The sky is blue. Paris is the capital of France. ",
            "Fish swim in the sea. Cats sleep.",
        ]

    def test_a_sentence_that_is_too_long_is_cut_behind_words_and_a_word_between_characters(
        self,
    ) -> None:
        assert pieces("A b c d e off. Go on.", WORDS, 4) == ["A b c d ", "e off. ", "Go on."]
        assert pieces("A b. abcdefghij k.", CHARACTERS, 5) == ["A b. ", "abcde", "fghij ", "k."]

    @given(st.text(st.sampled_from("ab. \n!?é我。"), max_size=80), st.integers(1, 20))
    @example("", 1)
    @example("a" * 300, 7)
    def test_chunks_tile_the_text_and_keep_to_the_limit(self, text: str, most: int) -> None:
        spans = cut(text, CHARACTERS, most)
        assert "".join(text[slice(*span)] for span in spans) == text
        assert all(len(text[slice(*span)].strip()) <= most for span in spans)

    def test_long_texts_are_cut_without_counting_everything_again_and_again(self) -> None:
        counted = 0

        def count(text: str) -> int:
            nonlocal counted
            counted += len(text)
            return len(text)

        text = "x" * 20_000 + TEXT * 100
        spans = cut(text, TokenCounter("characters", count), 512)
        assert max(end - start for start, end in spans) <= 512
        assert counted < 40 * len(text)

    def test_a_chunk_of_no_tokens_is_refused(self) -> None:
        with pytest.raises(InputError, match="at least 1 token, got 0"):
            cut(TEXT, WORDS, 0)


class TestDocuments:
    def test_files_and_folders_of_every_kind(self, tmp_path: Path) -> None:
        (tmp_path / "texts" / "more").mkdir(parents=True)
        (tmp_path / "texts" / "b.txt").write_text("B.", encoding="utf-8")
        (tmp_path / "texts" / "more" / "a.txt").write_text("A.", encoding="utf-8-sig")
        (tmp_path / "texts" / "blank.txt").write_text(" \n", encoding="utf-8")
        (tmp_path / "texts" / "no.csv").write_text("C", encoding="utf-8")
        (tmp_path / "note.md").write_text("# N", encoding="utf-8")
        with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as stream:
            stream.write('{"text": "one"}\n\n{"text": "two"}\n')
        names = ("texts", "note.md", "rows.jsonl.gz")
        assert read_documents([tmp_path / name for name in names]) == [
            Document("b.txt", "B."),
            Document("more/a.txt", "A."),
            Document("note.md", "# N"),
            Document("rows.jsonl.gz:1", "one"),
            Document("rows.jsonl.gz:3", "two"),
        ]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"text": "a"}\n{"text": ', r"rows.jsonl:2: no JSON"),
            ('{"text": "a"}\n["a"]', r"rows.jsonl:2: expected an object, got list"),
            ('{"body": "a", "id": 1}', r"rows.jsonl:1: needs a text under 'text'; .* body, id"),
            ('{"text": 1}', r"rows.jsonl:1: needs a text under 'text'"),
            ('{"text": "\xff"}', r"cannot read .*rows.jsonl"),
            ("\n", "there is no document"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "rows.jsonl").write_bytes(content.encode("latin-1"))
        with pytest.raises(InputError, match=message):
            read_documents([tmp_path / "rows.jsonl"])

    @pytest.mark.parametrize("damage", [slice(0, 40), slice(0, 0), slice(20, None)])
    def test_a_damaged_archive_is_named(self, tmp_path: Path, damage: slice) -> None:
        packed = bytearray(gzip.compress(b'{"text": "one, two, three, four"}\n' * 3))
        packed[20:24] = b"\0\0\0\0"
        (tmp_path / "rows.jsonl.gz").write_bytes(packed[damage])
        with pytest.raises(InputError, match=r"rows.jsonl.gz|there is no document"):
            read_documents([tmp_path / "rows.jsonl.gz"])

    def test_what_is_not_there_is_named(self, tmp_path: Path) -> None:
        for name in ("no.jsonl", "no.txt"):
            with pytest.raises(InputError, match=f"cannot read .*{name}"):
                read_documents([tmp_path / name])


class TestRequests:
    def test_a_chunk_is_known_by_its_text_and_instruction(self) -> None:
        documents = [Document("a", "Same text."), Document("b", "Same text."), Document("c", "C.")]
        first = chunk(documents)
        assert [(one.document, one.text) for one in first] == [("a", "Same text."), ("c", "C.")]
        assert chunk(documents[1:])[0].id == first[0].id
        other = chunk(documents, instruction=Instruction("Be brief.", "{text}"))
        assert not {one.id for one in first} & {one.id for one in other}

    def test_the_text_is_put_in_as_it_is(self) -> None:
        text = "{braces} and \\1 and {text}"
        system, user = INSTRUCTION.about(text)
        assert user.endswith(f"\n{text}")
        assert system
        with pytest.raises(InputError, match=r"needs \{text\}"):
            Instruction("a", "b")

    def test_the_estimate_counts_what_is_sent(self) -> None:
        some = chunk([Document("a", TEXT)], counter=WORDS)
        sent: list[str] = []
        cost = estimate(some, counter=WORDS, rate=0.5, price_in=2.0, price_out=10.0)
        for one in some:
            sent += INSTRUCTION.about(one.text)
        tokens = sum(len(told.split()) for told in sent)
        assert (cost.chunks, cost.tokens_in, cost.tokens_out) == (1, tokens, 8)
        assert cost.dollars == pytest.approx((2 * tokens + 10 * 8) / 1e6)
        assert "1 chunks to send" in str(cost)
        assert "(words), about $0.00" in str(cost)
        assert estimate(some, price_in=1.0).dollars is None
        assert "no price given" in str(estimate(some))


class TestCollecting:
    def test_each_answer_is_a_line(self, tmp_path: Path) -> None:
        some, out = chunks(20), tmp_path / "new" / "pairs.jsonl"
        result = collect(some, shorter, out)
        assert (result.written, result.failed) == (20, ())
        assert str(result) == "20 pairs collected"
        pairs = {pair.id: pair for pair in read_pairs(out)}
        assert len(pairs) == 20
        for one in some:
            pair = pairs[one.id]
            assert (pair.origin, pair.document) == (one.text, one.document)
            assert pair.compressed == "Number text about cats."

    def test_requests_run_at_once_but_no_more_than_asked_for(self, tmp_path: Path) -> None:
        together = threading.Barrier(3, timeout=30)
        lock, running, most = threading.Lock(), 0, 0

        def model(_: str, user: str) -> str:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            together.wait()
            with lock:
                running -= 1
            return "a"

        collect(chunks(9), model, tmp_path / "pairs.jsonl", parallel=3)
        assert most == 3

    def test_a_stopped_run_sends_only_what_is_missing(self, tmp_path: Path) -> None:
        some, out, asked = chunks(30), tmp_path / "pairs.jsonl", []

        def stopped(system: str, user: str) -> str:
            if len(asked) >= 10:
                raise KeyboardInterrupt
            asked.append(user)
            return shorter(system, user)

        with pytest.raises(KeyboardInterrupt):
            collect(some, stopped, out, parallel=2)
        held = {pair.id for pair in read_pairs(out)}
        assert 10 <= len(held) == len(asked) < 13
        missing = still_to_ask(some, out)
        assert [one.id for one in missing] == [one.id for one in some if one.id not in held]
        sent: list[str] = []

        def model(system: str, user: str) -> str:
            sent.append(user)
            return shorter(system, user)

        assert collect(some, model, out).written == len(missing)
        assert sorted(sent) == sorted(INSTRUCTION.about(one.text)[1] for one in missing)
        assert len(read_pairs(out)) == len({pair.id for pair in read_pairs(out)}) == 30
        assert collect(some, model, out).written == 0
        assert len(sent) == len(missing)

    @pytest.mark.parametrize("cut_off", [1, 2, 30])
    def test_a_line_that_was_half_written_is_asked_for_again(
        self, tmp_path: Path, cut_off: int
    ) -> None:
        some, out = chunks(5), tmp_path / "pairs.jsonl"
        collect(some, shorter, out, parallel=1)
        whole = out.read_bytes()
        out.write_bytes(whole[:-cut_off])
        # Without its line break alone a row is whole.
        again = 0 if cut_off == 1 else 1
        assert len(still_to_ask(some, out)) == again
        assert out.read_bytes() == whole[:-cut_off]
        assert collect(some, shorter, out).written == again
        assert out.read_bytes() == whole

    @pytest.mark.parametrize("line", ["{", "[]", '{"text": "a"}'])
    def test_a_file_of_something_else_is_left_alone(self, tmp_path: Path, line: str) -> None:
        out = tmp_path / "pairs.jsonl"
        out.write_text(f'{line}\n{{"id": "a"}}\n', encoding="utf-8")
        before = out.read_bytes()
        with pytest.raises(InputError, match=r"pairs.jsonl:1: "):
            collect(chunks(2), shorter, out)
        assert out.read_bytes() == before

    def test_a_request_that_fails_is_tried_again(self, tmp_path: Path) -> None:
        tries: dict[str, int] = {}

        def model(system: str, user: str) -> str:
            tries[user] = tries.get(user, 0) + 1
            if tries[user] == 1:
                raise TimeoutError("slow")
            return " \n" if tries[user] == 2 else shorter(system, user)

        result = collect(chunks(6), model, tmp_path / "pairs.jsonl", pause=0.0)
        assert (result.written, result.failed) == (6, ())
        assert set(tries.values()) == {3}

    def test_a_chunk_that_never_works_loses_no_other(self, tmp_path: Path) -> None:
        some, out = chunks(12), tmp_path / "pairs.jsonl"

        def model(system: str, user: str) -> str:
            if "Number 3 " in user:
                raise ValueError("refused")
            return "" if "Number 5 " in user else shorter(system, user)

        result = collect(some, model, out, attempts=2, pause=0.0)
        assert result.written == 10
        assert sorted(result.failed) == [
            ("text 3", "ValueError: refused"),
            ("text 5", "an empty answer"),
        ]
        assert "10 pairs collected, 2 chunks without an answer" in str(result)
        assert [one.document for one in still_to_ask(some, out)] == ["text 3", "text 5"]
        # The same two fail again, which says nothing against the model.
        assert collect(some, model, out, attempts=1).written == 0

    def test_a_model_that_answers_nothing_is_not_asked_for_ever(self, tmp_path: Path) -> None:
        asked = []

        def model(system: str, user: str) -> str:
            asked.append(user)
            if len(asked) > 10:
                raise PermissionError("no such key")
            return shorter(system, user)

        out = tmp_path / "pairs.jsonl"
        with pytest.raises(ModelError, match="PermissionError: no such key; 10 pairs were added"):
            collect(chunks(200), model, out, attempts=1, parallel=1)
        assert len(read_pairs(out)) == 10
        assert len(asked) == 10 + module._GIVE_UP
        with pytest.raises(ModelError, match="3 chunks failed, the last with PermissionError"):
            collect(chunks(3), model, tmp_path / "other.jsonl", pause=0.0)

    @pytest.mark.parametrize("options", [{"parallel": 0}, {"attempts": 0}])
    def test_options_out_of_range_are_refused(self, tmp_path: Path, options: Any) -> None:
        with pytest.raises(InputError, match="at least 1"):
            collect(chunks(1), shorter, tmp_path / "pairs.jsonl", **options)
        assert not (tmp_path / "pairs.jsonl").exists()


def test_pairs_from_elsewhere_are_read(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows: list[Any] = [{"origin": "A b.", "compressed": "b"}, {"origin": "C.", "compressed": "C"}]
    rows[1] |= {"id": 7, "document": 3}
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    first, second = read_pairs(file)
    assert first.id == first.document
    assert (second.id, second.document) == ("7", "3")
    file.write_text('{"origin": "A"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"pairs.jsonl:1: needs a text under 'compressed'"):
        read_pairs(file)
