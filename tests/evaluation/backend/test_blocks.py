"""The model as lm-eval sees it: blocks, memory, and the length of answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from support.evaluation_models import tiny
from taskvec.errors import EvaluationError
from taskvec.evaluation.backend.blocks import BlockedLM
from taskvec.evaluation.backend.journal import Journal
from taskvec.evaluation.backend.memory import is_out_of_memory
from taskvec.evaluation.backend.order import batches
from taskvec.evaluation.backend.sizes import Sizes


def request(
    prompt: str, doc_id: int, *, task: str = "t", until: tuple[str, ...] = (), length: int = 8
) -> Instance:
    arguments = (prompt, {"until": list(until), "max_gen_toks": length, "do_sample": False})
    return Instance("generate_until", {}, arguments, 0, (task, doc_id, 1))


class Echo:
    """A model that answers with its prompt, counts its calls, and runs out of memory above a batch size."""

    def __init__(self, fits: int = 1000) -> None:
        self.batch_size_per_gpu, self.fits = 8, fits
        self.asked: list[list[str]] = []
        self.max_length, self.device, self.rank, self.world_size = 10_000, "cuda:0", 0, 1
        self.tokenizer = SimpleNamespace(encode=lambda text, **_: list(text))
        self.cache_hook = CacheHook(None)

    @property
    def batch_size(self) -> int:
        return self.batch_size_per_gpu

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        assert disable_tqdm
        if self.batch_size > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.asked.append([request.args[0] for request in requests])
        return [request.args[0].upper() for request in requests]

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        return [(-1.0 * len(request.args[1]), True) for request in requests]


def blocked(inner: Any, block: int = 4, **more: Any) -> BlockedLM:
    return BlockedLM(inner, block=block, seed=1, **more)


def test_requests_of_all_tasks_are_batched_by_length():
    model = Echo()
    requests = [request("a" * (i + 1), i, task="a") for i in range(6)]
    requests += [request("b" * (2 * i + 2), i, task="b") for i in range(2)]
    requests += [request("c" * 50, 0, task="c", length=9)]
    mixed = requests[::2] + requests[1::2]
    told: list[tuple[str, int, int]] = []
    lm = blocked(model, progress=lambda *step: told.append(step))
    assert lm.generate_until(mixed) == [r.args[0].upper() for r in mixed]
    batches = [sorted(batch, key=len, reverse=True) for batch in model.asked]
    # sorted over both tasks in full batches; what is to be generated otherwise is never among them
    assert batches[0] == ["aaaaaa", "aaaaa", *sorted(["aaaa", "bbbb"], key=batches[0].index)]
    assert [len(batch) for batch in batches] == [4, 4, 1]
    assert batches[2] == ["c" * 50]
    assert told[:3] == [("a", 0, 6), ("b", 0, 2), ("c", 0, 1)]
    assert {step for step in told if step[1] == step[2]} == {("a", 6, 6), ("b", 2, 2), ("c", 1, 1)}
    assert lm.loglikelihood([Instance("loglikelihood", {}, ("x", "yy"), 0, ("a", 0, 1))]) == [(-2.0, True)]


def test_finished_blocks_are_not_asked_again(tmp_path):
    requests = [request(f"a{i}", i) for i in range(10)]
    first = Echo()
    whole = blocked(first, journal=Journal(tmp_path / "j", "id"))
    answers = whole.generate_until(requests)
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    (tmp_path / "j").write_bytes(b"".join(lines[:3]))  # identity and two of three blocks
    second = Echo()
    resumed = blocked(second, journal=Journal(tmp_path / "j", "id"))
    assert resumed.generate_until(requests) == answers
    assert second.asked == [["a8", "a9"]]
    assert resumed.lengths == whole.lengths


def test_equal_blocks_of_one_run_are_kept_apart(tmp_path):
    model = Echo()
    lm = blocked(model, block=1, journal=Journal(tmp_path / "j", "id"))
    lm.generate_until([request("same", 0), request("same", 1), request("same", 2)])
    assert len(model.asked) == 3
    again = Echo()
    blocked(again, block=1, journal=Journal(tmp_path / "j", "id")).generate_until([request("same", 0)] * 3)
    assert again.asked == []


class Scoring(HFLM):
    """lm-eval's own model, which says which batches it has computed, and can be killed after some."""

    dies_after: int | None = None
    fits = 1000

    def _model_call(self, inps: torch.Tensor, **more: Any) -> torch.Tensor:
        if self.dies_after is not None and len(self.computed) >= self.dies_after:
            raise KeyboardInterrupt
        if len(inps) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.computed.append(inps.tolist())
        return super()._model_call(inps, **more)


