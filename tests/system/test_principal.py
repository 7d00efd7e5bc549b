"""P4: the upstream is told who is calling by the gateway alone, whatever the client says; the client's token stays here."""

from __future__ import annotations

import base64

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.system.installation import Installation, Workload
from tests.system.recording_upstream import RecordingUpstream, Seen, fold
from tests.system.wire import Wire, request, wire

PRINCIPAL_FIELDS = (
    "X-Principal", "X-Principal-Id", "X-Principal-Organization", "X-Principal-Key-Id",
)  # fmt: skip


def is_told_truly(seen: Seen, workload: Workload) -> None:
    assert seen.one("x-principal") == workload.principal
    assert seen.one("x-principal-id") == workload.account
    assert seen.one("x-principal-organization") == workload.organization_name
    assert seen.one("x-principal-key-id") == workload.key
    assert seen.one("x-request-id")
    assert seen.all("authorization") == []
    assert seen.all("x-api-key") == []
    assert all(workload.token not in value for _, value in seen.fields)


def spelled(name: str) -> list[str]:
    """Ways to write a name that some upstream reads as the name."""
    words = name.split("-")
    return [
        name, name.lower(), name.upper(), "_".join(words), "_".join(words).upper(), "_".join(words).lower(),
        words[0] + "_" + "-".join(words[1:]), name.swapcase(),
    ]  # fmt: skip


async def sent_on(
    installation: Installation, workload: Workload, upstream: RecordingUpstream, *fields: str
) -> Seen:
    """What the upstream saw of a request with these fields, which the gateway has to let through."""
    count = len(upstream.of(workload.key))
    async with wire(installation.addresses.gateway_port) as client:
        client.send(request(workload, "/free/", *fields))
        assert (await client.answer()).status == 200
    (seen,) = upstream.of(workload.key)[count:]
    return seen


@pytest.mark.parametrize("name", PRINCIPAL_FIELDS)
async def test_a_forged_principal_is_dropped_in_every_spelling(
    installation: Installation, upstream: RecordingUpstream, name: str
) -> None:
    workload = await installation.workload()
    for spelling in spelled(name):
        seen = await sent_on(installation, workload, upstream, f"{spelling}: member/acme/root")
        is_told_truly(seen, workload)
        assert all("root" not in value for _, value in seen.fields), spelling


