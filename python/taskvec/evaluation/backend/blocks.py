"""The model as lm-eval sees it: requests in fixed blocks, each recorded, every new token counted.

`BlockedLM` stands between lm-eval and its own model class. It adds what lm-eval does not do: finished blocks
are kept in a journal, a batch that does not fit on the GPU is halved, and each answer's length is known in
tokens as the model made them, with whether the length limit ended it.
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.model import LM

from taskvec.errors import EvaluationError
from taskvec.evaluation.backend.journal import Journal, block_key

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Length:
    """One answer's length in tokens, and whether the limit ended it."""

    tokens: int
    cut: bool


class BlockedLM(LM):
    """Wraps an lm-eval model.

    Parameters
    ----------
    inner : LM
        The model that answers.
    block : int
        Requests per block.
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
        journal: Journal | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.inner = inner
        self._block, self._seed = block, seed
        self._journal, self._progress = journal, progress
        self._counter = TokenCounter(inner)
        self._repeats: Counter[str] = Counter()
        self.lengths: dict[tuple[str, int], list[Length]] = defaultdict(list)
        self.truncated_prompts = 0
        self.warnings: list[str] = []

    # --- what lm-eval asks of a model
    # -------------------------------------------------------------------------

    def generate_until(self, requests: list[Any]) -> list[str]:
        answers = self._run("generate_until", requests)
        for request, (_, tokens, cut) in zip(requests, answers, strict=True):
            self.lengths[(str(request.task_name), int(request.doc_id))].append(Length(tokens, cut))
        return [text for text, _, _ in answers]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [(value, greedy) for value, greedy in self._run("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return self._run("loglikelihood_rolling", requests)

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

    # --- blocks
    # -----------------------------------------------------------------------------------------------

    def _run(self, attribute: str, requests: list[Any]) -> list[Any]:
        """Answers in the order of `requests`, task by task and block by block."""
        by_task: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            by_task[str(request.task_name)].append(index)
        answers: list[Any] = [None] * len(requests)
        for task, indices in by_task.items():
            for start in range(0, len(indices), self._block):
                chunk = indices[start : start + self._block]
                if self._progress is not None:
                    self._progress(task, start, len(indices))
                for index, answer in zip(
                    chunk, self._answer(attribute, [requests[i] for i in chunk]), strict=True
                ):
                    answers[index] = answer
            if self._progress is not None:
                self._progress(task, len(indices), len(indices))
        return answers

    def _answer(self, attribute: str, requests: list[Any]) -> list[Any]:
        key = block_key(attribute, [request.args for request in requests], 0)
        self._repeats[key] += 1
        if self._repeats[key] > 1:
            key = block_key(attribute, [request.args for request in requests], self._repeats[key])
        known = self._journal.get(key) if self._journal is not None else None
        if known is not None and len(known) == len(requests):
            return known
        _seed_everything(self._seed, key)
        answers = self._within_memory(attribute, requests)
        if self._journal is not None:
            self._journal.put(key, answers)
        return answers

    def _within_memory(self, attribute: str, requests: list[Any]) -> list[Any]:
        while True:
            try:
                return self._ask(attribute, requests)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                smaller = self._halve()
                if smaller is None:
                    raise EvaluationError(
                        f"out of memory on {self.device} at batch size {self.batch_size}",
                        "use a smaller model, a shorter --max-gen-toks, another --device, or --backend vllm",
                    ) from error
                self.warnings.append(
                    f"out of memory at batch size {smaller * 2} or so: went on with {smaller}"
                )
            free_memory()

    def _halve(self) -> int | None:
        size = self.batch_size
        if not isinstance(size, int) or size <= 1:
            return None
        # lm-eval's hf class keeps its batch size under this name; `batch_size` itself is read-only there
        self.inner.batch_size_per_gpu = size // 2
        return size // 2

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


class TokenCounter:
    """Counts the tokens of each answer as the backend made them.

    lm-eval returns text alone. Its backends hand every answer to a hook, right after the batch that made it,
    so the batch's own tokens can be told apart row by row. Where that is not possible, the text is tokenized
    again.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._rows: list[Any] = []
        self._found: dict[tuple[str, str], list[Length]] = defaultdict(list)

    @contextlib.contextmanager
    def watching(self) -> Any:
        """While lm-eval generates: see each batch and each answer."""
        model = self._model
        self._rows.clear()
        self._found.clear()
        hook = getattr(model, "cache_hook", None)
        generate = getattr(model, "_model_generate", None)
        if hook is None or generate is None:
            yield
            return

        def watched(*arguments: Any, **named: Any) -> Any:
            output = generate(*arguments, **named)
            context = named.get("context")
            self._rows = list(_rows(output, 0 if context is None else context.shape[1]))
            return output

        model._model_generate = watched
        model.cache_hook = self
        try:
            yield
        finally:
            del model._model_generate
            model.cache_hook = hook

    def add_partial(self, attribute: str, arguments: Sequence[Any], text: Any) -> None:
        """What lm-eval calls with each answer, in the order of the batch's rows."""
        if attribute == "generate_until" and self._rows:
            row = self._rows.pop(0)
            self._found[(str(arguments[0]), text)].append(self._measure(row, arguments[1], text))

    def length(self, arguments: Sequence[Any], text: str) -> Length:
        """The length of one answer."""
        found = self._found.get((str(arguments[0]), text))
        if found:
            return found.pop(0) if len(found) > 1 else found[0]
        count = len(self._model.tokenizer.encode(text, add_special_tokens=False)) if text else 0
        return Length(count, count >= int(arguments[1].get("max_gen_toks", count + 1)))

    def _measure(self, row: Any, arguments: Any, text: str) -> Length:
        limit = int(arguments.get("max_gen_toks", 0))
        if not isinstance(row, list):  # vLLM says itself why it stopped
            return Length(len(row.token_ids), row.finish_reason == "length")
        tokens, ended = _until_end(row, self._ends())
        decode = self._model.tok_decode
        if len(decode(tokens)) > len(text):  # a stop string ended it: the tokens up to that string
            low, high = 0, len(tokens)
            while low < high:
                middle = (low + high) // 2
                if len(decode(tokens[:middle])) >= len(text):
                    high = middle
                else:
                    low = middle + 1
            return Length(low, False)
        return Length(len(tokens), not ended and len(tokens) >= limit)

    def _ends(self) -> set[int]:
        model = getattr(self._model, "model", None)
        config = getattr(model, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        found = set(ends) if isinstance(ends, (list, tuple)) else {ends}
        found.add(getattr(self._model, "eot_token_id", None))
        return {int(token) for token in found if token is not None}


def _rows(output: Any, prompt: int) -> list[Any]:
    """The new tokens of each row: a list of token numbers, or vLLM's completion."""
    if hasattr(output, "tolist"):
        return [row[prompt:] for row in output.tolist()]
    return [row.outputs[0] for row in output]


def _until_end(tokens: list[int], ends: set[int]) -> tuple[list[int], bool]:
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[:index], True
    return tokens, False


def _seed_everything(seed: int, key: str) -> None:
    import random

    import numpy as np
    import torch

    mixed = (seed ^ int(key[:8], 16)) & 0x7FFFFFFF
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device's memory, or the machine's, did not suffice."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in said or "can't allocate memory" in said or "cublas_status_alloc_failed" in said
    )


def free_memory() -> None:
    """Give back what a deleted model or a failed batch held."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