def scoring(**more: Any) -> Scoring:
    made = Scoring(pretrained=str(tiny().target), device="cpu", batch_size=3)
    made.computed = []
    for name, value in more.items():
        setattr(made, name, value)
    return made


CHOICES = [
    Instance("loglikelihood", {}, (f"{'long ' * (doc % 5)}question {doc % 9}:", f" {word}"), i, ("t", doc, 1))
    for doc in range(11)
    for i, word in enumerate(("a", "b", "cc", "a long answer"))
]  # documents 0 and 9, 1 and 10 are the same


@pytest.mark.parametrize("dies_after", range(1, 11))
def test_likelihoods_go_on_with_the_batches_that_were_not_ended(tmp_path: Path, dies_after: int):
    whole = scoring()
    expected = blocked(whole, block=22).loglikelihood(CHOICES)
    killed = scoring(dies_after=dies_after)
    with pytest.raises(KeyboardInterrupt):
        blocked(killed, block=22, journal=Journal(tmp_path / "j", "id")).loglikelihood(CHOICES)
    again = scoring()
    found = blocked(again, block=22, journal=Journal(tmp_path / "j", "id")).loglikelihood(CHOICES)
    assert found == expected  # every bit
    assert killed.computed + again.computed == whole.computed
    assert len(whole.computed) == 11


def test_every_likelihood_is_in_the_journal_and_a_torn_line_costs_its_batch_alone(tmp_path: Path):
    whole = scoring()
    expected = blocked(whole, block=22, journal=Journal(tmp_path / "j", "id")).loglikelihood(CHOICES)
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + len(whole.computed)
    unchanged = scoring()
    journal = Journal(tmp_path / "j", "id")
    assert blocked(unchanged, block=22, journal=journal).loglikelihood(CHOICES) == expected
    assert unchanged.computed == []
    (tmp_path / "j").write_bytes(b"".join(lines[:-1]) + lines[-1][:-9])
    journal = Journal(tmp_path / "j", "id")
    assert blocked(unchanged, block=22, journal=journal).loglikelihood(CHOICES) == expected
    assert unchanged.computed == whole.computed[-1:]


def test_likelihoods_that_did_not_fit_go_on_in_the_size_that_did(tmp_path: Path):
    whole = scoring(fits=2)
    expected = blocked(whole, block=100, journal=Journal(tmp_path / "a", "id")).loglikelihood(CHOICES)
    assert {len(batch) for batch in whole.computed} <= {1, 2}
    killed = scoring(fits=2, dies_after=5)
    with pytest.raises(KeyboardInterrupt):
        blocked(killed, block=100, journal=Journal(tmp_path / "b", "id")).loglikelihood(CHOICES)
    again = scoring()  # where there is memory for more now
    found = blocked(again, block=100, journal=Journal(tmp_path / "b", "id")).loglikelihood(CHOICES)
    assert found == expected
    assert killed.computed + again.computed == whole.computed


def test_likelihoods_of_whole_texts_are_kept_batch_by_batch(tmp_path: Path):
    texts = [
        Instance("loglikelihood_rolling", {}, (f"a text, number {i} " * (i + 1),), 0, ("t", i, 1))
        for i in range(7)
    ]
    whole = scoring()
    expected = blocked(whole, batch=3, journal=Journal(tmp_path / "a", "id")).loglikelihood_rolling(texts)
    killed = scoring(dies_after=len(whole.computed) - 1)
    with pytest.raises(KeyboardInterrupt):
        blocked(killed, batch=3, journal=Journal(tmp_path / "b", "id")).loglikelihood_rolling(texts)
    again = scoring()
    journal = Journal(tmp_path / "b", "id")
    assert blocked(again, batch=3, journal=journal).loglikelihood_rolling(texts) == expected
    assert len(again.computed) < len(whole.computed)


