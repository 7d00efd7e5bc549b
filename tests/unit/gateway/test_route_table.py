"""The route table: every word of the design is understood, and everything wrong with a file is said at once."""

from pathlib import Path

import pytest

from gateway.contract.money import Microcredits
from gateway.pricing import Price
from gateway.route_table import SettingsError, load_routes, parse_upstream
from gateway.routing import Ejection, HealthCheck, Route, RouteTable, Timeouts, Upstream, UpstreamTls

EVERY_WORD = """
[[route]]
name = "models"
path = "/v1/"
host = "Models.Example"
methods = ["POST", "M-SEARCH"]
upstream = ["https://10.0.0.4:8443/base/"]
strip_path = true
hold = "0.10"
price.request = "0.001"
price.kib_in = "0.0001"
price.kib_out = "0.0002"
price.second = "0.003"
errors = "openai"
quota_status = 429
timeouts = { connect_s = 2, first_byte_s = 61, between_bytes_s = 62.5 }
"""
SMALLEST = '[[route]]\nname = "a"\npath = "/"\nupstream = "http://a"\n'


def table(tmp_path: Path, text: str) -> RouteTable:
    path = tmp_path / "routes.toml"
    path.write_text(text)
    return load_routes(path)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        table(tmp_path, text)
    said = caught.value.problems
    assert all(str(tmp_path) in problem and problem.endswith(".") for problem in said)
    return [problem.replace(f"{tmp_path / 'routes.toml'}: ", "") for problem in said]


def test_every_word_of_the_design_is_understood(tmp_path: Path) -> None:
    assert table(tmp_path, EVERY_WORD).routes == (
        Route(
            name="models", path=b"/v1/", upstreams=(Upstream("https", "10.0.0.4", 8443, b"/base"),), host=b"models.example",
            methods=frozenset((b"POST", b"M-SEARCH")), strip_path=True, hold=Microcredits(100_000),
            hold_step=Microcredits(100_000),
            price=Price(Microcredits(1000), Microcredits(100), Microcredits(200), Microcredits(3000)),
            errors="openai", quota_status=429, timeouts=Timeouts(2, 61, 62.5),
        ),
    )  # fmt: skip


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    (route,) = table(tmp_path, SMALLEST).routes
    assert route == Route("a", b"/", (Upstream("http", "a", 80),))


def test_an_empty_list_of_meters_is_none(tmp_path: Path) -> None:
    assert table(tmp_path, SMALLEST + "price.meters = []").routes[0].price == Price()


@pytest.mark.parametrize(
    ("host", "expected"), [("[2001:DB8::1]", b"[2001:db8::1]"), ("10.0.0.1", b"10.0.0.1")]
)
def test_a_host_may_be_an_address(tmp_path: Path, host: str, expected: bytes) -> None:
    assert table(tmp_path, SMALLEST + f"host = '{host}'").routes[0].host == expected


@pytest.mark.parametrize("host", ["[zz]", "[10.0.0.1]", "[::1", "::1", "[]", "[::1]:80"])
def test_what_only_looks_like_an_address_is_no_host(tmp_path: Path, host: str) -> None:
    (said,) = problems(tmp_path, SMALLEST + f"host = '{host}'")
    assert said.startswith("route a: host: ")


