"""Tasks: the paper's prompt, and what a completion has to look like."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from genal_ray.config import TaskConfig
from genal_ray.errors import UserError
from genal_ray.registry import names
from genal_ray.tasks import Task, build_task
from genal_ray.types import Instance


def single(**fields: object) -> Task:
    return build_task(TaskConfig(domain="movie reviews", **fields))


def pair(**options: object) -> Task:
    return build_task(TaskConfig(kind="text_pair", domain="questions and responses", options=options))


def instance(text: str, text_pair: str | None = None) -> Instance:
    return Instance(id="r-000000", text=text, text_pair=text_pair)


def test_prompt_is_the_papers() -> None:
    """SIGnAL, section 4.1, its SST-2 prompt."""
    examples = (
        "of an authentic feel",
        "that really , really , really good things can come in enormous packages",
        "is listless , witless , and devoid of anything",
    )
    assert single().prompt([instance(text) for text in examples]) == (
        "Based on the following examples of movie reviews, come up with a new example:\n"
        "Example 1: of an authentic feel\n"
        "Example 2: that really , really , really good things can come in enormous packages\n"
        "Example 3: is listless , witless , and devoid of anything\n"
        "New Example:"
    )


def test_instruction_may_be_replaced() -> None:
    task = single(instruction="Write one of {domain} in {one} line:")
    assert task.prompt([instance("a")]).startswith("Write one of movie reviews in {one} line:\nExample 1: a\n")


def test_a_label_is_told_with_its_examples() -> None:
    assert single().prompt([instance("a good film")], "very\npositive") == (
        "Based on the following examples of movie reviews with the label very positive, come up with a new example "
        "with the label very positive:\n"
        "Example 1: a good film\n"
        "New Example:"
    )
    assert pair().prompt([instance("a", "b")], "entailment").splitlines()[0] == (
        "Based on the following examples of questions and responses with the label entailment, come up with a new "
        "example with the label entailment:"
    )


def test_a_label_is_told_below_an_instruction_of_ones_own() -> None:
    lines = single(instruction="Write one of {domain}:").prompt([instance("a")], "positive").splitlines()
    assert lines == [
        "Write one of movie reviews:",
        "All of these examples have the label positive, and so has the new one:",
        "Example 1: a",
        "New Example:",
    ]


def test_examples_take_one_line_each() -> None:
    assert "Example 1: a b\n" in single().prompt([instance("a\r\n\n b ")])
    assert "Example 1: Question: a b Response: c d\n" in pair().prompt([instance("a\nb", "c\td")])


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        (" a fine film .", "a fine film ."),
        ("\n\n a fine film .\nExample 5: another", "a fine film ."),
        ("a \t fine  film", "a fine film"),
        ("for example : this", "for example : this"),
        ("", None),
        (" \n ", None),
        ("x", None),
        ("...", None),
        ("Example 4: a fine film", None),
        ("New Example: a fine film", None),
        ("example:", None),
    ],
)
def test_single_text_is_the_first_line(completion: str, text: str | None) -> None:
    assert single().parse(completion) == (None if text is None else (text, None))


@pytest.mark.parametrize(
    ("completion", "texts"),
    [
        (" Question: Who ? Response: He .", ("Who ?", "He .")),
        ("Question: Who ?\nResponse: He .\nExample 5: x", ("Who ?", "He .")),
        ("Question: Who Response: He\nand she", ("Who", "He")),
        ("Question: Who ?", None),
        ("Question: Response: He", None),
        ("Question: Who Response: ", None),
        ("Who ? He .", None),
        ("Question: A Response: B Question: C Response: D", None),
        ("Question: A\nand\nResponse: B", None),
        ("", None),
    ],
)
def test_pair_has_both_names(completion: str, texts: tuple[str, str] | None) -> None:
    assert pair().parse(completion) == texts


@pytest.mark.parametrize(
    "completion",
    [
        "question: Who ? response: He .",
        "QUESTION: Who ? RESPONSE: He .",
        "Question : Who ? Response : He .",
        "Question:\n  Who ?\n\nResponse:\r\nHe .\n",
        "**Question:** Who ?\n**Response:** He .",
        "**Question**: Who ? **Response**: He .",
        "**Question: Who ?** **Response: He .**",
        "Question 4: Who ? Response 4: He .",
        "Example 4: Question: Who ? Response: He .",
        " New Example:\nQuestion: Who ?\nResponse: He .\n\nNew Example:\nQuestion: What ?",
        "**New Example 2:** Question: Who ? Response: He .",
        '"Question: Who ? Response: He ."',
        "“Question: Who ? Response: He .”\nThis example asks for a person.",
        'Question: "Who ?" Response: "He ."',
        "Question: 'Who ?'\nResponse: “He .”",
    ],
)
def test_pair_in_the_forms_that_models_write(completion: str) -> None:
    assert pair().parse(completion) == ("Who ?", "He .")


@pytest.mark.parametrize(
    ("completion", "texts"),
    [
        ('Question: Who said "I" ? Response: He did .', ('Who said "I" ?', "He did .")),
        ('Question: Who ? Response: "He ."', ("Who ?", '"He ."')),
        ("Question: What was the response: yes ? Response: No .", ("What was the response: yes ?", "No .")),
        ("Question: In example 3 , who ? Response: For example: he", ("In example 3 , who ?", "For example: he")),
    ],
)
def test_what_looks_like_form_may_be_text(completion: str, texts: tuple[str, str]) -> None:
    assert pair().parse(completion) == texts


@pytest.mark.parametrize(
    "completion",
    [
        "Question: A Response: B question: C response: D",
        "Question: A Response: B Response: C",
        "Question: A Response: B Example 5: Question: C Response: D",
        "Question: A Response: B New Example:",
        "question: A response: B Question: C",
        "Question: A Response:\nExample 5: C",
        "Question: A Response: B QUESTION 2: C",
        "Question: A Answer: B",
        "Here is a new example: Question: A Response: B",
        "Response: B Question: A",
        "Question: ** Response: B",
    ],
)
def test_no_pair_or_more_than_one_is_unparseable(completion: str) -> None:
    assert pair().parse(completion) is None


def test_second_name_may_have_aliases() -> None:
    task = pair(second_aliases=["Answer", "Reply"])
    for name in ("Response", "Answer", "reply"):
        assert task.parse(f"Question: Who ? {name}: He .") == ("Who ?", "He .")
    assert task.parse("Question: Who ? Response: He . Answer: She .") is None
    assert "Response: He ." in task.prompt([instance("Who ?", "He .")])
    with pytest.raises(ValueError, match=r"options\.second_aliases\.0: expected at least 1 character"):
        pair(second_aliases=[""])


@pytest.mark.parametrize("repeated", [" ", "*", "a ", "Response ", "1", "\n", '"'])
def test_endless_repetition_is_parsed_at_once(repeated: str) -> None:
    started = time.perf_counter()
    for begin in ("", "Question:", "Question: A Response:"):
        pair().parse(begin + repeated * 10_000)
    assert time.perf_counter() - started < 5


def test_real_pairs_survive_the_form(shared: Path) -> None:
    task = pair()
    lines = (shared / "data" / "qnli" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines[:1000]):
        expected = " ".join(row["text"].split()), " ".join(row["text_pair"].split())
        assert task.parse(" " + task.render(instance(*expected))) == expected


def test_names_of_a_pair_are_options() -> None:
    task = pair(first_name="Premise (en)", second_name="Claim")
    example = instance("it rains", "it is wet")
    text = task.prompt([example]).splitlines()[1]
    assert text == "Example 1: Premise (en): it rains Claim: it is wet"
    assert task.parse(text.removeprefix("Example 1: ")) == ("it rains", "it is wet")


@pytest.mark.parametrize("kind", names("genal_ray.tasks"))
def test_what_a_task_renders_it_parses(kind: str) -> None:
    """The contract of every task: the model's best answer, an example in the prompt's own form, is understood."""
    task = build_task(TaskConfig(kind=kind, domain="things"))
    example = instance("one thing", "and another" if task.pairs else None)
    rendered = task.prompt([example]).splitlines()[1].removeprefix("Example 1:")
    assert rendered == f" {task.render(example)}"
    assert task.parse(rendered) == (example.text, example.text_pair)
    assert task.parse("") is None
    assert task.num_examples == 3


def test_own_kinds_are_named_by_module_and_class() -> None:
    assert build_task(TaskConfig(kind="genal_ray.tasks.text_pair:TextPair", domain="x")).pairs


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"options\.second_nam: unknown key; did you mean 'second_name'\?"):
        pair(second_nam="x")
    with pytest.raises(UserError, match="unknown task 'pairs'"):
        build_task(TaskConfig(domain="x").model_copy(update={"kind": "pairs"}))