def test_a_batch_that_does_not_fit_is_halved():
    model = Echo(fits=2)
    lm = blocked(model)
    assert lm.generate_until([request("a", 0)]) == ["A"]
    assert lm.batch_size == 2
    assert len(lm.warnings) == 2
    assert "went on with 2" in lm.warnings[-1]


def test_a_batch_that_was_halved_is_whole_again_in_the_next_block():
    sizes: list[int] = []

    class Long(Echo):
        """Runs out of memory on long prompts alone."""

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            self.fits = 2 if len(requests[0].args[0]) > 5 else 1000
            answers = super().generate_until(requests, disable_tqdm)
            sizes.append(self.batch_size)
            return answers

    lm = blocked(Long(), block=1)
    lm.generate_until([request(text, i) for i, text in enumerate(["a", "long prompt", "b", "longer prompt"])])
    assert sizes == [2, 2, 8, 8]  # the longest first; 2 is not tried in vain for one that is as long
    assert len(lm.warnings) == 2  # for each size, not for each block


def test_memory_that_never_suffices_is_an_error():
    with pytest.raises(EvaluationError, match="out of memory on cuda:0 at batch size 1") as error:
        blocked(Echo(fits=0)).generate_until([request("a", 0)])
    assert "smaller model" in (error.value.hint or "")


def test_other_errors_are_not_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_prompts_that_do_not_fit_are_counted():
    model = Echo()
    model.max_length = 20
    lm = blocked(model)
    lm.generate_until([request("x" * 12, 0), request("x" * 13, 1), request("x" * 30, 2)])
    assert lm.truncated_prompts == 2


def test_lengths_without_the_models_tokens_are_counted_in_the_text():
    lm = blocked(Echo())
    lm.generate_until([request("abc", 0), request("abcdefgh", 1)])
    assert [lm.lengths[("t", i)][0].tokens for i in (0, 1)] == [3, 8]
    assert [lm.lengths[("t", i)][0].cut for i in (0, 1)] == [False, True]


def test_lengths_of_vllm_are_its_own():
    class Completions(Echo):
        """Answers as lm-eval's vLLM class does: through `_model_generate` and the hook."""

        def _model_generate(self, **_: Any) -> Any:
            return [
                SimpleNamespace(
                    outputs=[
                        SimpleNamespace(
                            text=text, token_ids=[1] * count, finish_reason="length" if count == 8 else "stop"
                        )
                    ]
                )
                for text, count in (("one", 5), ("two", 8))
            ]

        def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
            found = []
            outputs = self._model_generate(requests=[r.args[0] for r in requests], generate=True)
            for output, asked in zip(outputs, requests, strict=True):
                found.append(output.outputs[0].text)
                self.cache_hook.add_partial("generate_until", asked.args, output.outputs[0].text)
            return found

    model = Completions()
    model.tokenizer.decode = lambda _tokens, **_: ""  # no stop string lies in what was generated
    lm = blocked(model)
    assert lm.generate_until([request("a", 0), request("b", 1)]) == ["one", "two"]
    found = [lm.lengths[("t", i)][0] for i in (0, 1)]
    assert [(length.tokens, length.cut) for length in found] == [(5, False), (8, True)]


@pytest.fixture(scope="module")
def model() -> HFLM:
    return HFLM(pretrained=str(tiny().target), device="cpu", batch_size=3)


def greedy(model: HFLM, prompt: str, count: int) -> list[int]:
    """New tokens by the plainest loop there is."""
    tokens = model.tok_encode(prompt)
    new: list[int] = []
    with torch.no_grad():
        while len(new) < count:
            token = int(model.model(torch.tensor([tokens + new])).logits[0, -1].argmax())
            new.append(token)
            if token == model.eot_token_id:
                break
    return new


def test_lengths_are_those_of_a_greedy_loop(model):
    prompts = [f"Question {i}: how many? Answer:" for i in range(7)]
    lm = blocked(model, block=100)
    texts = lm.generate_until([request(p, i, length=10) for i, p in enumerate(prompts)])
    for i, prompt in enumerate(prompts):
        tokens = greedy(model, prompt, 10)
        ended = tokens[-1] == model.eot_token_id
        length = lm.lengths[("t", i)][0]
        assert length.tokens == len(tokens) - ended
        assert length.cut is not ended
        assert model.tok_decode(tokens[: len(tokens) - ended]) == texts[i]


