"""The paper in miniature: problems, tokenizer, model, GRPO, and the four checkpoints after a few steps."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import taskvec
from support.command_line import invoke
from taskvec.evaluation.miniature import (
    build,
    continued,
    data,
    demo,
    grpo,
    model,
    optimiser,
    tokenizer,
    training,
)
from taskvec.extras import install

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
        return [source.randrange(2, tokenizer.VOCABULARY) for _ in range(count)]

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


# ------------------------------------------------------------------------------------------ continued SFT


def test_continued_sft_has_the_donors_problems_and_as_many_updates(words, monkeypatch):
    recipe = grpo.Recipe(prompts=4, samples=2, steps=3, every=5, selection=2)
    start, seen = model.initialise(1), {"donor": [], "rival": []}
    updates = {"donor": 0, "rival": 0}

    def draw(_weights, problems, *_):
        seen["donor"] += problems
        return []

    def improve(*_):
        updates["donor"] += 1

    def learn(_weights, problems, *_):
        seen["rival"].append(problems)
        updates["rival"] += 1

    monkeypatch.setattr(grpo, "draw", draw)
    monkeypatch.setattr(grpo, "update", improve)
    monkeypatch.setattr(continued, "update", learn)
    _, steps = grpo.improve(start, recipe, words, 33)
    continued.learn_on(start, recipe, steps, words, 33)
    assert (steps, updates) == (3, {"donor": 6, "rival": 6})
    asked = {problem.question for part in seen["rival"] for problem in part}
    assert asked == {problem.question for problem in seen["donor"]}
    assert sum(map(len, seen["rival"])) == len(seen["donor"]) == 12


def test_continued_sft_makes_the_written_solution_likelier_and_leaves_its_start_alone(words):
    start = model.initialise(2)
    kept = {name: value.clone() for name, value in start.items()}
    problem = next(data.problems("train", 9))
    weights = {name: value.clone().requires_grad_() for name, value in start.items()}

    def chance() -> float:
        tree = continued._tree(problem.document, words)
        with torch.no_grad():
            return model.log_probabilities(weights, model.pack([[tree]])).mean().item()

    before = chance()
    continued.update(weights, [problem], words, torch.optim.SGD(list(weights.values()), lr=0.05))
    assert chance() > before
    assert all(torch.equal(start[name], kept[name]) for name in start)


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
    with pytest.raises(taskvec.NotFoundError, match="is not found"):
        build.unpack(tmp_path / "none.zip", tmp_path / "models")
    bad = tmp_path / "bad.zip"
    bad.write_bytes(b"PK no archive")
    with pytest.raises(taskvec.FormatError, match="not an archive of miniature"):
        build.unpack(bad, tmp_path / "models")
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr(build.MARK, json.dumps({"format": 1, "seed": 1}))
        archive.writestr("base/../../escaped", "x")
    with pytest.raises(taskvec.FormatError, match="not an archive of miniature"):
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


# ------------------------------------------------------------------------------------ taskvec demo --paper


@pytest.fixture
def hasty(built, monkeypatch, tmp_path):
    """A folder whose donor is still to be trained, and a command that trains hastily and asks little."""
    folder = tmp_path / "paper"
    shutil.copytree(built.base.parent, folder / "models")
    shutil.rmtree(folder / "models" / "donor")
    monkeypatch.setattr(build, "build", partial(build.build, recipe=HASTY, problems=24))
    monkeypatch.setattr(build, "unpack", partial(build.unpack, problems=24))
    return folder


def test_the_paper_in_miniature_from_the_command_line(hasty, capsys):
    done = invoke(capsys, "demo", "--paper", hasty, "--seed", 7, "--jobs", 1)
    assert done.code == 0, done.err
    assert "training donor: at most 1 step\n" in done.err
    assert "training base" not in done.err  # it was there
    header, *rows = done.out.splitlines()
    assert header.split() == [
        "exact_match", "(%)", "against", "the", "baseline", "p", "(Holm)", "typo", "distractor", "order",
    ]  # fmt: skip
    names = ["reference", "donor", "baseline", "−1 v", "0 v", "+0.5 v", "+1 v", "+1.5 v"]
    names += ["random 1", "random 2", "random 3", "permuted 1", "SFT vector", "continued_sft", "donor − base"]
    assert [row.partition("  ")[0] for row in rows[: len(names)]] == names
    # a step of hasty training makes nothing better, so that the vectors are zero
    assert "`sft` is not compared at equal norm: the tested vector is zero" in done.err
    assert "`rival-continued_sft` is not compared at equal norm: its own vector is zero" in done.err
    assert "gate       NOT PASSED: the donor is no difference to reference shown" in done.out
    assert "Nothing is claimed of the vector on miniature" in done.out
    assert str(hasty / "report" / "report.html") in done.out

    # the same command goes on: with nothing, or with what is missing
    report = json.loads((hasty / "report" / "report.json").read_text())
    (hasty / "report" / "arms" / "random-2.json").unlink()
    again = invoke(capsys, "demo", "--paper", hasty, "--seed", 7, "--jobs", 1, "--json")
    assert again.code == 0, again.err
    assert "training" not in again.err
    assert again.err.count("evaluated before under the same settings") == len(report["arms"]) - 1
    found = json.loads(again.out)
    assert (found["seed"], found["out"]) == (7, str(hasty / "report"))
    assert Path(found["models"]["donor"], "model.safetensors").is_file()
    assert found["report"]["comparisons"] == report["comparisons"]
    assert found["report"]["gate"][0]["passed"] is False

    # and from Python, where nothing is left to do
    events: list[object] = []
    made = taskvec.demo(hasty, paper=True, seed=7, jobs=1, progress=events.append)
    assert (made.models.seed, made.folder) == (7, hasty / "report")
    assert [event.kind for event in events].count("known") == len(report["arms"])
    assert made.report.to_json()["comparisons"] == report["comparisons"]
    frame = made.report.to_frame()
    assert set(frame["arm"]) == {arm["name"] for arm in report["arms"]}
    assert repr(made) == f"Miniature(seed=7, folder={str(hasty / 'report')!r})"


def test_another_seed_is_refused_in_the_same_folder(hasty, capsys):
    done = invoke(capsys, "demo", "--paper", hasty, "--seed", 8)
    assert (done.code, done.out) == (2, "")
    assert "holds the models of another seed or recipe" in done.err


def test_pretrained_models_are_not_trained(built, hasty, capsys, monkeypatch):
    file = build.pack(built, hasty / "miniature.zip")
    shutil.rmtree(hasty / "models")
    monkeypatch.setattr(build, "build", None)
    swept: list[object] = []

    def sweep(experiment, out, **options):
        swept.extend((experiment, options["jobs"]))
        raise taskvec.EvaluationError(f"stopped before {out}")

    monkeypatch.setattr(demo, "run_sweep", sweep)
    done = invoke(capsys, "demo", "--paper", hasty, "--pretrained", file, "--jobs", 2)
    assert "stopped before" in done.err
    experiment, jobs = swept
    assert jobs == 2
    assert experiment.evaluation.seed == 7
    for role in build.PARENT:
        named = experiment.rivals[0] if role == "continued_sft" else getattr(experiment, role)
        theirs = Path(named, "model.safetensors").read_bytes()
        assert theirs == (getattr(built, role) / "model.safetensors").read_bytes()


def test_a_bad_archive_is_an_error_and_a_way_out(built, hasty, capsys):
    file = build.pack(built, hasty / "miniature.zip")
    whole = file.read_bytes()
    at = len(whole) // 2
    for content in (whole[:at], whole[:at] + bytes(200) + whole[at + 200 :], b"no archive"):
        file.write_bytes(content)
        shutil.rmtree(hasty / "models", ignore_errors=True)
        done = invoke(capsys, "demo", "--paper", hasty, "--pretrained", file)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"error: `{file}` is not an archive of miniature checkpoints: ")
        assert len(done.err.splitlines()) == 2  # and the way out
    done = invoke(capsys, "demo", "--paper", hasty, "--pretrained", hasty / "none.zip")
    assert done.code == 2
    assert "is not found" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", 3], "`--seed` needs `--paper`"),
        (["--pretrained", "a.zip"], "`--pretrained` needs `--paper`"),
        (["--jobs", 2], "`--jobs` needs `--paper`"),
        (["--paper", "--overwrite"], "`--overwrite` is not for the demo with `--paper`"),
        (["--paper", "--threads", 2], "`--threads` is not for the demo with `--paper`"),
        (["--paper", "--seed", 3, "--pretrained", "a.zip"], "`--seed` goes with training"),
        (["--paper", "--seed", -1], "`--seed`"),
        (["--paper", "--jobs", 0], "`--jobs`"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(capsys, "demo", *options)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not list(tmp_path.iterdir())


def test_without_the_extra_one_line_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    done = invoke(capsys, "demo", "--paper", tmp_path / "paper")
    assert done.code == 2
    assert done.err.splitlines() == [
        "error: evaluation needs the extra `eval`: `lm_eval` is not installed",
        f"  hint: {install('eval')}",
    ]
    assert not (tmp_path / "paper").exists()


def test_ctrl_c_while_training_leaves_what_is_finished(built, tmp_path):
    models = tmp_path / "taskvec-paper" / "models"  # the folder if none is named
    shutil.copytree(built.base.parent, models)
    for role in ("target", "donor"):
        shutil.rmtree(models / role)
    mark = json.loads((models / build.MARK).read_text())
    (models / build.MARK).write_text(json.dumps({**mark, "recipe": repr(build.RECIPE)}))
    process = subprocess.Popen(
        [sys.executable, "-m", "taskvec", "demo", "--paper", "--seed", "7"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not (models / ".donor.part").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the other training process, too
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-2:] == [
        "error: interrupted",
        "  hint: run the same command again to go on where it stopped",
    ]
    assert "Traceback" not in err
    assert {path.name for path in models.iterdir() if path.is_dir()} >= {"base", "reference"}
    assert not (models / "donor").exists()
    assert not (models / ".donor.part").exists()
