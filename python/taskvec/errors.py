"""The exceptions that taskvec raises: one base, and subclasses that also inherit the fitting builtin; and the
category of its warnings."""

from __future__ import annotations

from typing import Any


class Error(Exception):
    """Base of every error that taskvec raises on purpose.

    Parameters
    ----------
    message : str
        Subject, what was found and what was expected.
    hint : str, optional
        The way out, its options as the command line has them; with the arguments of Python in their place
        it is a note of the exception, so that tracebacks show it.
    """

    def __init__(self, message: str = "", hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            from taskvec.keywords import in_python  # where something went wrong alone

            for line in in_python(hint).splitlines():
                self.add_note(f"hint: {line}")

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> Any:
        return (type(self), (self.message, self.hint), self.__dict__)


class NotFoundError(Error, FileNotFoundError):
    """A folder, file, tensor or repository is not found."""


class TensorNotFoundError(NotFoundError, KeyError):
    """A checkpoint, a vector or a merge has no tensor of a name; the nearest name is the way out."""


class FormatError(Error, ValueError):
    """A file is damaged, hostile, or changed while it was read."""


class CompatibilityError(Error, ValueError):
    """Checkpoints are incompatible; ``findings`` says where."""

    findings: tuple[Any, ...] = ()


class RecipeError(Error, ValueError):
    """A recipe, selection or setting cannot be honoured."""


class OutputError(Error, OSError):
    """Reading or writing failed: disk full, permissions, an unsafe output folder."""


class NonFiniteError(Error, ArithmeticError):
    """NaN or infinity in an input or in the output."""


class VerificationError(Error, ValueError):
    """Files do not match their manifest."""


class EngineError(Error, RuntimeError):
    """A defect in the engine itself."""


class HubError(Error, OSError):
    """The hub, or another address, could not be reached, or refused."""


class EvaluationError(Error, RuntimeError):
    """An evaluation could not be run or compared."""


class TaskvecWarning(UserWarning):
    """Category of every warning: ``warnings.filterwarnings("error", category=taskvec.TaskvecWarning)``."""


class FindingWarning(TaskvecWarning):
    """A finding of a run that is a warning.

    Attributes
    ----------
    finding : Finding
        What it is.
    """

    finding: Any = None


def warn(text: str, finding: Any = None) -> None:
    """Warn at the line of the caller that is outside of this package."""
    import sys
    import warnings

    warning = TaskvecWarning(text) if finding is None else FindingWarning(text)
    if isinstance(warning, FindingWarning):
        warning.finding = finding
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "taskvec":
        depth, frame = depth + 1, frame.f_back
    warnings.warn(warning, stacklevel=depth)
