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

    @contextlib.contextmanager
    def watching(self, told: Told) -> Iterator[None]:
        """While lm-eval generates: `told` is called with how many answers are there besides those before."""
        own = self._inner.__dict__.get("_model_generate")
        generate = self._inner._model_generate

        def watched(*arguments: Any, **named: Any) -> Any:
            prompts, parameters = named.get("requests"), named.get("sampling_params")
            if arguments or prompts is None or not named.get("generate") or not isinstance(parameters, list):
                return generate(*arguments, **named)  # nothing is generated
            return self._answers(generate, list(prompts), parameters, told)

        self._inner._model_generate = watched
        try:
            yield
        finally:
            if own is None:
                del self._inner._model_generate
            else:
                self._inner._model_generate = own

    def _answers(
        self, generate: Callable[..., Any], prompts: list[Any], parameters: list[Any], told: Told
    ) -> list[Any]:
        """An answer to every prompt, in their order; the engine gets those that the journal lacks."""
        keys = []
        for prompt, each in zip(prompts, parameters, strict=True):
            key = _key(prompt, each)
            self._repeats[key] += 1
            keys.append(f"{key}-{self._repeats[key]}")
        found: list[Any] = [self._known(key) for key in keys]
        missing = [index for index, answer in enumerate(found) if answer is None]
        told(len(keys) - len(missing))
        if missing:
            asked = [self._seeded(parameters[index], keys[index]) for index in missing]
            with self._ending([keys[index] for index in missing], told):
                wanted = [prompts[index] for index in missing]
                made = generate(requests=wanted, generate=True, sampling_params=asked)
            for index, answer in zip(missing, made, strict=True):
                found[index] = answer
        return found

    def _known(self, key: str) -> Any:
        """The answer that the journal has, in the form that vLLM gives it; None where it has none."""
        kept = self._journal.get(key) if self._journal is not None else None
        if kept is None:
            return None
        text, tokens, reason = kept
        return SimpleNamespace(outputs=[SimpleNamespace(text=text, token_ids=tokens, finish_reason=reason)])

    def _seeded(self, parameters: Any, key: str) -> Any:
        """The parameters of a drawn answer, with its own seed; those of a greedy one as they are."""
        if not getattr(parameters, "temperature", 0) or getattr(parameters, "seed", None) is not None:
            return parameters
        found = parameters.clone() if hasattr(parameters, "clone") else parameters
        mixed = hashlib.blake2b(f"{self._seed} {key}".encode(), digest_size=8).hexdigest()
        found.seed = int(mixed, 16) % _SEEDS
        return found

    @contextlib.contextmanager
    def _ending(self, keys: Sequence[str], told: Told) -> Iterator[None]:
        """Keep what each step of the engine ends. Requests are told apart by the order of their asking."""
        engine = self._inner.model.llm_engine
        add, step, own = engine.add_request, engine.step, dict(vars(engine))
        order: dict[str, str] = {}

        def adding(*arguments: Any, **named: Any) -> Any:
            name = arguments[0] if arguments else named["request_id"]
            if len(order) < len(keys):
                order[str(name)] = keys[len(order)]
            return add(*arguments, **named)

        def stepping(*arguments: Any, **named: Any) -> Any:
            outputs = step(*arguments, **named)
            ended = [(order.get(str(each.request_id)), each) for each in outputs if each.finished]
            lines = [(key, _kept(each.outputs[0])) for key, each in ended if key is not None]
            if self._journal is not None and lines:
                self._journal.put_all(lines)
            told(len(ended))
            return outputs

        engine.add_request, engine.step = adding, stepping
        try:
            yield
        finally:
            for name in ("add_request", "step"):
                if name in own:
                    setattr(engine, name, own[name])
                else:
                    delattr(engine, name)


def _kept(completion: Any) -> list[Any]:
    return [completion.text, list(completion.token_ids), completion.finish_reason]


def _key(prompt: Sequence[int], parameters: Any) -> str:
    """A digest of a request: its tokens, and all that says how it is answered."""
    text = json.dumps([list(prompt), _stated(parameters)], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _stated(parameters: Any) -> Any:
    """The fields of sampling parameters, which are a struct of msgspec in vLLM."""
    fields = getattr(parameters, "__struct_fields__", None) or sorted(vars(parameters))
    # what begins with a line, and this one, the engine sets by itself as it takes a request
    names = [name for name in fields if not name.startswith("_") and name != "output_kind"]
    return {name: getattr(parameters, name) for name in names}