def test_a_hold_is_the_price_of_a_request_unless_it_is_given(tmp_path: Path) -> None:
    assert table(tmp_path, SMALLEST + 'price.request = "2"').routes[0].hold == 2_000_000
    assert table(tmp_path, SMALLEST + 'hold = "3"\nprice.request = "2"').routes[0].hold == 3_000_000


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("price.meters = [{ unit = 'tokens', json = '/usage', per_1000 = '0.6' }]", "give hold or estimate"),
        ("price.meters = [{ unit = 'tokens', header = 'x-tokens', per_1000 = '0.6' }]", "give hold or estimate"),
        ("price.request = 0.1", "decimal string"), ("price.request = 1", "decimal string"), ("hold = 0.1", "decimal string"),
        ("hold = true", "decimal string"), ("hold = '-1'", "not an amount"), ("hold = '1e3'", "not an amount"),
        ("hold = '0.0000001'", "not an amount"), ("hold = '1000000001'", "largest amount"), ("hold = 'NaN'", "not an amount"),
        ("hold = '1'\nprice.request = '2'", "hold is less than price.request"),
        ("price.minute = '1'", "price.minute"), ("colour = 'red'", "colour"), ("timeouts.dns_s = 1", "timeouts.dns_s"),
        ("timeouts.connect_s = 0", "timeouts.connect_s"), ("timeouts.first_byte_s = -1", "timeouts.first_byte_s"),
        ("timeouts.between_bytes_s = nan", "timeouts.between_bytes_s"),
        ("timeouts.first_byte_s = inf", "timeouts.first_byte_s"),
        ("errors = 'html'", "errors"), ("quota_status = 403", "quota_status"), ("strip_path = 'maybe'", "strip_path"),
        ("methods = []", "methods"), ("methods = ['post']", "in capitals"), ("methods = ['A B']", "is not a method"),
        ("methods = 'GET'", "methods"), ("host = 'a:80'", "host"), ("host = 'a/b'", "host"),
        ("host = 'bücher.example'", "host"),
        ("host = ''", "host"), ("host = 'a b'", "host"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_named(tmp_path: Path, line: str, words: str) -> None:
    (said,) = problems(tmp_path, SMALLEST + line)
    assert said.startswith("route a: ")
    assert words in said


@pytest.mark.parametrize(
    "path",
    [
        "",
        "v1",
        "/v1//x",
        "/./v1",
        "/v1/..",
        "/%76",
        "/%2F",
        "/ü",
        "/a?b",
        "/a#b",
        "*",
        "http://a/",
        "/a b",
        "/%c3%a9",
    ],
)
def test_a_path_must_be_written_as_requests_are_matched(tmp_path: Path, path: str) -> None:
    (said,) = problems(tmp_path, f'[[route]]\nname = "a"\npath = "{path}"\nupstream = "http://a"')
    assert said.startswith("route a: path: ")


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a-", "a/b", "ü", 'a\\"b', "a" * 65])
def test_a_name_is_safe_as_a_label_and_in_an_event(tmp_path: Path, name: str) -> None:
    (said,) = problems(tmp_path, f'[[route]]\nname = "{name}"\npath = "/"\nupstream = "http://a"')
    assert "a route's name is" in said


@pytest.mark.parametrize(
    "url",
    [
        "", "a", "a:80", "//a", "ftp://a", "http://", "http:///x", "http://u@a", "http://u:p@a", "http://a?x", "http://a#x",
        "http://a:0x50", "http://a:99999", "http://a/ü", "http://a/b c", "http://a b", "http://bücher.example", "http://[::1",
        "http://a..b", "http://a/%zz", "http://a/b\\\\c", "http://a:0",
    ],
)  # fmt: skip
def test_an_upstream_is_a_plain_url(tmp_path: Path, url: str) -> None:
    (said,) = problems(tmp_path, f'[[route]]\nname = "a"\npath = "/"\nupstream = "{url}"')
    assert said.startswith("route a: upstream: ")


@pytest.mark.parametrize(
    ("url", "upstream"),
    [
        ("http://a", Upstream("http", "a", 80)), ("https://A.Example/", Upstream("https", "a.example", 443)),
        ("HTTP://10.0.0.1:8000/x/y/", Upstream("http", "10.0.0.1", 8000, b"/x/y")),
        ("http://[::1]:8000", Upstream("http", "::1", 8000)),
        ("http://service_1.ns.svc", Upstream("http", "service_1.ns.svc", 80)),
        ("http://a/b%20c", Upstream("http", "a", 80, b"/b%20c")),
        ("http://xn--bcher-kva.example", Upstream("http", "xn--bcher-kva.example", 80)),
    ],
)  # fmt: skip
def test_an_upstream_is_read_whole(url: str, upstream: Upstream) -> None:
    assert parse_upstream(url) == upstream


def test_a_route_may_have_several_targets_and_none_twice(tmp_path: Path) -> None:
    (route,) = table(
        tmp_path, '[[route]]\nname = "a"\npath = "/"\nupstream = ["http://a", "https://b/c"]'
    ).routes
    assert route.upstreams == (Upstream("http", "a", 80), Upstream("https", "b", 443, b"/c"))
    (said,) = problems(tmp_path, '[[route]]\nname = "a"\npath = "/"\nupstream = ["http://a", "http://a:80/"]')
    assert "a target is given twice" in said


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    said = problems(
        tmp_path,
        'colour = 1\n[[route]]\nname = "a"\npath = "v1"\nupstream = "ftp://a"\nhold = 1\n[[route]]\npath = "/"\n[[route]]\n'
        'name = "c"\npath = "/"\nupstream = "http://c"\n[[route]]\nname = "c"\npath = "/c"\nupstream = "http://c"\n',
    )
    assert [problem.rstrip(".").split(": ")[:2] for problem in said] == [
        ["unknown table or key 'colour'"], ["route a", "path"], ["route a", "upstream"], ["route a", "hold"],
        ["route #2", "name"], ["route #2", "upstream"], ["2 routes are named 'c'"],
    ]  # fmt: skip


def test_two_routes_that_answer_the_same_requests_are_refused(tmp_path: Path) -> None:
    """The second would never be asked, whatever it costs."""
    same = '[[route]]\nname = "b"\npath = "/v1/"\nupstream = "http://b"\n'
    first = '[[route]]\nname = "a"\npath = "/v1"\nupstream = "http://a"\n'
    (said,) = problems(tmp_path, first + same)
    assert "'a'" in said
    assert "'b'" in said
    for distinct in ('host = "b"', 'methods = ["GET"]'):
        assert len(table(tmp_path, first + same + distinct).routes) == 2


@pytest.mark.parametrize("text", ["", "route = 1", "route = []", "[route]", "route = [1]"])
def test_a_file_without_a_route_is_refused(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text)


@pytest.mark.parametrize("text", ["[[route", "a = ", "\x00", "name = 'a'\nname = 'b'"])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, text: str) -> None:
    (said,) = problems(tmp_path, text)
    assert "not TOML" in said


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"# \xe9")
    for path in (tmp_path / "missing.toml", tmp_path, tmp_path / "latin"):
        with pytest.raises(SettingsError) as caught:
            load_routes(path)
        assert str(path) in str(caught.value)


