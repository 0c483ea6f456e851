"""A package `vllm` with an engine of transformers in it: lm-eval's own class for vLLM runs on it unchanged.

It has the parts of vLLM 0.33's interface that are used: `LLM.generate` over `llm_engine.add_request` and
`step`, which ends requests out of their order, several at a time; `collective_rpc("reload_weights")`, and a
cache of prompts that gives wrong answers if it is not emptied after that.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

TREE = {
    "vllm/__init__.py": "from support.fake_vllm import LLM, SamplingParams, TokensPrompt\n",
    "vllm/lora/__init__.py": "",
    "vllm/lora/request.py": "class LoRARequest: pass\n",
    "vllm/renderers/__init__.py": "",
    "vllm/renderers/hf.py": "def resolve_chat_template(tokenizer, **_): return tokenizer.chat_template\n",
    "vllm/tokenizers.py": "from support.fake_vllm import get_tokenizer\n",
    "vllm-0.33.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.0\n",
}
AT_ONCE = 3  # requests that the engine works on

made: list[LLM] = []


def install(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Put the package on the path, for the time of a test; `made` has the engines that were made."""
    for name, text in TREE.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    patch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        patch.delitem(sys.modules, name)
    patch.delitem(sys.modules, "lm_eval.models.vllm_causallms", raising=False)
    made.clear()


def get_tokenizer(name: str, **_: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


class TokensPrompt(dict[str, Any]):
    """A prompt as tokens."""


class SamplingParams:
    """How a request is answered."""

    def __init__(self, **given: Any) -> None:
        self.temperature, self.max_tokens, self.stop, self.seed = 1.0, 16, [], None
        self.prompt_logprobs = None
        for name, value in given.items():
            setattr(self, name, value)

    def clone(self) -> SamplingParams:
        return SamplingParams(**vars(self))


@dataclass
class Engine:
    """Requests in, outputs out, a few at a time and the last one first."""

    llm: LLM
    waiting: list[tuple[str, list[int], SamplingParams]] = field(default_factory=list)
    model_config: Any = None

    def add_request(self, request_id: str, prompt: Any, params: SamplingParams) -> str:
        self.waiting.append((request_id, prompt["prompt_token_ids"], params))
        return request_id

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Any]:
        now, self.waiting = self.waiting[:AT_ONCE], self.waiting[AT_ONCE:]
        if self.llm.dies_after is not None and len(self.llm.asked) >= self.llm.dies_after:
            raise KeyboardInterrupt
        return [self.llm.answer(*request) for request in reversed(now)]


class LLM:
    """The offline engine."""

    dies_after: int | None = None

    def __init__(self, model: str, **_: Any) -> None:
        self.asked: list[list[int]] = []
        self.reloads: list[str] = []
        self._cache: dict[tuple[Any, ...], Any] = {}
        self._number = 0
        self._load(model)
        self.llm_engine = Engine(self)
        self.llm_engine.model_config = SimpleNamespace(max_model_len=512)
        made.append(self)

    def _load(self, folder: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def generate(self, prompts: list[Any], sampling_params: Any, *, use_tqdm: bool, **_: Any) -> list[Any]:
        outputs = []
        if use_tqdm:
            from tqdm import tqdm

            1 / tqdm(total=1).format_dict["elapsed"]  # as vLLM writes its speed into the bar
        for prompt, params in zip(prompts, sampling_params, strict=True):
            self.llm_engine.add_request(str(self._number), prompt, params)
            self._number += 1
        while self.llm_engine.has_unfinished_requests():
            outputs += [each for each in self.llm_engine.step() if each.finished]
        return sorted(outputs, key=lambda each: int(each.request_id))

    def collective_rpc(self, method: str, *, kwargs: dict[str, Any]) -> list[None]:
        assert method == "reload_weights"
        self.reloads.append(kwargs["weights_path"])
        self._load(kwargs["weights_path"])
        return [None]

    def reset_prefix_cache(self) -> bool:
        self._cache.clear()
        return True

    def answer(self, request_id: str, prompt: list[int], params: SamplingParams) -> Any:
        self.asked.append(list(prompt))
        drawn = params.seed if params.temperature else None
        key = (*prompt, str(params.prompt_logprobs), params.max_tokens, *params.stop, drawn)
        if key not in self._cache:
            self._cache[key] = self._scores(prompt), *self._written(prompt, params)
        logprobs, tokens, text, reason = self._cache[key]
        return SimpleNamespace(
            request_id=request_id,
            finished=True,
            outputs=[SimpleNamespace(text=text, token_ids=tokens, finish_reason=reason)],
            prompt_logprobs=logprobs,
            prompt_token_ids=prompt,
        )

    def _scores(self, prompt: list[int]) -> list[Any]:
        """Of every token of a prompt, and of the likeliest in its place."""
        with torch.no_grad():
            scores = self.weights(torch.tensor([prompt])).logits[0].log_softmax(-1)
        found: list[Any] = [None]
        for at in range(1, len(prompt)):
            row = scores[at - 1]
            found.append({int(row.argmax()): float(row.max()), prompt[at]: float(row[prompt[at]])})
        return found

    def _written(self, prompt: list[int], params: SamplingParams) -> tuple[list[int], str, str]:
        generator = torch.Generator().manual_seed(params.seed if params.seed is not None else 0)
        tokens: list[int] = []
        text = ""
        while len(tokens) < params.max_tokens:
            with torch.no_grad():
                last = self.weights(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            chances = (last / (params.temperature or 1)).softmax(-1)
            drawn = torch.multinomial(chances, 1, generator=generator)
            tokens.append(int(drawn) if params.temperature else int(last.argmax()))
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            stop = next((each for each in params.stop if each and each in text), None)
            if tokens[-1] == self.tokenizer.eos_token_id or stop is not None:
                return tokens, text.partition(stop)[0] if stop else text, "stop"
        return tokens, text, "length"