async def test_repeated_and_mixed_spellings_do_not_add_up_to_a_principal(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    forged = [f"{spelling}: forged" for name in PRINCIPAL_FIELDS for spelling in spelled(name)]
    seen = await sent_on(installation, workload, upstream, *forged, *forged)
    is_told_truly(seen, workload)


@pytest.mark.parametrize(
    "nominated",
    [
        "X-Principal",
        "x-principal, x-principal-id",
        "close, X-PRINCIPAL-KEY-ID",
        "X_Principal",
        "authorization, x-request-id",
    ],
)
async def test_connection_cannot_nominate_the_principal_away(
    installation: Installation, upstream: RecordingUpstream, nominated: str
) -> None:
    workload = await installation.workload()
    seen = await sent_on(
        installation, workload, upstream, f"Connection: {nominated}", "X-Principal: forged", "X-Mine: kept"
    )
    is_told_truly(seen, workload)
    assert seen.one("x-mine") == "kept"


async def test_what_connection_nominates_of_the_clients_own_is_dropped(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    seen = await sent_on(
        installation, workload, upstream, "Connection: X-Mine", "X-Mine: hop", "X-Other: end"
    )
    assert seen.all("x-mine") == []
    assert seen.all("connection") == []
    assert seen.one("x-other") == "end"


async def test_the_token_stays_here_by_whatever_field_it_came(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    basic = base64.b64encode(f"git:{workload.token}".encode()).decode()
    ways = [
        [f"Authorization: Bearer {workload.token}"], [f"AUTHORIZATION: bearer {workload.token}"],
        [f"authorization: Basic {basic}"], [f"X-Api-Key: {workload.token}"], [f"x-API-key: {workload.token}"],
        [f"Authorization: Bearer {workload.token}", f"X-Api-Key: {workload.token}"],
        [f"Authorization: Bearer {workload.token}", f"X_Api_Key: {workload.token}", f"x-api_key: {workload.token}"],
        [f"X-Api-Key: {workload.token}", f"Proxy-Authorization: Bearer {workload.token}"],
    ]  # fmt: skip
    for fields in ways:
        before = len(upstream.of(workload.key))
        async with wire(installation.addresses.gateway_port) as client:
            client.send(request(None, "/free/", *fields))
            assert (await client.answer()).status == 200, fields
        (seen,) = upstream.of(workload.key)[before:]
        is_told_truly(seen, workload)
        assert all(basic not in value for _, value in seen.fields)


# What a client may put into a name and a value; the names are drawn near the dangerous ones on purpose.
near_names = st.sampled_from([spelling for name in PRINCIPAL_FIELDS for spelling in spelled(name)])
any_names = st.text("abcXPrincipal-_.!#$%&'*+^`|~019", min_size=1, max_size=24)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
field_lines = st.lists(st.tuples(near_names | any_names, values), max_size=12)
gaps = st.sampled_from(["", " ", "\t", "  \t "])

HANDLED = {
    "host", "authorization", "x-api-key", "content-length", "transfer-encoding", "expect", "connection", "upgrade",
    "te", "trailer", "keep-alive",
}  # fmt: skip


async def test_no_combination_of_fields_gives_an_upstream_two_principals_or_none(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    port = installation.addresses.gateway_port
    client = await Wire.open(port)
    loop_requests: list[bytes] = []

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(field_lines, gaps)
    def draw(lines: list[tuple[str, str]], gap: str) -> None:
        fields = [f"{name}:{gap}{value}" for name, value in lines if fold(name) not in HANDLED]
        loop_requests.append(request(workload, "/free/", *fields))

    draw()
    for data in loop_requests:
        client.send(data)
        answer = await client.answer()
        assert answer.status in (200, 400), answer
        if answer.status == 400:
            assert await client.is_closed()
            client = await Wire.open(port)
    client.close()
    seen = upstream.of(workload.key)
    assert len(seen) > 100
    for each in seen:
        is_told_truly(each, workload)


async def test_a_second_request_hidden_in_a_body_is_body(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    hidden = request(None, "/free/smuggled", "X-Principal: member/acme/root")
    async with wire(installation.addresses.gateway_port) as client:
        client.send(request(workload, "/free/outer", method="POST", body=hidden))
        assert (await client.answer()).status == 200
        assert await client.still_open()
    (seen,) = upstream.of(workload.key)
    assert (seen.target, seen.body_bytes) == ("/free/outer", len(hidden))


@pytest.mark.parametrize(
    "framing",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"], ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5", "Content-Length: 5"], ["Content-Length: 5, 5"], ["Content-Length: +5"],
        ["Transfer-Encoding: chunked, chunked"], ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding : chunked"], ["Content-Length: 0x5"], ["Transfer-Encoding:\x0bchunked"],
        ["X-A: b\nTransfer-Encoding: chunked"], [" X-Principal: folded"], ["X-A: b\r\n X-Principal: folded"], ["X-\0A: b"],
    ],
)  # fmt: skip
async def test_ambiguous_framing_is_refused_and_the_connection_ends(
    installation: Installation, upstream: RecordingUpstream, framing: list[str]
) -> None:
    workload = await installation.workload()
    async with wire(installation.addresses.gateway_port) as client:
        client.send(
            request(workload, "/free/", *framing, method="POST") + b"0\r\n\r\n" + request(workload, "/free/2")
        )
        assert (await client.answer()).status in (400, 501)
        assert await client.is_closed()
    assert upstream.of(workload.key) == []
