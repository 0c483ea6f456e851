"""The exceptions that taskvec raises: one base, and subclasses that also inherit the fitting builtin."""

from __future__ import annotations

from typing import Any


class Error(Exception):
    """Base of every error that taskvec raises on purpose.

    Parameters
    ----------
    message : str
        Subject, what was found and what was expected.
    hint : str, optional
        The way out.
    """

    def __init__(self, message: str = "", hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> Any:
        return (type(self), (self.message, self.hint), self.__dict__)


class NotFoundError(Error, FileNotFoundError):
    """A folder, file, tensor or repository is not there."""


class FormatError(Error, ValueError):
    """A file is damaged, hostile, or changed while it was read."""


class CompatibilityError(Error, ValueError):
    """Checkpoints do not fit each other; ``findings`` says where."""

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
