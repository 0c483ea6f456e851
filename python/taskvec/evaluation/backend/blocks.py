"""The model as lm-eval sees it: requests in fixed batches, each recorded, every new token counted.

`BlockedLM` is between lm-eval and its own model class. It adds what lm-eval does not do: requests of all
tasks are batched together by length, finished batches are kept in a journal (an engine of vLLM gets all that
it is asked at once, with the draws that follow, and every answer is kept), a batch that does not fit on the
GPU is halved, and each answer's length is known in tokens as the model made them, with whether the length
limit ended it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from lm_eval.api.model import LM

from taskvec.errors import EvaluationError
from taskvec.evaluation.backend.foreseen import Foreseen
from taskvec.evaluation.backend.journal import Journal, block_key
from taskvec.evaluation.backend.lengths import Length, TokenCounter
from taskvec.evaluation.backend.likelihoods import Likelihoods
from taskvec.evaluation.backend.memory import free_memory, is_out_of_memory
from taskvec.evaluation.backend.order import batches, length_of
from taskvec.evaluation.backend.sizes import Sizes, grown, trial
from taskvec.evaluation.backend.streamed import Streamed, streams
from taskvec.text import plural

Progress = Callable[[str, int, int], None]


class BlockedLM(LM):
    """An lm-eval model with recorded blocks around it.

    Parameters
    ----------
    inner : LM
        The model that answers.
    block : int
        Requests that lm-eval gets at once, where nothing is generated.
    batch : int, optional
        Generating requests at once; by default `block`. Each batch is recorded, of likelihoods too.
    sizes : Sizes, optional
        Batch sizes are to be found by trying, and are kept there.
    seed : int
        Sampling is seeded per block, so that it does not depend on what was done before.
    journal : Journal, optional
        Where finished blocks are kept.
    progress : callable, optional
        Called as ``progress(task, done, total)`` with counts of requests.
    """

    def __init__(
        self,
        inner: Any,
        *,
        block: int,
        seed: int,
        batch: int | None = None,
        sizes: Sizes | None = None,
        journal: Journal | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.inner = inner
        self._block, self._batch, self._sizes, self._seed = block, batch or block, sizes, seed
        self._journal, self._progress = journal, progress
        self._counter = TokenCounter(inner)
        self._streamed = Streamed(inner, journal, seed) if streams(inner) else None
        self._repeats: Counter[str] = Counter()
        self.foreseen = Foreseen()
        self.lengths: dict[tuple[str, int], list[Length]] = defaultdict(list)
        self.truncated_prompts = 0
        self._whole: int | str | None = None
        self._tight: tuple[int, int | str] | None = (
            None  # the length that a size was too large for, and the next
        )
        self.warnings: list[str] = []

    # --- the interface of an lm-eval model

    def generate_until(self, requests: list[Any]) -> list[str]:
        self.foreseen.hold(requests)
        if self._streamed:
            answers = self.foreseen.answers(requests, lambda all_: self._stream("generate_until", all_))
        else:
            answers = self._run("generate_until", requests)
        for request, (_, tokens, cut) in zip(requests, answers, strict=True):
            self.lengths[(str(request.task_name), int(request.doc_id))].append(Length(tokens, cut))
        return [text for text, _, _ in answers]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [(value, greedy) for value, greedy in self._likely("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return self._likely("loglikelihood_rolling", requests)

    @property
    def tokenizer_name(self) -> str:
        return self.inner.tokenizer_name

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.inner.apply_chat_template(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.inner.chat_template(chat_template)

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def world_size(self) -> int:
        return self.inner.world_size

    @property
    def device(self) -> Any:
        return self.inner.device

    @property
    def max_length(self) -> int:
        """Tokens that the model holds, prompt and answer together."""
        return self.inner.max_length

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.inner.tokenizer

    @property
    def batch_size(self) -> int | str:
        """The batch size in use, after any halving."""
        return getattr(self.inner, "batch_size", 1)

    @property
    def streams(self) -> bool:
        """Whether the model is an engine that batches by itself."""
        return self._streamed is not None

    def _likely(self, attribute: str, requests: list[Any]) -> list[Any]:
        return self._stream(attribute, requests) if self._streamed else self._run(attribute, requests)

    # --- blocks

    def _run(self, attribute: str, requests: list[Any]) -> list[Any]:
        """Answers in the order of `requests`, batch by batch over all tasks."""
        if self._sizes is not None and requests:
            self._grow(self._sizes, attribute, requests)
        total = Counter(str(request.task_name) for request in requests)
        done: Counter[str] = Counter()
        self._tell(total, done, total)
        answers: list[Any] = [None] * len(requests)
        # lm-eval tells the likelihoods of whole texts, in windows, only when all of a call are answered
        block = self._batch if attribute == "loglikelihood_rolling" else self._block
        for chunk in batches(attribute, requests, batch=self._batch, block=block):
            found = self._answer(attribute, [requests[index] for index in chunk])
            for index, answer in zip(chunk, found, strict=True):
                answers[index] = answer
            answered = Counter(str(requests[index].task_name) for index in chunk)
            done += answered
            self._tell(answered, done, total)
        return answers

    def _stream(self, attribute: str, requests: list[Any]) -> list[Any]:
        """Answers of an engine that batches by itself, in the order of `requests`."""
        assert self._streamed is not None
        total = Counter(str(request.task_name) for request in requests)
        self._tell(total, Counter(), total)
        names, done = ", ".join(total) if len(total) <= 3 else plural(len(total), "task"), 0

        def told(more: int) -> None:
            nonlocal done
            done = min(done + more, len(requests))  # of a text there may be several windows
            if self._progress is not None and more:
                self._progress(names, done, len(requests))

        with self._streamed.watching(told):
            answers = self._ask(attribute, requests)
        self._tell(total, total, total)
        return answers

    def _tell(self, tasks: Iterable[str], done: Counter[str], total: Counter[str]) -> None:
        for task in tasks if self._progress is not None else ():
            assert self._progress is not None
            self._progress(task, done[task], total[task])

    def _grow(self, sizes: Sizes, attribute: str, requests: list[Any]) -> None:
        """Use the batch size that was found for such requests, or find it."""
        size = sizes.get(attribute)
        if size is None:
            longest = sorted(requests, key=lambda request: -length_of(request))

            def ask(size: int) -> None:
                self._use(size)
                getattr(self.inner, attribute)(trial(self.inner, attribute, longest, size), disable_tqdm=True)

            def is_full(error: Exception) -> bool:
                full = is_out_of_memory(error)
                if full:
                    free_memory()
                return full

            size = sizes.put(attribute, grown(ask, is_full, len(requests)))
        self._whole, self._batch, self._block, self._tight = size, size, 8 * size, None
        self._use(size)

    def _answer(self, attribute: str, requests: list[Any]) -> list[Any]:
        key = block_key(attribute, [request.args for request in requests], 0)
        self._repeats[key] += 1
        if self._repeats[key] > 1:
            key = block_key(attribute, [request.args for request in requests], self._repeats[key])
        if attribute == "loglikelihood" and self._journal is not None:
            book = Likelihoods(self.inner, self._journal, key, lambda: self.batch_size)
            return self._likelihoods(book, requests)
        known = self._journal.get(key) if self._journal is not None else None
        if known is not None and len(known) == len(requests):
            return known
        _seed_everything(self._seed, key)
        answers = self._within_memory(requests, lambda: self._ask(attribute, requests))
        if self._journal is not None:
            self._journal.put(key, answers)
        return answers

    def _likelihoods(self, book: Likelihoods, requests: list[Any]) -> list[Any]:
        """The likelihoods of a block, of which some may be known."""

        def ask() -> list[Any]:
            lacking = book.missing(requests)
            if lacking:
                with book.watching():
                    found = self._ask("loglikelihood", lacking)
                    book.take(lacking, found)
            return book.answers(requests)

        if not book.missing(requests):
            return book.answers(requests)
        return self._within_memory(requests, ask, book.size)

    def _within_memory(
        self, requests: list[Any], ask: Callable[[], list[Any]], size: int | str | None = None
    ) -> list[Any]:
        """The answers of a block, in halved batches where memory does not suffice.

        A size that was too large is tried again once prompts are half as long: they come sorted, and one too
        long is followed by others of its length. The answers of a block must not depend on blocks that a
        resumed run does not repeat, so a smaller size is used only where the larger one would not fit. `size`
        is that of a block which was begun before.
        """
        if self._whole is None:
            self._whole = self.batch_size
        longest = max(map(length_of, requests), default=0)
        is_tight = self._tight is not None and longest * 2 > self._tight[0]
        wanted = size or (self._tight[1] if self._tight is not None and is_tight else self._whole)
        if self.batch_size != wanted:
            self._use(wanted)
        while True:
            try:
                return ask()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(error)
                self._tight = longest, self.batch_size
            free_memory()

    def _halve(self, error: Exception) -> None:
        size = self.batch_size
        if not isinstance(size, int) or size <= 1:
            raise EvaluationError(
                f"out of memory on {self.device} at batch size {size}",
                "use a smaller model, a shorter --max-gen-toks, another --device, or `--backend vllm`",
            ) from error
        self._use(size // 2)
        text = f"out of memory at batch size {size}: went on with {size // 2} until the block was answered"
        if text not in self.warnings:
            self.warnings.append(text)

    def _use(self, size: int | str) -> None:
        # lm-eval's hf class keeps its batch size under this name; `batch_size` itself is read-only there
        self.inner.batch_size_per_gpu = size

    def _ask(self, attribute: str, requests: list[Any]) -> list[Any]:
        ask = getattr(self.inner, attribute)
        if attribute != "generate_until":
            found = ask(requests, disable_tqdm=True)
            if attribute == "loglikelihood":
                return [[float(value), bool(greedy)] for value, greedy in found]
            return [float(value) for value in found]
        with self._counter.watching():
            texts = ask(requests, disable_tqdm=True)
            answers = []
            for request, text in zip(requests, texts, strict=True):
                length = self._counter.length(request.args, text)
                answers.append([text, length.tokens, length.cut])
        self.truncated_prompts += self._too_long(requests)
        return answers

    def _too_long(self, requests: list[Any]) -> int:
        """Prompts that lm-eval cuts on the left because prompt and answer do not fit together."""
        count = 0
        for request in requests:
            prompt, arguments = request.args[:2]
            room = self.max_length - int(arguments.get("max_gen_toks", 0))
            # a token is at least one character: most prompts need no tokenizer to be known to fit
            if len(prompt) > room and len(self.inner.tokenizer.encode(prompt)) > room:
                count += 1
        return count


def _seed_everything(seed: int, key: str) -> None:
    import random

    import numpy as np
    import torch

    mixed = (seed ^ int(key[:8], 16)) & 0x7FFFFFFF
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
