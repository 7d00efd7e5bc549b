"""What is to be held for a request, before it is admitted. Acts.

Between `Admission` and `Holding`. Mostly the route fixes it. Where it depends on what the request's body says (how many units
it asks for, which rates it is charged), the body is read ahead, up to a bound of the route, and what was read is sent on after
the admission. What a request says is judged before anything is held: a field that JSON readers could take in two ways is
refused, since a workload could be charged for one model and served another; and so is one without a rate, where the route
says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from gateway.admission import Admission
from gateway.counts import COUNT_MAX, count_of
from gateway.http1.chunked import Data
from gateway.http1.head import RequestHead
from gateway.json_document import DocumentPlan
from gateway.json_pointer import Pointer
from gateway.json_scan import Absence, Found, JsonScan
from gateway.pricing import Rates
from gateway.redis_pipe import bulk
from gateway.refusals import Reason, Refusal, unpriced

if TYPE_CHECKING:
    from gateway.http1.client import ClientConnection
    from gateway.http1.target import Target
    from gateway.proxy import Lane, Proxy

EARLY_BYTES_MAX: Final = 65_536
"""Body bytes kept while the request waits to be admitted or connected; beyond, the client is not read. A route may read more
of it ahead."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Estimating(Admission):
    """See the module's docstring."""

    __slots__ = (
        "_body_done", "_early", "_early_size", "_estimated", "_expects_continue", "_foreseen", "_is_reading_ahead",
        "_rates", "_scan", "_touched",
    )  # fmt: skip

    def __init__(
        self, proxy: Proxy, client: ClientConnection, head: RequestHead, target: Target, lane: Lane
    ) -> None:
        super().__init__(proxy, client, head, target, lane)
        self._touched = self._started
        self._early: list[Data] = []
        self._early_size = 0
        self._foreseen = 0
        """Bytes of the body that the estimate knew of."""
        self._body_done = head.length == 0
        self._is_reading_ahead = False
        self._scan: JsonScan | None = None
        self._estimated: bytes | None = lane.amount
        self._expects_continue = head.expects_continue
        """Whether the client waits for a 100 that nobody has said yet."""
        self._rates: Rates = lane.rates

    # -- the body before admission

    def _keep_early(self, data: Data) -> None:
        """Bytes of the body that nobody can be sent yet."""
        self._early.append(data)
        self._early_size += len(data)
        if self._is_reading_ahead:
            self._touched = self._proxy.loop.time()
            if self._early_size >= self._lane.route.read_ahead_bytes:
                self._end_reading_ahead()
        elif self._early_size > EARLY_BYTES_MAX:
            self.client.pause_reading()

    def _end_reading_ahead(self) -> None:
        """The body is whole, or as much of it is there as may be read ahead."""
        self._is_reading_ahead = False
        self._admit()

    def _watch_body(self, data: Data) -> None:
        """More of a body whose beginning decided the rates: nothing that comes now may say otherwise."""
        scan = self._scan
        assert scan is not None
        scan.feed(bytes(data))
        if not scan.is_json or Absence.AMBIGUOUS in scan.values:
            refusal = _AMBIGUOUS
        elif self._is_priced_otherwise(scan.values):
            refusal = Refusal(Reason.BAD_REQUEST, detail=_TOO_LATE.format(self._lane.route.read_ahead_bytes))
        else:
            return
        self._scan = None
        self._proxy.metrics.events["ambiguous_body"] += 1
        self.client.close_after_answer()
        self.on_bad_body(refusal)

    def _is_priced_otherwise(self, values: list[Found]) -> bool:
        table, ahead = self._lane.route.price.table, self._lane.ahead
        if table is None or not table.request or ahead is None:
            return False
        says = dict(zip(ahead.pointers, values, strict=True))
        return table.rates(_first_text(says, table.request)) is not self._rates

    def on_bad_body(self, refusal: Refusal) -> None:
        """The client's body is malformed, too large or too slow: nothing that follows it can be trusted."""
        raise NotImplementedError

    # -- what it comes to

    def _amount(self) -> bytes | None:
        if self._estimated is not None:
            return self._estimated
        ahead = self._lane.ahead
        says: Mapping[Pointer, Found] = {}
        behind = b""
        if ahead is not None:
            if not self._body_done and self._early_size < self._lane.route.read_ahead_bytes:
                if self._expects_continue:
                    self._expects_continue = False  # said here, so the upstream is not asked for it
                    self.client.write(CONTINUE)
                self._is_reading_ahead = True
                self._touched = self._proxy.loop.time()
                self.client.resume_reading()
                return None
            begun = b"".join(self._early)
            behind = begun[self._lane.route.read_ahead_bytes :]  # whether it came with the rest is chance
            if self._body_done and not behind:
                values = ahead.plan.find(begun, is_whole=True)
            else:
                scan = ahead.plan.begin()
                scan.feed(begun[: len(begun) - len(behind)])
                values = list(scan.values)
                self._scan = scan if scan.is_json else None
            says = dict(zip(ahead.pointers, values, strict=True))
        refusal = self._judge(says)
        if refusal is not None:
            self._refuse(refusal)
            return None
        if behind and self._scan is not None:
            self._watch_body(behind)
            if self._is_over:
                return None
        self._estimated = bulk(self._held)
        return self._estimated

    def _judge(self, says: Mapping[Pointer, Found]) -> Refusal | None:
        """Rates and amount by what the body says, or why not."""
        route = self._lane.route
        if Absence.AMBIGUOUS in says.values():
            return _AMBIGUOUS
        estimate, table = route.estimate, route.price.table
        if table is not None and table.request:
            chosen = _first_text(says, table.request)
            rates = table.rates(chosen)
            if rates is None:
                return unpriced(str(table.request[0]), chosen, route.name)
            self._rates = rates
        if estimate is None:
            return None
        wanted: int | None = None
        container: Pointer | None = None
        for pointer in estimate.json:
            value = says[pointer]
            if value is Absence.NOT_PLAIN:
                container = container or pointer
            elif value is not None and not isinstance(value, Absence):
                count = count_of(value)
                if count is None:
                    return _no_number(pointer)
                wanted = max(count, wanted or 0)  # which of them the upstream goes by, nobody knows here
        if wanted is None and container is not None:  # and none of the others leads into it
            return _no_number(container)
        ahead = min(self._early_size, route.read_ahead_bytes)  # of a body in chunks, what may be read ahead
        self._foreseen = max(self.head.length, ahead)
        self._held = estimate.amount(self._foreseen, wanted, self._rates, route.price.cap)
        return None


class Ahead:
    """What is looked for in a body before its request is admitted."""

    __slots__ = ("plan", "pointers")

    def __init__(self, pointers: tuple[Pointer, ...]) -> None:
        self.pointers = pointers
        self.plan = DocumentPlan(pointers)


_AMBIGUOUS: Final = Refusal(
    Reason.BAD_REQUEST,
    detail="What the request costs depends on a field of its body that is there twice, or in two spellings. Send it once.",
)


_TOO_LATE: Final = (
    "What the request costs depends on a field of its body that comes late: send it in the first {} bytes."
)


def _no_number(pointer: Pointer) -> Refusal:
    return Refusal(
        Reason.BAD_REQUEST,
        detail=f"{pointer} must be a whole number from 0 to {COUNT_MAX}: what the request may cost depends on it.",
    )


def _first_text(says: Mapping[Pointer, Found], pointers: tuple[Pointer, ...]) -> str | None:
    texts = (_text(says[pointer]) for pointer in pointers)
    return next((text for text in texts if text is not None), None)


def _text(value: Found) -> str | None:
    """What a field says that selects rates: text, or a number or truth value as JSON spells it; None if it says nothing."""
    if value is None or isinstance(value, Absence):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)