# -- targets, and what is asked of connections


TARGETS = """
[[route]]
name = "artifacts"
path = "/artifacts/"
upstream = ["https://10.0.0.5:8443/store", "http://[::1]:80", "https://files.example"]
raw_path = true
upgrade = false
client_certificate = true
[route.timeouts]
connect_s = 0.5
tunnel_idle_s = 601
half_closed_s = 0
[route.tls]
ca = "ca.pem"
certificate = "certificates/own.pem"
key = "/etc/own.key"
server_name = "store.example"
verify = false
[route.ejection]
after_failures = 5
for_s = 0.5
for_max_s = 30
slow_start_s = 0
[route.health]
path = "/healthz"
every_s = 0.1
timeout_s = 0.05
healthy_after = 1
unhealthy_after = 4
"""


def test_every_word_about_targets_is_understood(tmp_path: Path) -> None:
    (route,) = table(tmp_path, TARGETS).routes
    assert route == Route(
        name="artifacts", path=b"/artifacts/",
        upstreams=(
            Upstream("https", "10.0.0.5", 8443, b"/store"), Upstream("http", "::1", 80), Upstream("https", "files.example", 443)
        ),
        raw_path=True, upgrade=False, client_certificate=True,
        timeouts=Timeouts(0.5, tunnel_idle_s=601, half_closed_s=0),
        tls=UpstreamTls(
            ca=str(tmp_path / "ca.pem"), certificate=str(tmp_path / "certificates/own.pem"), key="/etc/own.key",
            server_name="store.example", verify=False,
        ),
        ejection=Ejection(5, 0.5, 30, 0),
        health=HealthCheck(b"/healthz", 0.1, 0.05, 1, 4),
    )  # fmt: skip


def test_nobody_is_asked_how_they_are_unless_the_table_says_so(tmp_path: Path) -> None:
    assert table(tmp_path, SMALLEST).routes[0].health is None
    (route,) = table(tmp_path, SMALLEST + "health.path = '/'").routes
    assert route.health == HealthCheck(b"/")


