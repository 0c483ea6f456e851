"""Perturbations: seeded, and never at the price of a wrong answer."""

from __future__ import annotations

import random
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.evaluation_models import word_problems
from taskvec.errors import RecipeError
from taskvec.evaluation.settings import PERTURBATIONS, parse_perturbation
from taskvec.evaluation.tasks import numbers, perturb
from taskvec.evaluation.tasks.sense import makes_sense

NATALIA = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?",
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
)


def rng(seed: int = 0) -> random.Random:
    return random.Random(seed)


def numbers_in(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


# --- numbers


def test_numbers_are_worked_out_again():
    question, answer, before, after = perturb.numbers(*NATALIA, rng(1)) or pytest.fail("left out")
    (sold,) = numbers_in(question)
    assert sold > 48
    assert sold % 2 == 0
    assert before == "72"
    assert after == str(sold + sold // 2)
    assert answer.endswith(f"#### {sold + sold // 2}")
    assert f"<<{sold}/2={sold // 2}>>" in answer


@given(st.integers(0, 10_000))
def test_answers_stay_right(seed):
    row = word_problems(1, seed=seed)[0]
    found = perturb.numbers(row["question"], row["answer"], rng(seed))
    if found is None:
        return
    question, answer, _, after = found
    a, b, c = numbers_in(question)
    assert after == str(a + b - c)
    assert f"{a}+{b}={a + b}." in answer
    assert question != row["question"]


def test_most_plain_problems_can_be_worked_out_again():
    rows = word_problems(200, seed=4)
    changed = [perturb.numbers(row["question"], row["answer"], rng(i)) for i, row in enumerate(rows)]
    assert sum(found is not None for found in changed) > 150


@pytest.mark.parametrize(
    ("question", "answer", "why"),
    [
        ("Tom has 5 apples and 5 pears. Together?", "5+5=10. #### 10", "a number stands twice"),
        (
            "Tom has 14 apples, a week has 7 days. Per day?",
            "14/7=2. #### 3",
            "the answer is not the last result",
        ),
        ("Tom has 14 apples. Per day?", "He has 2. #### 2", "no arithmetic"),
        ("Tom has 14 apples and eats 3.", "14-3=12. #### 12", "the arithmetic is wrong"),
        ("Tom has 12 apples and 24 pears.", "12+12=24. #### 24", "a number is a result as well"),
        ("40% of 50 is?", "0.4*50=20. 20*1=20. #### 20", "a share, and a result that comes twice"),
        ("Tom has 14 apples.", "14-3=11.", "no final answer"),
        ("Tom has 9 apples.", "__import__('os')=1. 9+1=10 #### 11", "the end does not follow"),
    ],
)
def test_what_cannot_be_followed_is_left_out(question, answer, why):
    found = perturb.numbers(question, answer, rng())
    if found is not None:  # what is changed all the same must be right
        new_question, new_answer, _, after = found
        steps = numbers.equations(new_answer)
        assert steps, why
        assert steps[-1].result == Fraction(after), why
        assert new_question != question, why


def test_doubtful_numbers_stay():
    assert perturb.numbers("Tom has 5 apples and 5 pears. Together?", "5+5=10. #### 10", rng()) is None
    assert perturb.numbers("Tom has 14 apples. Per day?", "He has 2. #### 2", rng()) is None
    assert perturb.numbers("Tom has 14 apples and eats 3.", "14-3=12. #### 12", rng()) is None
    # 12 is an amount here, and might be a dozen there
    assert perturb.numbers("Tom has 12 eggs.", "12+3=15. 15*12=180. #### 180", rng()) is None


def test_an_answer_with_thousands_is_read():
    found = perturb.numbers("A car costs $1,250. Two?", "1250*2=2500. #### 2,500", rng(3))
    assert found is not None
    assert found[2] == "2500"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("7/2", Fraction(7, 2)),
        ("-3+1", -2),
        ("0.1+0.2", Fraction(3, 10)),
        ("007", 7),
    ],
)
def test_expressions(text, value):
    assert numbers.evaluate(text) == value


@pytest.mark.parametrize(
    "text", ["", "2**9", "a+1", "f(1)", "1 if 1 else 2", "((((", "1" * 300, "True", "1//0", "'x'"]
)
def test_other_expressions_are_refused(text):
    with pytest.raises(ValueError):
        numbers.evaluate(text)


def test_division_by_zero_leaves_a_document_out():
    assert perturb.numbers("Tom has 8 apples.", "8/0=0. #### 0", rng()) is None


# --- typo


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=200), st.integers(0, 1000))
def test_typo_touches_words_alone(text, seed):
    found = perturb.typo(text, rng(seed))
    if found is None:
        assert not re.search(r"[A-Za-z]{4,}", text)
    else:
        assert found != text
        assert re.findall(r"\d+", found) == re.findall(r"\d+", text)


def test_typo_spares_the_answer():
    question = "Sort these words: banana cherry apple"
    for seed in range(50):
        found = perturb.typo(question, rng(seed), protected=["apple banana cherry"])
        assert found is not None
        assert all(word in found for word in ("banana", "cherry", "apple"))
    assert perturb.typo("apple", rng(), protected=["apple"]) is None


def test_typo_keeps_first_letters():
    found = perturb.typo("Something wonderful happened yesterday evening", rng(2))
    assert found is not None
    assert [word[0] for word in found.split()] == ["S", "w", "h", "y", "e"]


# --- distractor and order


