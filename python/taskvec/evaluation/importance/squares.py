"""The diagonal of the Fisher information: squared gradients of the log-likelihood, document by document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskvec.evaluation.importance.answers import Tokens


class Squares:
    """Sums of squared gradients of a model's parameters.

    Each document goes through the model alone: what is squared is the gradient of one document, and not that
    of a batch (Kunstner, Balles and Hennig, 1905.12558, on what the difference makes).

    Parameters
    ----------
    model : torch module
        A causal language model.

    Attributes
    ----------
    sums : dict of str to tensor
        By parameter, in float32, or in float64 where the parameter is; shared parameters once.
    reached : set of str
        Parameters that had a gradient at least once.
    """

    def __init__(self, model: Any) -> None:
        import torch

        self._model = model
        self._parameters = dict(model.named_parameters())
        wide = torch.float64
        self.sums: dict[str, Any] = {}
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(True)
            parameter.grad = None
            dtype = wide if parameter.dtype == wide else torch.float32
            self.sums[name] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        self.reached: set[str] = set()

    def add(self, tokens: Tokens) -> None:
        """Add the squares of the gradient of log p(answer | prompt)."""
        import torch

        with torch.enable_grad():
            ids = torch.tensor([tokens.ids[:-1]], device=self._model.device)
            logits = self._model(input_ids=ids, use_cache=False).logits[0, -tokens.answer :]
            logits = logits if logits.dtype == torch.float64 else logits.float()
            wanted = torch.tensor(tokens.ids[-tokens.answer :], device=logits.device)
            picked = torch.log_softmax(logits, -1).gather(-1, wanted[:, None])
            picked.sum().backward()
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if parameter.grad is None:
                    continue
                gradient = parameter.grad.to(self.sums[name].dtype)
                self.sums[name].addcmul_(gradient, gradient)
                self.reached.add(name)
                parameter.grad = None

    def restore(self, sums: Mapping[str, Any], reached: set[str]) -> None:
        """Go on from sums that were kept."""
        for name, kept in sums.items():
            self.sums[name].copy_(kept)
        self.reached = set(reached)


def drawn(model: Any, tokens: Tokens, seed: int, ends: frozenset[int]) -> Tokens:
    """The example with an answer that the model draws, token by token, at most as long as the reference.

    Parameters
    ----------
    model : torch module
    tokens : Tokens
    seed : int
        Of the draws of this document.
    ends : frozenset of int
        Tokens after which an answer is over.
    """
    import torch

    prompt = torch.tensor([tokens.ids[: -tokens.answer]], device=model.device)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        made = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens.answer,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=0),
        )
    ids = tuple(made[0].tolist())
    return Tokens(ids, len(ids) - prompt.shape[1])
