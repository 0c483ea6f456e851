"""Which tensors of a distributed checkpoint are the model's, and their names in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from taskvec.errors import FormatError
from taskvec.regex import regex
from taskvec.resolve.distributed.metadata import Contents, Entry
from taskvec.text import listed

# Keys of a nested state dict that hold another one.
_WRAPPERS = frozenset({"state_dict", "app", "checkpoint", "app_state"})
_MODELS = frozenset({"model", "model_state_dict", "module", "network", "actor", "policy"})
# Those of everything else that trainers keep.
_OPTIMIZERS = frozenset(
    {"optimizer", "optim", "optimizers", "optimizer_state", "optim_state", "optimizer_state_dict", "opt"}
)
# Of several optimizers Megatron has a number before the name.
_CHAINED = regex(r"chained_\d+")
_TRAINERS = frozenset(
    {
        "lr_scheduler",
        "lr_schedulers",
        "scheduler",
        "opt_param_scheduler",
        "dataloader",
        "train_state",
        "trainer",
    }
    | {"rng_state", "rng", "scaler", "grad_scaler", "step", "steps", "epoch", "iteration", "global_step"}
    | {"args", "config", "rerun_state_machine", "loss", "metrics"}
)
# What optimizers keep of each weight, by which one under another name is known.
_MOMENTS = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"})
# What wraps a module leaves its name in those of the tensors.
_MODULES = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")


def names_of(contents: Contents) -> tuple[dict[str, Entry], dict[str, int]]:
    """The model's tensors by their names, and how many tensors were left out, by what they belong to.

    Raises
    ------
    FormatError
        There are none, those of several models, or two have one name.
    """
    places = {name: _placed(entry) for name, entry in contents.tensors.items()}
    optimizers = _OPTIMIZERS | {path[0] for path in places.values() if len(path) > 1 and path[-1] in _MOMENTS}
    optimizers -= _MODELS
    left: Counter[str] = Counter()
    kept: dict[str, tuple[str, ...]] = {}
    for name, path in places.items():
        first = path[0].partition(".")[0]
        if first in optimizers or _CHAINED.fullmatch(first):
            left["optimizer"] += 1
        elif path[0] in _TRAINERS:
            left["trainer"] += 1
        else:
            kept[name] = path
    models = {path[0] for path in kept.values() if path[0] in _MODELS and len(path) > 1}
    nested = {name for name in kept if contents.tensors[name].is_nested}
    strips = _container(kept, nested, models, has_others=bool(left))
    found: dict[str, Entry] = {}
    for name, path in kept.items():
        if strips and (path[0] != strips or len(path) == 1):
            left[path[0]] += 1
            continue
        plain = _plain(".".join(path[1:] if strips else path))
        if plain in found:
            raise FormatError(
                f"two tensors of the checkpoint would be called `{plain}`",
                "save the model's state dict alone",
            )
        found[plain] = contents.tensors[name]
    if not found:
        raise FormatError(
            f"there are no weights in it, but {_words(left)}", "give the checkpoint that holds the model"
        )
    shared = all(name.startswith("module.") for name in found)
    return {name.removeprefix("module.") if shared else name: e for name, e in found.items()}, dict(left)


def _placed(entry: Entry) -> tuple[str, ...]:
    """The keys without those that only wrap."""
    path = entry.path
    while len(path) > 1 and path[0] in _WRAPPERS:
        path = path[1:]
    return path


def _container(
    kept: Mapping[str, tuple[str, ...]], nested: Iterable[str], models: set[str], *, has_others: bool
) -> str | None:
    """The key that holds the model's state dict; ``None`` where the tensors' own names begin at the top.

    `model.` begins the names of many models too: it is known to be a container where the checkpoint keeps
    its nesting, where the name comes twice, or where an optimiser lies next to it.
    """
    holders = [
        key for key in sorted(models) if {n for n, path in kept.items() if path[0] == key} <= set(nested)
    ]
    if len(holders) > 1:
        raise FormatError(
            f"there are several models in it: {listed(holders)}", "save the state dict of one of them alone"
        )
    for key in sorted(models):
        inside = [name for name, path in kept.items() if path[0] == key and len(path) > 1]
        if set(inside) <= set(nested):
            return key
        twice = any(kept[name][1] == key for name in inside)
        if twice or (has_others and len(inside) == len(kept)):
            return key
    return None


def _plain(name: str) -> str:
    for word in _MODULES:
        name = name.replace(word, "")
    return name


def _words(left: Mapping[str, int]) -> str:
    return listed([f"{count} tensors of the {what}" for what, count in left.items()])
