"""A plugin of axolotl: task vectors and merges while a model is trained.

In a configuration of axolotl::

    plugins:
      - taskvec.integrations.axolotl.TaskVectorPlugin
    task_vector:
      out: ./vectors
      target: org/other-model
      alpha: 0.5

The interface is that of ``axolotl.integrations.base.BasePlugin``.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from taskvec.errors import RecipeError
from taskvec.text import alike

try:
    from axolotl.integrations.base import BasePlugin  # type: ignore[import-not-found]
except ImportError:  # its methods are called by name, and axolotl is not needed to look at this one
    BasePlugin = object


class TaskVectorArgs(BaseModel):
    """What a configuration may say: arguments of ``taskvec.integrations.trainer.TaskVectorCallback``."""

    model_config = ConfigDict(extra="ignore")

    task_vector: dict[str, Any] | None = None


_KNOWN = frozenset(
    {"reference", "out", "vectors", "dtype", "recipe", "target", "alpha", "average", "stop_on_error"}
)


class TaskVectorPlugin(BasePlugin):  # type: ignore[misc,valid-type]
    """Adds a :class:`taskvec.integrations.trainer.TaskVectorCallback` to the trainer."""

    def get_input_args(self) -> str:
        """The model of the keys that a configuration may have."""
        return "taskvec.integrations.axolotl.TaskVectorArgs"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:  # noqa: ARG002
        """The callback that the configuration asks for.

        Raises
        ------
        RecipeError
            A key that is not known.
        """
        from taskvec.integrations.trainer import TaskVectorCallback

        given = dict(cfg.get("task_vector") or {})
        from taskvec.option import options_of
        from taskvec.settings import Settings

        known = _KNOWN | set(options_of(Settings))
        for key in given:
            if key not in known:
                near = alike(key, sorted(known), n=1)
                raise RecipeError(
                    f"`task_vector` has the unknown key `{key}`",
                    f"did you mean `{near[0]}`?" if near else f"the keys are {', '.join(sorted(_KNOWN))}",
                )
        reference = given.pop("reference", None) or cfg.get("base_model")
        out = given.pop("out", None) or f"{cfg.get('output_dir') or './model-out'}/task-vectors"
        return [TaskVectorCallback(reference, out, **given)]
