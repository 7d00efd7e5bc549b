"""What the domain says no with. Pure. The API turns each into one problem answer; the words are for people.

An expected "no" is raised, not returned, because it ends the transaction of the change it refuses.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field of a request. `suggestion` is a value that would do."""

    field: str
    reason: str
    suggestion: str | None = None


class Refused(Exception):
    """A request that cannot be carried out. `code` is for programs and never changes, `detail` is for people."""

    def __init__(self, code: str, detail: str, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = errors


class Invalid(Refused):
    """The request itself is wrong."""

    @classmethod
    def field(
        cls, field: str, reason: str, *, code: str = "invalid_field", suggestion: str | None = None
    ) -> Invalid:
        return cls(code, f"{field}: {reason}", (FieldError(field, reason, suggestion),))


class NotFound(Refused):
    """There is no such thing, or none that the caller may see."""

    @classmethod
    def of(cls, noun: str, reference: str) -> NotFound:
        return cls(f"{noun.replace(' ', '_')}_not_found", f"There is no {noun} {reference[:80]!r}.")


class Conflict(Refused):
    """The request is right, but not in the present state of the thing."""


class Overloaded(Refused):
    """Too much of the same is going on; the same request may pass a moment later."""


class TooOften(Refused):
    """This may be done again after `retry_after_s` seconds."""

    def __init__(self, code: str, detail: str, retry_after_s: int) -> None:
        super().__init__(code, detail)
        self.retry_after_s = retry_after_s


class NotYetInForce(Refused):
    """The change is saved, but Redis could not be told; the outbox tells it as soon as it is back."""

    def __init__(self) -> None:
        super().__init__(
            "not_yet_in_force",
            "The change is saved, but Redis does not answer or is being loaded, so the gateways do not know of it yet. "
            "It takes effect by itself as soon as Redis is back; there is no need to send it again.",
        )


class NotSaved(Refused):
    """Redis could not be told of something new, so nothing was saved."""

    def __init__(self) -> None:
        super().__init__(
            "redis_unavailable",
            "Redis did not answer, or is being loaded, so nothing was created. Send the request again in a moment.",
        )
