"""Webhooks: a POST with JSON, signed after the Standard Webhooks scheme (version 1, symmetric).

    webhook-id         the same at every attempt: a receiver that has seen it ignores it
    webhook-timestamp  of this attempt, seconds since 1970; a receiver refuses old ones
    webhook-signature  "v1," and the base64 of HMAC-SHA-256 over "<id>.<timestamp>.<body>"

The key is what stands after `whsec_` in the secret, decoded from base64.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

import aiohttp
import orjson

from control.delivery.message import Message, instant
from control.delivery.outcome import Outcome
from control.delivery.posting import post
from control.domain.destinations import SECRET_PREFIX


def body_of(message: Message) -> bytes:
    """{"type": …, "timestamp": when it happened, "data": …}"""
    return orjson.dumps({"type": message.type, "timestamp": instant(message.at), "data": message.data})


def signature(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


async def send(
    session: aiohttp.ClientSession, url: str, secret: str, message: Message, timeout_s: float
) -> Outcome:
    """One attempt. 2xx is taken; 410 says that nothing more is wanted; what an answer says is not repeated."""
    body, timestamp_s = body_of(message), int(time.time())
    headers = {
        "webhook-id": message.id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": signature(secret, message.id, timestamp_s, body),
    }
    return (await post(session, url, body, headers, timeout_s))[0]
