"""Slack incoming webhooks: a POST with {"text": …}. The URL is the secret. Others that speak the same take it too."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

import aiohttp
import orjson

from control.delivery.message import Message
from control.delivery.outcome import Outcome
from control.delivery.posting import post

_CODE: Final = re.compile(rb"[a-z][a-z_]{2,59}")
"""How Slack says why: no_service, channel_is_archived, invalid_payload."""


def body_of(message: Message) -> bytes:
    return orjson.dumps({"text": f"*{escaped(message.subject)}*\n{escaped(message.text)}"})


def escaped(text: str) -> str:
    """Text in which nothing is a link, a mention or an entity (Slack's three control characters)."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


async def send(session: aiohttp.ClientSession, url: str, message: Message, timeout_s: float) -> Outcome:
    """One attempt. Slack's own word for what is wrong is repeated, nothing else that it answers."""
    outcome, said = await post(session, url, body_of(message), {}, timeout_s)
    if not outcome.is_delivered and _CODE.fullmatch(said.strip()):
        return replace(outcome, error=f"{outcome.error} ({said.strip().decode()})")
    return outcome