def test_a_certificate_may_hold_its_key_itself(tmp_path: Path) -> None:
    (route,) = table(tmp_path, SMALLEST + "tls.certificate = 'own.pem'").routes
    assert route.tls == UpstreamTls(certificate=str(tmp_path / "own.pem"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("raw_path = 'maybe'", "raw_path"), ("upgrade = 2", "upgrade"), ("client_certificate = 'a'", "client_certificate"),
        ("timeouts.connect_s = 61", "timeouts.connect_s"), ("timeouts.tunnel_idle_s = 0", "timeouts.tunnel_idle_s"),
        ("timeouts.half_closed_s = -1", "timeouts.half_closed_s"), ("timeouts.first_byte_s = 86401", "timeouts.first_byte_s"),
        ("tls.key = 'own.key'", "a key needs its certificate"), ("tls.verify = 'perhaps'", "tls.verify"),
        ("tls.versions = ['1.2']", "tls.versions"), ("tls.ca = 5", "tls.ca"), ("tls.server_name = 5", "tls.server_name"),
        ("tls.server_name = '.example'", "tls.server_name"), ("tls.server_name = 'a b'", "tls.server_name"),
        ("tls.server_name = ''", "tls.server_name"), ("tls.server_name = 'a:443'", "tls.server_name"),
        ("ejection.after_failures = 0", "ejection.after_failures"),
        ("ejection.after_failures = 1001", "ejection.after_failures"),
        ("ejection.after_failures = 1.5", "ejection.after_failures"), ("ejection.for_s = 0", "ejection.for_s"),
        ("ejection.for_max_s = 3601", "ejection.for_max_s"), ("ejection.slow_start_s = -1", "ejection.slow_start_s"),
        ("ejection.for_s = nan", "ejection.for_s"), ("ejection.after_s = 1", "ejection.after_s"), ("ejection = 3", "ejection"),
        ("health = {}", "health.path"), ("health = '/healthz'", "health"), ("health.path = 'healthz'", "health.path"),
        ("health.path = '/a/../b'", "health.path"), ("health.path = '/h?x'", "health.path"),
        ("health = { path = '/', every_s = 0.05 }", "health.every_s"), ("health = { path = '/', timeout_s = 0 }", "timeout_s"),
        ("health = { path = '/', timeout_s = 61 }", "health.timeout_s"),
        ("health = { path = '/', healthy_after = 0 }", "health.healthy_after"),
        ("health = { path = '/', unhealthy_after = 101 }", "unhealthy_after"),
        ("health = { path = '/', method = 'HEAD' }", "health.method"),
    ],
)  # fmt: skip
def test_a_wrong_word_about_targets_is_named(tmp_path: Path, line: str, words: str) -> None:
    (said,) = problems(tmp_path, SMALLEST + line)
    assert said.startswith("route a: ")
    assert words in said


@pytest.mark.parametrize("name", ["a", "A.Example", "10.0.0.5", "::1", "xn--bcher-kva.example", "service_1"])
def test_a_servers_name_is_a_name_or_an_address(tmp_path: Path, name: str) -> None:
    (route,) = table(tmp_path, SMALLEST + f"tls.server_name = '{name}'").routes
    assert (route.tls.server_name or "").lower() == name.lower()


@pytest.mark.parametrize(
    "upstream", ["[]", "5", "[5]", "['http://a', 'ftp://b']", "['http://a', '']", "{ a = 'http://a' }"]
)
def test_each_of_several_targets_is_looked_at(tmp_path: Path, upstream: str) -> None:
    said = problems(tmp_path, f'[[route]]\nname = "a"\npath = "/"\nupstream = {upstream}')
    assert all(problem.startswith("route a: upstream") for problem in said)


def test_a_route_has_a_bound_of_targets(tmp_path: Path) -> None:
    def many(count: int) -> str:
        urls = ", ".join(f'"http://10.0.0.{number}"' for number in range(count))
        return f'[[route]]\nname = "a"\npath = "/"\nupstream = [{urls}]'

    assert len(table(tmp_path, many(64)).routes[0].upstreams) == 64
    (said,) = problems(tmp_path, many(65))
    assert "64" in said


def test_everything_that_is_wrong_about_targets_is_said_at_once(tmp_path: Path) -> None:
    said = problems(
        tmp_path,
        SMALLEST
        + "timeouts.tunnel_idle_s = 0\ntls.key = 'a'\nejection.after_failures = 0\nejection.for_s = 0\n"
        "health = { path = 'x', every_s = 0 }\nraw_path = 5\n",
    )
    assert [problem.split(": ")[1] for problem in said] == [
        "raw_path", "timeouts.tunnel_idle_s", "tls", "ejection.after_failures", "ejection.for_s", "health.path",
        "health.every_s",
    ]  # fmt: skip