def test_a_stop_string_ends_the_count(model):
    prompt = "Question: how many? Answer:"
    tokens = greedy(model, prompt, 12)
    pieces = [model.tok_decode(tokens[: i + 1]) for i in range(len(tokens))]
    stop = model.tok_decode([tokens[6]])
    first = next(i for i, piece in enumerate(pieces) if stop in piece)
    lm = blocked(model)
    (text,) = lm.generate_until([request(prompt, 0, until=(stop,), length=12)])
    length = lm.lengths[("t", 0)][0]
    assert stop not in text
    assert not length.cut
    assert length.tokens in (first, first + 1)


def test_the_model_is_left_as_it_was(model):
    hook = model.cache_hook
    blocked(model).generate_until([request("a", 0)])
    assert model.cache_hook is hook
    assert "_model_generate" not in vars(model)


def test_choices_of_a_document_stay_together():
    choices = [
        Instance("loglikelihood", {}, ("x" * (9 - doc), " y" * choice), choice, (task, doc, 1))
        for task in ("a", "b")
        for doc in range(5)
        for choice in range(1, 4)
    ]
    found = batches("loglikelihood", choices, batch=2, block=7)
    assert sorted(index for chunk in found for index in chunk) == list(range(len(choices)))
    assert [len(chunk) for chunk in found] == [6, 6, 6, 6, 6]
    for chunk in found:
        documents = [choices[index].metadata[:2] for index in chunk]
        assert all(documents.count(each) == 3 for each in documents)
    widths = [max(len("".join(choices[index].args)) for index in chunk) for chunk in found]
    assert widths == sorted(widths, reverse=True)


# --- sizes found by trying


@pytest.mark.parametrize(("fits", "size"), [(100, 64), (64, 64), (16, 16), (5, 4), (1, 1), (10**6, 256)])
def test_a_size_grows_until_memory_is_full(fits: int, size: int, tmp_path: Path):
    requests = [request(f"prompt {i}", i) for i in range(200)]
    model = Echo(fits=fits)
    model.tokenizer.decode = "".join
    lm = blocked(model, sizes=Sizes(tmp_path / "sizes"))
    assert lm.generate_until(requests) == [r.args[0].upper() for r in requests]
    assert lm.batch_size == size
    assert lm.warnings == []
    real = [batch for batch in model.asked if batch[0] in {r.args[0] for r in requests}]
    assert [len(batch) for batch in real] == [size] * (200 // size) + [200 % size] * (200 % size > 0)
    # what was tried is as long as a prompt with its answer
    tried = {len(text) for batch in model.asked if batch not in real for text in batch}
    assert tried <= {8 + 8, 9 + 8, 10 + 8}
    assert 10 + 8 in tried
    # the next arm has the size without trying, in this process or another
    again = Echo(fits=fits)
    blocked(again, sizes=Sizes(tmp_path / "sizes")).generate_until(requests)
    assert again.asked == real


def test_a_size_that_another_worker_found_counts(tmp_path: Path):
    sizes = Sizes(tmp_path / "sizes")
    assert Sizes(tmp_path / "sizes").put("generate_until", 32) == 32
    assert sizes.put("generate_until", 128) == 32
    assert sizes.get("loglikelihood") is None


def test_a_size_found_once_is_halved_where_it_does_not_fit_after_all(tmp_path: Path):
    Sizes(tmp_path / "sizes").put("generate_until", 8)
    model = Echo(fits=2)
    lm = blocked(model, sizes=Sizes(tmp_path / "sizes"))
    requests = [request(f"prompt {i}", i) for i in range(20)]
    assert lm.generate_until(requests) == [r.args[0].upper() for r in requests]
    assert lm.batch_size == 2
    assert [len(batch) for batch in model.asked] == [8, 8, 4]  # the batches of every other arm


def test_what_is_wrong_with_a_trial_is_raised():
    class Broken(Echo):
        def generate_until(self, *_: Any, **__: Any) -> list[str]:
            raise ValueError("no such token")

    model = Broken()
    model.tokenizer.decode = "".join
    with pytest.raises(ValueError, match="no such token"):
        blocked(model, sizes=Sizes()).generate_until([request("a", 0)])
