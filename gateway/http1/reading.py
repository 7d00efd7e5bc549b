"""From the bytes of a request's head to what is asked for. Pure."""

from __future__ import annotations

from gateway.contract.token import holds_token
from gateway.http1.head import HeadError, RequestHead, parse_request, reject_early
from gateway.http1.target import Target, normalise


def read_request(raw: bytes, *, field_count_max: int, target_length_max: int) -> tuple[RequestHead, Target]:
    """Read a whole head, and normalise what it asks for. Raises HeadError."""
    try:
        head = parse_request(raw, field_count_max=field_count_max, target_length_max=target_length_max)
    except HeadError:
        reject_early(raw)  # what would have been refused before the whole head was there is refused for that
        raise
    target = normalise(head.method, head.target, head.host)
    if holds_token(head.host):
        raise HeadError(400, "A token stands in Host, where it would be written down.")
    if holds_token(head.target) or holds_token(target.path):
        raise HeadError(
            400, "A token stands in the URL, where it would be written down. Send it in a header."
        )
    return head, target
