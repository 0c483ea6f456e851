"""The paper in miniature: problems, tokenizer, model, GRPO, and the four checkpoints after a few steps."""

from __future__ import annotations

import json
import random
import zipfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import taskvec
from taskvec.evaluation.miniature import build, data, grpo, model, optimiser, tokenizer, training

HASTY = build.Recipe(
    base=replace(build.RECIPE.base, steps=2, decay=1),
    target=replace(build.RECIPE.target, steps=1, decay=1),
    reference=replace(build.RECIPE.reference, steps=1, decay=1),
    donor=grpo.Recipe(prompts=2, samples=2, steps=1, every=1, selection=4),
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def words():
    return tokenizer.train()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build.build(tmp_path_factory.mktemp("miniature") / "models", 7, recipe=HASTY, problems=20)


# ------------------------------------------------------------------------------------------------ problems


def test_problem_solution_is_right_and_in_range():
    for problem in islice(data.problems("train", 3), 500):
        values = [sum(problem.chain[: i + 1]) for i in range(len(problem.chain))]
        assert all(0 <= value <= data.LARGEST for value in values)
        steps = problem.solution.split(" #### ")[0].split(". ")
        for step in steps:
            asked, given = step.rstrip(".").split(" = ")
            left, sign, right = asked.split(" ")
            assert int(left) + (int(right) if sign == "+" else -int(right)) == int(given)
        assert problem.solution.endswith(f"#### {problem.final}")
        assert grpo.reward(problem.solution, problem.final) == 1.0


def test_splits_share_no_problem():
    seen = {split: {p.chain for p in islice(data.problems(split, 1), 3000)} for split in ("select", "test")}
    trained = {p.chain for steps in (1, 2, 3) for p in islice(data.problems("train", 1, steps), 5000)}
    assert not seen["select"] & seen["test"]
    assert not trained & (seen["select"] | seen["test"])


def test_training_documents_hold_no_test_problem():
    tests = {problem.question for problem in data.distinct("test", 1, 1500)}
    for mixture in (build.RECIPE.base.mixture, build.RECIPE.target.mixture, build.RECIPE.reference.mixture):
        asked = {document.prompt for document in islice(data.documents(mixture, 1), 4000)}
        assert not asked & {data.prompt(question) for question in tests}


def test_generators_repeat_themselves():
    mixture = build.RECIPE.base.mixture
    assert list(islice(data.documents(mixture, 5), 200)) == list(islice(data.documents(mixture, 5), 200))
    assert list(islice(data.documents(mixture, 5), 200)) != list(islice(data.documents(mixture, 6), 200))
    assert data.distinct("test", 5, 50) == data.distinct("test", 5, 50)
    assert len({problem.chain for problem in data.distinct("test", 5, 300)}) == 300


# ----------------------------------------------------------------------------------------------- tokenizer


def test_tokenizer_round_trip(words):
    texts = [d.prompt + d.answer for d in islice(data.documents(build.RECIPE.base.mixture, 9), 300)]
    for text in [*texts, "Überraschung: 12345 €\n\n\ttab", ""]:
        assert words.decode(words.encode(text).ids) == text


def test_tokenizer_is_the_same_each_time_and_numbers_are_single_tokens(words):
    assert tokenizer.train().to_str() == words.to_str()
    assert (words.token_to_id(tokenizer.PAD), words.token_to_id(tokenizer.END)) == (0, 1)
    assert words.get_vocab_size() == tokenizer.VOCABULARY
    assert all(len(words.encode(f" {number}").ids) == 1 for number in range(data.LARGEST + 1))


# --------------------------------------------------------------------------------------------------- model


def test_model_agrees_with_transformers(built, words):
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(built.base)
    tokens = torch.tensor([grpo.ids(words, next(data.problems("test", 1)))])
    length = tokens.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    weights = build.load_weights(built.base)
    with torch.no_grad():
        ours = model.logits(weights, model.forward(weights, tokens, torch.arange(length)[None], mask))
        theirs = network(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_packed_texts_do_not_see_each_other():
    weights = model.initialise(3)
    source = random.Random(0)
    trees = [
        model.Tree(*_tokens(source, prompt, answers))
        for prompt, answers in ((5, (4, 7, 1)), (3, (6,)), (8, (2, 2)))
    ]
    together = model.log_probabilities(weights, model.pack([trees[:2], trees[2:]]))
    alone = [
        model.log_probabilities(weights, model.pack([[model.Tree(tree.prompt, [text], [weight])]]))
        for tree in trees
        for text, weight in zip(tree.continuations, tree.weights, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def _tokens(source: random.Random, prompt: int, answers: tuple[int, ...]):
    def draw(count: int) -> list[int]:
        return [source.randrange(2, model.VOCABULARY) for _ in range(count)]

    return draw(prompt), [draw(count) for count in answers], [[1.0] * count for count in answers]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_chances_are_those_of_the_policy(words, temperature):
    weights = model.initialise(4)
    prompts = [grpo.ids(words, problem) for problem in data.distinct("select", 1, 3)]
    generator = torch.Generator().manual_seed(0)
    texts, chances = model.sample(
        weights, prompts, copies=2, limit=9, temperature=temperature, generator=generator
    )
    assert len(texts) == 6
    trees = [model.Tree(prompts[i // 2], [text], [[1.0] * len(text)]) for i, text in enumerate(texts)]
    again = model.log_probabilities(weights, model.pack([[tree] for tree in trees]), temperature)
    torch.testing.assert_close(again, torch.tensor([c for row in chances for c in row]), rtol=1e-4, atol=1e-4)


def test_greedy_answers_do_not_depend_on_the_batch(words):
    weights = model.initialise(4)
    prompts = [grpo.ids(words, problem) for problem in data.distinct("select", 1, 4)]
    together, _ = model.sample(weights, prompts, limit=6)
    assert together == [model.sample(weights, [prompt], limit=6)[0][0] for prompt in prompts]


def test_orthogonal_brings_singular_values_near_one():
    generator = torch.Generator().manual_seed(0)
    for shape in ((64, 128), (128, 64), (32, 32)):
        values = torch.linalg.svdvals(optimiser.orthogonal(torch.randn(shape, generator=generator)))
        assert values.min() > 0.3
        assert values.max() < 1.3


# ---------------------------------------------------------------------------------------------------- GRPO


@pytest.mark.parametrize(
    ("answer", "expected", "worth"),
    [
        (" 1 + 2 = 3. #### 3", 3, 1.0),
        (" #### 3", 4, 0.0),
        (" 1 + 2 = 3.", 3, 0.0),
        (" #### 3 #### 4", 4, 1.0),
        (" #### 3 #### 4", 3, 0.0),
        (" #### 13", 3, 0.0),
        (" #### 3 and more", 3, 0.0),
        (" #### -3", -3, 1.0),
        (" #### ", 0, 0.0),
        ("", 0, 0.0),
    ],
)
def test_reward(answer, expected, worth):
    assert grpo.reward(answer, expected) == worth


def test_advantages_are_standardised_in_each_group():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    found = grpo.advantages(rewards)
    root = 3**0.5
    expected = torch.tensor([[root, -1 / root, -1 / root, -1 / root], [1, 1, -1, -1], [0] * 4, [0] * 4])
    torch.testing.assert_close(found, expected)


def test_loss_pushes_towards_what_was_rewarded():
    scores = torch.zeros(1, 3, requires_grad=True)
    chance = scores.log_softmax(-1)[0]
    new = chance[torch.tensor([0, 1])]
    share = torch.full((2,), 0.5)
    grpo.policy_loss(new, new.detach(), torch.tensor([1.0, -1.0]), share, 0.2).backward()
    assert scores.grad is not None
    up, down, other = (-scores.grad[0]).tolist()
    assert up > 0 > down
    assert other == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [
        (1.5, 1.0, False),
        (1.1, 1.0, True),
        (0.5, 1.0, True),
        (0.5, -1.0, False),
        (0.9, -1.0, True),
        (1.5, -1.0, True),
    ],
)
def test_clipping_stops_only_what_has_gone_far_enough(ratio, advantage, moves):
    new = torch.tensor([ratio]).log().requires_grad_()
    loss = grpo.policy_loss(new, torch.zeros(1), torch.tensor([advantage]), torch.ones(1), 0.2)
    loss.backward()
    assert new.grad is not None
    assert bool(new.grad.abs() > 0) == moves
    bounded = min(max(ratio, 0.8), 1.2)
    assert loss.item() == pytest.approx(-min(ratio * advantage, bounded * advantage))


def test_update_makes_a_rewarded_answer_likelier(words):
    weights = {name: value.requires_grad_() for name, value in model.initialise(5).items()}
    prompt = grpo.ids(words, next(data.problems("train", 1)))
    answers, old = model.sample(
        weights, [prompt], copies=2, limit=6, generator=torch.Generator().manual_seed(1)
    )
    group = grpo.Group(prompt, answers, old, torch.tensor([1.0, -1.0]))
    recipe = grpo.Recipe(temperature=1.0)
    grpo.update(weights, [group], recipe, torch.optim.SGD(list(weights.values()), lr=0.05))
    trees = [model.Tree(prompt, [answer], [[1.0] * len(answer)]) for answer in answers]
    with torch.no_grad():
        good, bad = (model.log_probabilities(weights, model.pack([[tree]])).mean().item() for tree in trees)
    assert good > sum(old[0]) / len(old[0])
    assert bad < sum(old[1]) / len(old[1])


def test_groups_that_agree_are_left_out(words, monkeypatch):
    problems = data.distinct("select", 1, 2)
    right, wrong = (words.encode(f" #### {n}").ids for n in (problems[1].final, problems[1].final + 1))
    drawn = [wrong, wrong, right, wrong]
    monkeypatch.setattr(model, "sample", lambda *_a, **_k: (drawn, [[0.0] * len(text) for text in drawn]))
    problems[0] = replace(problems[0], chain=(19,))
    drawn[:2] = [words.encode(" nothing").ids] * 2
    groups = grpo.draw({}, problems, grpo.Recipe(samples=2), words, torch.Generator())
    assert len(groups) == 1
    assert groups[0].advantages.tolist() == [1.0, -1.0]


# --------------------------------------------------------------------------------------------- checkpoints


def test_training_is_deterministic_and_leaves_its_input_alone(words):
    stage = replace(build.RECIPE.reference, steps=1, decay=1)
    start = model.initialise(1)
    kept = {name: value.clone() for name, value in start.items()}
    first, second = (training.train(start, stage, words, 3) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(start[name], kept[name]) for name in start)
    assert any(not torch.equal(first[name], start[name]) for name in start)


def test_checkpoints_load_and_fit_each_other(built):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = set()
    for folder in (built.base, built.target, built.reference, built.donor):
        with safe_open(folder / "model.safetensors", "pt") as file:
            names.add(tuple(sorted(file.keys())))
        AutoModelForCausalLM.from_pretrained(folder)
        loaded = AutoTokenizer.from_pretrained(folder)
        assert (loaded.pad_token_id, loaded.eos_token_id, loaded.padding_side) == (0, 1, "left")
        assert len(loaded) == tokenizer.VOCABULARY
        problem = next(data.problems("test", 1))
        assert loaded(data.prompt(problem.question))["input_ids"] == grpo.ids(tokenizer.train(), problem)
    assert len(names) == 1
    assert not any(f.level == "error" for f in taskvec.check(built.target, built.donor, built.reference))


def test_stages_that_are_there_are_kept(built):
    before = {role: (built.base.parent / role).stat().st_mtime_ns for role in build.PARENT}
    seen: list[str] = []
    again = build.build(built.base.parent, 7, lambda name, *_: seen.append(name), recipe=HASTY, problems=20)
    assert again == built
    assert not seen
    assert before == {role: (built.base.parent / role).stat().st_mtime_ns for role in build.PARENT}


def test_another_seed_needs_another_folder(built):
    with pytest.raises(taskvec.Error, match="another seed or recipe"):
        build.build(built.base.parent, 8, recipe=HASTY)


def test_archive_round_trip(built, tmp_path):
    file = build.pack(built, tmp_path / "miniature.zip")
    assert file.read_bytes() == build.pack(built, tmp_path / "again.zip").read_bytes()
    opened = build.unpack(file, tmp_path / "models", problems=20)
    for role in build.PARENT:
        ours = load_file(getattr(built, role) / "model.safetensors")
        theirs = load_file(getattr(opened, role) / "model.safetensors")
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert opened.seed == 7
    assert build.unpack(file, tmp_path / "models", problems=20) == opened


def test_damaged_archives_are_named(tmp_path):
    with pytest.raises(taskvec.NotFoundError, match="is not there"):
        build.unpack(tmp_path / "none.zip", tmp_path / "models")
    bad = tmp_path / "bad.zip"
    bad.write_bytes(b"PK no archive")
    with pytest.raises(taskvec.FormatError, match="no archive of miniature"):
        build.unpack(bad, tmp_path / "models")
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr(build.MARK, json.dumps({"format": 1, "seed": 1}))
        archive.writestr("base/../../escaped", "x")
    with pytest.raises(taskvec.FormatError, match="no archive of miniature"):
        build.unpack(bad, tmp_path / "models")
    assert not (tmp_path / "escaped").exists()


def test_task_scores_the_right_answer(built):
    """lm-eval reads the task, and its filter and metric agree with the verifier of GRPO."""
    from lm_eval.tasks import TaskManager

    task = TaskManager(include_path=str(built.tasks), include_defaults=False).load([built.task])["tasks"]
    task = task[built.task]
    documents = list(task.test_docs())
    lines = Path(built.tasks, f"{built.task}.jsonl").read_text().splitlines()
    assert len(documents) == len(lines) == 20
    document = documents[0]
    assert task.doc_to_text(document) == data.prompt(document["question"])
    assert task.doc_to_target(document) == document["final"]
    assert grpo.reward(document["answer"], int(document["final"])) == 1.0
    assert task.process_results(document, [document["final"]])["exact_match"] == 1.0
    assert task.process_results(document, ["no number"])["exact_match"] == 0.0
