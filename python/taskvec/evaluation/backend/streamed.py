"""Everything that an arm has to answer, given to vLLM at once; each answer is kept as the engine ends it.

vLLM batches by itself, and takes a new request as soon as one has ended. Blocks would empty its batch again
and again, so all requests go to it in one call. Two of its methods are watched meanwhile: `add_request` for
the order in which lm-eval asks, and `step`, which returns the requests that have ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from taskvec.evaluation.backend.journal import Journal

Told = Callable[[int], None]
Pack = Callable[[int, Any], list[Any]]
"""What is kept of the output of the request at a position."""
Unpack = Callable[[int, list[Any]], Any]
"""An output in vLLM's form, of what was kept."""

_SEEDS = 2**31 - 1


def streams(inner: Any) -> bool:
    """Whether a model of lm-eval is one engine of vLLM that can be watched as its requests end."""
    engine = getattr(getattr(inner, "model", None), "llm_engine", None)
    return (
        callable(getattr(inner, "_model_generate", None))
        and callable(getattr(engine, "step", None))
        and callable(getattr(engine, "add_request", None))
    )


class Streamed:
    """The answers of one vLLM engine, kept one by one.

    Parameters
    ----------
    inner : lm_eval VLLM
    journal : Journal, optional
        Where answers are kept, those of one step of the engine at a time.
    seed : int
        An answer that is drawn has a seed of its own, made of this one, its prompt and its number: it depends
        neither on the batch nor on what was answered before.
    """

    def __init__(self, inner: Any, journal: Journal | None, seed: int) -> None:
        self._inner, self._journal, self._seed = inner, journal, seed
        self._repeats: Counter[str] = Counter()
        self._tails: dict[tuple[int, ...], int] = {}

    @contextlib.contextmanager
    def watching(self, told: Told) -> Iterator[None]:
        """While lm-eval asks: `told` is called with how many answers are there besides those before."""
        generate = self._inner._model_generate

        def watched(*arguments: Any, **named: Any) -> Any:
            prompts, parameters = named.get("requests"), named.get("sampling_params")
            if arguments or prompts is None:
                return generate(*arguments, **named)
            if named.get("generate") and isinstance(parameters, list):
                return self._generated(generate, list(prompts), parameters, told)
            if not named.get("generate") and parameters is None:
                return self._scored(generate, list(prompts), told)
            return generate(*arguments, **named)

        with (
            _replaced(self._inner, "_model_generate", watched),
            _replaced(self._inner, "_loglikelihood_tokens", self._seen(self._inner)),
        ):
            yield

    # --- the two things that an engine is asked

    def _generated(
        self, generate: Callable[..., Any], prompts: list[Any], parameters: list[Any], told: Told
    ) -> list[Any]:
        keys = self._keys(
            [_key(prompt, _stated(each)) for prompt, each in zip(prompts, parameters, strict=True)]
        )

        def ask(missing: list[int]) -> Any:
            asked = [self._seeded(parameters[index], keys[index]) for index in missing]
            return generate(
                requests=[prompts[index] for index in missing], generate=True, sampling_params=asked
            )

        return self._answers(keys, ask, lambda _, output: _kept(output.outputs[0]), _completed, told)

    def _scored(self, generate: Callable[..., Any], prompts: list[Any], told: Told) -> list[Any]:
        """Likelihoods of prompts; of each only those of its last tokens are kept, which lm-eval sums."""
        tails = [self._tails.get(tuple(prompt), len(prompt)) for prompt in prompts]
        keys = self._keys(
            [_key(prompt, ["likelihood", tail]) for prompt, tail in zip(prompts, tails, strict=True)]
        )

        def ask(missing: list[int]) -> Any:
            return generate(requests=[prompts[index] for index in missing], generate=False)

        def pack(index: int, output: Any) -> list[Any]:
            return _tail(output.prompt_logprobs, prompts[index], tails[index])

        def unpack(index: int, kept: list[Any]) -> Any:
            return SimpleNamespace(prompt_logprobs=_whole(kept, prompts[index]))

        return self._answers(keys, ask, pack, unpack, told)

    def _seen(self, inner: Any) -> Callable[..., Any]:
        """lm-eval's `_loglikelihood_tokens`, with a note of how long the continuation of each prompt is."""
        own = getattr(inner, "_loglikelihood_tokens", None)

        def seen(requests: Any, *arguments: Any, **named: Any) -> Any:
            assert own is not None
            self._tails = {}
            room = int(inner.max_length) - 1
            for _, context, continuation in requests:
                prompt = tuple([*context, *continuation][-room:])
                self._tails[prompt] = max(self._tails.get(prompt, 0), len(continuation))
            return own(requests, *arguments, **named)

        return seen

    # --- asking, and keeping what has ended

    def _keys(self, plain: Sequence[str]) -> list[str]:
        """The keys of requests, in which equal ones are numbered."""
        keys = []
        for key in plain:
            self._repeats[key] += 1
            keys.append(f"{key}-{self._repeats[key]}")
        return keys

    def _answers(
        self,
        keys: Sequence[str],
        ask: Callable[[list[int]], Sequence[Any]],
        pack: Pack,
        unpack: Unpack,
        told: Told,
    ) -> list[Any]:
        """An answer to every request, in their order; the engine gets those that the journal lacks."""
        found: list[Any] = []
        for index, key in enumerate(keys):
            kept = self._journal.get(key) if self._journal is not None else None
            found.append(None if kept is None else unpack(index, kept))
        missing = [index for index, answer in enumerate(found) if answer is None]
        told(len(keys) - len(missing))
        if missing:
            with self._ending(keys, missing, pack, told):
                made = ask(missing)
            for index, answer in zip(missing, made, strict=True):
                found[index] = answer
        return found

    def _seeded(self, parameters: Any, key: str) -> Any:
        """The parameters of a drawn answer, with its own seed; those of a greedy one as they are."""
        if not getattr(parameters, "temperature", 0) or getattr(parameters, "seed", None) is not None:
            return parameters
        found = parameters.clone() if hasattr(parameters, "clone") else parameters
        mixed = hashlib.blake2b(f"{self._seed} {key}".encode(), digest_size=8).hexdigest()
        found.seed = int(mixed, 16) % _SEEDS
        return found

    @contextlib.contextmanager
    def _ending(self, keys: Sequence[str], asked: list[int], pack: Pack, told: Told) -> Iterator[None]:
        """Keep what each step of the engine ends. Requests are told apart by the order of their asking."""
        engine = self._inner.model.llm_engine
        add, step = engine.add_request, engine.step
        order: dict[str, int] = {}

        def adding(*arguments: Any, **named: Any) -> Any:
            name = arguments[0] if arguments else named["request_id"]
            if len(order) < len(asked):
                order[str(name)] = asked[len(order)]
            return add(*arguments, **named)

        def stepping(*arguments: Any, **named: Any) -> Any:
            outputs = step(*arguments, **named)
            ended = [(order.get(str(each.request_id)), each) for each in outputs if each.finished]
            lines = [(keys[index], pack(index, each)) for index, each in ended if index is not None]
            if self._journal is not None and lines:
                self._journal.put_all(lines)
            told(len(ended))
            return outputs

        with _replaced(engine, "add_request", adding), _replaced(engine, "step", stepping):
            yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of an object is another one meanwhile."""
    had, own = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, own)
        else:
            delattr(owner, name)


def _kept(completion: Any) -> list[Any]:
    return [completion.text, list(completion.token_ids), completion.finish_reason]


def _completed(_index: int, kept: list[Any]) -> Any:
    text, tokens, reason = kept
    return SimpleNamespace(outputs=[SimpleNamespace(text=text, token_ids=tokens, finish_reason=reason)])


def _tail(found: Sequence[Any], prompt: Sequence[int], length: int) -> list[Any]:
    """The log-likelihoods of the last tokens of a prompt: each alone where it is the likeliest in its place.

    Else it is followed by the likeliest token and that one's log-likelihood.
    """
    rows: list[Any] = []
    for token, row in zip(prompt[-length:], found[-length:], strict=True):
        if row is None:  # of the first token of a prompt, which nothing precedes
            rows.append(None)
            continue
        values = {each: float(getattr(value, "logprob", value)) for each, value in row.items()}
        top = max(values, key=lambda each: values[each])
        rows.append([values[token]] if top == token else [values[token], top, values[top]])
    return rows


def _whole(kept: Sequence[Any], prompt: Sequence[int]) -> list[Any]:
    """What `_tail` has kept, in the form of vLLM: a mapping by token for each token of the prompt."""
    rows: list[Any] = [None] * (len(prompt) - len(kept))
    for token, row in zip(prompt[-len(kept) :], kept, strict=True):
        rows.append(None if row is None else {**({row[1]: row[2]} if len(row) > 1 else {}), token: row[0]})
    return rows


def _key(prompt: Sequence[int], stated: Any) -> str:
    """A digest of a request: its tokens, and all that says how it is answered."""
    text = json.dumps([list(prompt), stated], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _stated(parameters: Any) -> Any:
    """The fields of sampling parameters, which are a struct of msgspec in vLLM."""
    fields = getattr(parameters, "__struct_fields__", None) or sorted(vars(parameters))
    # what begins with a line, and this one, the engine sets by itself as it takes a request
    names = [name for name in fields if not name.startswith("_") and name != "output_kind"]
    return {name: getattr(parameters, name) for name in names}