@pytest.mark.parametrize("word", ["nine", "none", "sixty", "eighty", "more", "lesser", "tenth", "fifths"])
def test_typo_says_no_other_amount(word):
    amounts = {"nine", "none", "six", "sixth", "eight", "less", "ten", "fifth", "more", "most"} - {word}
    made = {perturb.typo(f"Ann has {word} bags.", random.Random(seed), rate=1.0) for seed in range(300)}
    found = {text.split()[2] for text in made if text is not None}
    assert len(found) > 3
    assert not found & amounts


def test_distractor_stands_before_the_question():
    question = "Tom has 3 apples. Ann has 4. How many are there?"
    found = perturb.distractor(question, rng(1))
    assert found is not None
    assert found.startswith("Tom has 3 apples. Ann has 4. ")
    assert found.endswith(" How many are there?")
    assert len(found) > len(question)


def test_distractor_has_numbers_only_where_the_question_has():
    plain = perturb.distractor("Is the sky blue? Answer in a word.", rng(1)) or ""
    assert not re.search(r"\d", plain)
    assert re.search(r"\d.*\d", perturb.distractor("Tom has 3 apples. How many?", rng(1)) or "")


def test_order_moves_the_middle_alone():
    question = "Tom has 3 apples. Ann has 4 pears. Bob has 5 plums. How many fruits are there?"
    found = perturb.order(question, rng(1))
    assert found == "Tom has 3 apples. Bob has 5 plums. Ann has 4 pears. How many fruits are there?"


@pytest.mark.parametrize(
    "question",
    [
        "Tom has 3 apples. How many?",
        "Tom has 3 apples. Then Ann gives 2. Bob takes 1. How many?",
        "Tom has 8. He eats half. Ann takes what remains after that. How many?",
        "Tom has 3. It is red. Ann has 4. How many?",
    ],
)
def test_order_leaves_out_what_leans_on_the_order(question):
    assert perturb.order(question, rng()) is None


@pytest.mark.parametrize("kind", ["typo", "distractor", "order"])
def test_perturbations_are_seeded(kind):
    question = "Tom has 3 apples. Ann has 4 pears. Bob has 5 plums. How many fruits are there?"
    make = getattr(perturb, kind)
    once = make(question, perturb.draws(7, kind, "3:x"))
    assert once == make(question, perturb.draws(7, kind, "3:x"))
    others = {make(question, perturb.draws(seed, kind, "3:x")) for seed in range(20)}
    assert len(others) > (1 if kind != "order" else 0)


# --- rates, and where a perturbation makes sense


@given(st.integers(0, 300), st.sampled_from([0.05, 0.3, 0.8, 1.0]))
def test_a_rate_is_the_share_of_words_that_are_mistyped(seed, rate):
    question = word_problems(1, seed=seed)[0]["question"]
    text = perturb.typo(question, rng(seed), rate=rate)
    words = re.findall(r"[A-Za-z]{4,}", question)
    changed = sum(a != b for a, b in zip(question.split(), text.split(), strict=True))
    assert changed == max(1, round(rate * len(words)))


def test_a_rate_is_the_number_of_useless_sentences_per_sentence():
    question = word_problems(1)[0]["question"]  # four sentences
    assert perturb.distractor(question, rng(1)).count(".") == question.count(".") + 1
    text = perturb.distractor(question, rng(1), rate=0.75)
    assert text.count(".") == question.count(".") + 3
    assert text.endswith("How many apples are there?")
    assert perturb.distractor(question, rng(1), rate=1.0).count(".") == question.count(".") + 4


def test_options_that_follow_a_question_stay():
    question = "Ann has three green books there. Which colour is it?\nOptions:\n(A) green\n(B) yellow"
    for changed in (perturb.typo(question, rng(2), rate=1.0), perturb.distractor(question, rng(2))):
        assert changed.endswith("\nOptions:\n(A) green\n(B) yellow")
        assert changed != question
    assert " green " in perturb.typo(question, rng(2), rate=1.0)  # a word of an option is an answer


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("typo", ("typo", None)), ("typo=0.3", ("typo", 0.3)), ("distractor=1", ("distractor", 1.0))],
)
def test_perturbations_are_read(text, wanted):
    assert parse_perturbation(text) == wanted


@pytest.mark.parametrize("text", ["typos", "typo=0", "typo=1.1", "typo=x", "typo=", "order=0.5", "typo=nan"])
def test_perturbations_that_are_none_are_refused(text):
    with pytest.raises(RecipeError, match=re.escape(text)):
        parse_perturbation(text)


@pytest.mark.parametrize(
    ("task", "kinds"),
    [
        ("gsm8k", {"typo", "distractor", "order", "numbers"}),
        ("gsm8k_cot_zeroshot", {"typo", "distractor", "order", "numbers"}),
        ("sciq", {"typo", "distractor", "numbers"}),
        ("arc_challenge", {"typo", "distractor", "numbers"}),
        ("bbh_cot_fewshot_navigate", {"typo", "distractor", "numbers"}),
        ("leaderboard_bbh_object_counting", {"typo", "distractor", "numbers"}),
        ("bbh_zeroshot_logical_deduction_five_objects", {"distractor", "numbers"}),
        ("bbh_cot_fewshot_word_sorting", {"numbers"}),
        ("bbh_cot_fewshot_hyperbaton", {"numbers"}),
        ("bbh_fewshot_dyck_languages", {"numbers"}),
        ("bbh_cot_zeroshot_boolean_expressions", {"numbers"}),
        ("minerva_math_algebra", {"numbers"}),
        ("gsm8ks", {"numbers"}),
        ("winogrande", {"numbers"}),
    ],
)
def test_a_perturbation_is_used_where_it_keeps_the_question(task, kinds):
    assert {kind for kind in PERTURBATIONS if makes_sense(task, kind)} == kinds
