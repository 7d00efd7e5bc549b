"""Identifiers and where they lead. Pure.

Every identifier carries its organization's tag, so that the shard of any record is known from its id alone:

    organization  org_<tag>            tag = 6 base62
    account       sa_<tag><10 base62>  service account; mb_… is a member
    key           <tag><10 base62>     the middle part of the token
"""

from __future__ import annotations

import re
import secrets
from typing import Final, Literal, NewType

OrganizationTag = NewType("OrganizationTag", str)
OrganizationId = NewType("OrganizationId", str)
AccountId = NewType("AccountId", str)
KeyId = NewType("KeyId", str)
RequestId = NewType("RequestId", str)

AccountKind = Literal["service-account", "member"]
Level = Literal["key", "account", "organization"]
LEVELS: Final[tuple[Level, Level, Level]] = ("key", "account", "organization")

BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TAG_LENGTH: Final = 6
RANDOM_LENGTH: Final = 10
KEY_ID_LENGTH: Final = TAG_LENGTH + RANDOM_LENGTH

_ACCOUNT_PREFIX: Final[dict[AccountKind, str]] = {"service-account": "sa_", "member": "mb_"}
_ORGANIZATION_ID: Final = re.compile(rf"org_[0-9A-Za-z]{{{TAG_LENGTH}}}")
_ACCOUNT_ID: Final = re.compile(rf"(?:sa|mb)_[0-9A-Za-z]{{{KEY_ID_LENGTH}}}")
_KEY_ID: Final = re.compile(rf"[0-9A-Za-z]{{{KEY_ID_LENGTH}}}")


def random_base62(length: int) -> str:
    """`length` characters drawn evenly from the 62, by the operating system's generator (5.95 bits each)."""
    return "".join(secrets.choice(BASE62) for _ in range(length))


def new_organization_tag() -> OrganizationTag:
    return OrganizationTag(random_base62(TAG_LENGTH))


def new_account_id(tag: OrganizationTag, kind: AccountKind) -> AccountId:
    return AccountId(_ACCOUNT_PREFIX[kind] + tag + random_base62(RANDOM_LENGTH))


def new_key_id(tag: OrganizationTag) -> KeyId:
    return KeyId(tag + random_base62(RANDOM_LENGTH))


def organization_id(tag: OrganizationTag) -> OrganizationId:
    return OrganizationId("org_" + tag)


def tag_of_organization(identifier: str) -> OrganizationTag | None:
    """The tag in `org_<tag>`; None if the string is not an organization's id (it may then be a name)."""
    return OrganizationTag(identifier[4:]) if _ORGANIZATION_ID.fullmatch(identifier) else None


def tag_of_account(identifier: str) -> OrganizationTag | None:
    """The organization's tag inside an account id; None if the string is not one."""
    return OrganizationTag(identifier[3 : 3 + TAG_LENGTH]) if _ACCOUNT_ID.fullmatch(identifier) else None


def tag_of_key(identifier: str) -> OrganizationTag | None:
    """The organization's tag inside a key id; None if the string is not one."""
    return OrganizationTag(identifier[:TAG_LENGTH]) if _KEY_ID.fullmatch(identifier) else None
