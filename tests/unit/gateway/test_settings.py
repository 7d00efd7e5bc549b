"""Settings: every problem is found and listed before anything runs, and no secret is in the list."""

import os
from pathlib import Path

import pytest

from gateway.redis_pipe import RedisAddress
from gateway.route_table import SettingsError
from gateway.settings import GatewaySettings, load_settings, parse_address, read_pepper
from gateway.tls import ListenerTls
from tests.certificates import Pair, make_authority, write_file, write_pair

PEPPER = "a1" * 32
SECRET = "hunter2hunter2"


@pytest.fixture(autouse=True)
def _an_empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("TOLLKEEPER_"):
            monkeypatch.delenv(name)


def problems(**environment: str) -> list[str]:
    """What is said about these settings."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(f"TOLLKEEPER_{name.upper()}", value)
        with pytest.raises(SettingsError) as caught:
            load_settings()
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert all(problem.endswith(".") and "\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def test_an_upstream_and_a_pepper_are_enough() -> None:
    loaded = load_settings({"upstream": "http://10.0.0.4:8000", "pepper": PEPPER})
    settings, routes, pepper = loaded.settings, loaded.routes, loaded.pepper
    assert pepper == bytes.fromhex(PEPPER)
    (route,) = routes.routes
    assert (route.name, route.path, route.hold, route.price.request) == ("default", b"/", 0, 0)
    assert (route.upstreams[0].host, route.upstreams[0].port) == ("10.0.0.4", 8000)
    assert (settings.listen, settings.shards, settings.access_log_fraction) == ("127.0.0.1:8080", 16, 1.0)


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLKEEPER_LISTEN", "127.0.0.1:1")
    monkeypatch.setenv("TOLLKEEPER_PEPPER", PEPPER)
    monkeypatch.setenv("TOLLKEEPER_UPSTREAM", "http://a")
    assert load_settings().settings.listen == "127.0.0.1:1"
    assert load_settings({"listen": "127.0.0.1:2"}).settings.listen == "127.0.0.1:2"


def test_every_problem_of_the_environment_is_listed_at_once() -> None:
    said = problems(
        listen="nowhere", workers="0", shards="101", redis_url="mysql://a", access_log="sometimes", log_level="loud",
        redis_timeout_s="0", head_timeout_s="soon", connections_max="-1",
    )  # fmt: skip
    names = (
        "LISTEN",
        "WORKERS",
        "SHARDS",
        "REDIS_URL",
        "ACCESS_LOG",
        "LOG_LEVEL",
        "REDIS_TIMEOUT_S",
        "HEAD_TIMEOUT_S",
        "CONNECTIONS_MAX",
    )
    assert len(said) == len(names)
    for name in names:
        assert any(problem.startswith(f"TOLLKEEPER_{name}: ") for problem in said), name


def test_problems_of_the_pepper_and_of_the_routes_are_listed_together(tmp_path: Path) -> None:
    table = tmp_path / "routes.toml"
    table.write_text("[[route]]\nname = 'a'\n")
    said = problems(config=str(table))
    assert any("TOLLKEEPER_PEPPER" in problem for problem in said)
    assert any("route a: path" in problem for problem in said)
    assert any("route a: upstream" in problem for problem in said)


def test_nothing_to_forward_to_is_a_problem() -> None:
    (said,) = problems(pepper=PEPPER)
    assert "TOLLKEEPER_CONFIG" in said
    assert "TOLLKEEPER_UPSTREAM" in said


def test_a_route_table_and_a_single_upstream_exclude_each_other(tmp_path: Path) -> None:
    (said,) = problems(pepper=PEPPER, config=str(tmp_path / "routes.toml"), upstream="http://a")
    assert "exclude each other" in said


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), (":80", ("0.0.0.0", 80)), ("[::1]:80", ("::1", 80)), ("a:0", ("a", 0))],
)  # fmt: skip
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "80", "a", "a:", "a:b", "a:65536", "::1:80", "[::1]", "a:80 ", "http://a:80", "a:-1"]
)
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "fraction"), [("on", 1.0), ("OFF", 0.0), ("0.01", 0.01), ("1", 1.0), ("0", 0.0), ("1e-3", 0.001)]
)
def test_the_access_log_is_on_off_or_a_fraction(text: str, fraction: float) -> None:
    assert GatewaySettings(access_log=text).access_log_fraction == fraction


@pytest.mark.parametrize("text", ["yes", "-0.1", "1.1", "nan", "inf", "1%"])
def test_the_access_log_is_nothing_else(text: str) -> None:
    (said,) = problems(access_log=text)
    assert said.startswith("TOLLKEEPER_ACCESS_LOG: ")


# -- the pepper


def test_a_pepper_comes_from_the_variable_or_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pepper"
    path.write_text(f"{PEPPER}\n")
    assert read_pepper(PEPPER, None) == read_pepper(None, path) == bytes.fromhex(PEPPER)


@pytest.mark.parametrize("text", ["", "  ", SECRET, "a1" * 15, "a1" * 65, "a1" * 16 + "b", "0x" + "a1" * 16])
def test_a_bad_pepper_is_refused_and_not_repeated(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pepper"
    path.write_text(text)
    for attempt in ((text, None), (None, path)):
        with pytest.raises(SettingsError) as caught:
            read_pepper(*attempt)
        assert not text.strip() or text.strip() not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_pepper_is_given_once_and_can_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff" * 32)
    for attempt in (
        (None, None),
        (PEPPER, binary),
        (None, binary),
        (None, tmp_path / "missing"),
        (None, tmp_path),
    ):
        with pytest.raises(SettingsError) as caught:
            read_pepper(*attempt)
        assert "PEPPER" in str(caught.value)


# -- the address of Redis


def test_an_address_of_redis_is_read_whole() -> None:
    assert RedisAddress.parse("redis://a:7000/3") == RedisAddress("a", 7000, None, None, 3, False)
    assert RedisAddress.parse("rediss://us%40er:p%2Fw%3A@a") == RedisAddress(
        "a", 6379, "us@er", "p/w:", 0, True
    )
    assert RedisAddress.parse("redis://:pw@[::1]:7") == RedisAddress("::1", 7, None, "pw", 0, False)
    assert RedisAddress.parse("unix:///run/redis.sock").path == "/run/redis.sock"


def test_an_address_shown_has_no_credentials() -> None:
    shown = str(RedisAddress.parse(f"redis://user:{SECRET}@a:7000/3"))
    assert shown == "a:7000/3"


@pytest.mark.parametrize(
    "url",
    [
        "a:6379", "http://:{0}@a", "redis://:{0}@a:99999", "redis://:{0}@a:port", "redis://:{0}@a/b", "redis://:{0}@a/-1",
        "redis://:{0}/x@a:6379", "redis://:{0}#x@a:6379", "redis://:{0}?x@a:6379", "redis://:{0}\u2100@a", "redis://:{0}@[a",
        "redis://:{0}", "redis://{0}:x@a:y",
    ],
)  # fmt: skip
def test_a_bad_address_of_redis_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        RedisAddress.parse(url.format(SECRET))
    assert SECRET not in str(caught.value)
    (said,) = problems(redis_url=url.format(SECRET))
    assert said.startswith("TOLLKEEPER_REDIS_URL: ")
    assert SECRET not in said


def test_a_bad_upstream_is_refused_without_its_password() -> None:
    for url in ("ftp://user:{0}@a", "http://user:{0}@a", "http://user:{0}@a:port", "http://user:{0}\u2100@a"):
        (said,) = problems(pepper=PEPPER, upstream=url.format(SECRET))
        assert said.startswith("TOLLKEEPER_UPSTREAM: ")
        assert SECRET not in said


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("PEPPER", PEPPER),
        ("UPSTREAM", "http://a"),
        ("ACCESS_LOG", ""),
        ("PEPPER_FILE", ""),
    ):
        monkeypatch.setenv(f"TOLLKEEPER_{name}", value)
    assert load_settings().settings.access_log_fraction == 1.0


# -- networks and limits


@pytest.mark.parametrize("name", ["trusted_networks", "proxy_protocol_networks"])
def test_networks_are_read_when_the_gateway_starts(name: str) -> None:
    loaded = load_settings({"upstream": "http://a", "pepper": PEPPER, name: "10.0.0.0/8, 2001:db8::/32"})
    assert getattr(loaded.settings, name) == "10.0.0.0/8, 2001:db8::/32"
    (said,) = problems(**{name: "10.0.0.0/8, example.org"})
    assert said.startswith(f"TOLLKEEPER_{name.upper()}: ")
    assert "'example.org'" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("connections_per_address_max", "0"), ("connection_requests_max", "0"), ("dns_ttl_s", "0"), ("dns_ttl_s", "3601"),
        ("target_bytes_max", "63"), ("head_bytes_max", "1023"), ("field_count_max", "7"), ("body_bytes_max", "-1"),
        ("drain_timeout_s", "-1"), ("upstream_waiting_max", "-1"),
    ],
)  # fmt: skip
def test_a_limit_has_limits(name: str, value: str) -> None:
    (said,) = problems(**{name: value})
    assert said.startswith(f"TOLLKEEPER_{name.upper()}: ")


# -- the gateway's own prefix


@pytest.mark.parametrize("prefix", ["/-/", "/.well-known/tollkeeper/", "/a/"])
def test_the_own_prefix_is_a_path_that_ends_with_a_slash(prefix: str) -> None:
    loaded = load_settings({"upstream": "http://a", "pepper": PEPPER, "own_prefix": prefix})
    assert loaded.settings.own_prefix == prefix


@pytest.mark.parametrize(
    "prefix",
    ["/", "//", "-/", "/-", "*", "/a//b/", "/a/../b/", "/%2D/", "/%2f/", "/-/?a/", "/-/#a/", "/\u00e9/", "http://a/", "/a b/",
     "/" + "a" * 63 + "/"],
)  # fmt: skip
def test_nothing_else_is_an_own_prefix(prefix: str) -> None:
    (said,) = problems(pepper=PEPPER, upstream="http://a", own_prefix=prefix)
    assert said.startswith("TOLLKEEPER_OWN_PREFIX: ")


@pytest.mark.parametrize("path", ["/-/", "/-", "/-/key", "/-/x/y/"])
def test_a_route_under_the_own_prefix_would_never_be_asked(tmp_path: Path, path: str) -> None:
    table = tmp_path / "routes.toml"
    table.write_text(f'[[route]]\nname = "a"\npath = "{path}"\nupstream = "http://a"\n')
    (said,) = problems(pepper=PEPPER, config=str(table))
    assert said.startswith(f"route a: '{path}' lies under the gateway's own prefix '/-/'")
    assert "TOLLKEEPER_OWN_PREFIX" in said
    load_settings({"pepper": PEPPER, "config": table, "own_prefix": "/elsewhere/"})


def test_a_route_beside_the_own_prefix_is_a_route(tmp_path: Path) -> None:
    table = tmp_path / "routes.toml"
    routes = [
        f'[[route]]\nname = "a{number}"\npath = "{path}"\nupstream = "http://a"\n\n'
        for number, path in enumerate(("/", "/-x", "/x/-/"))
    ]
    table.write_text("".join(routes))
    assert len(load_settings({"pepper": PEPPER, "config": table}).routes.routes) == 3


# -- certificates


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("certificates")
    authority = make_authority("authority")
    write_file(directory / "ca.pem", authority.pem)
    return write_pair(directory, "server", authority)


def written(tmp_path: Path, *lines: str, name: str = "a") -> str:
    """A route table with an https target."""
    path = tmp_path / "routes.toml"
    path.write_text(f'[[route]]\nname = "{name}"\npath = "/"\nupstream = "https://a"\n' + "\n".join(lines))
    return str(path)


def test_without_a_certificate_the_listener_speaks_plain_http() -> None:
    loaded = load_settings({"upstream": "http://a", "pepper": PEPPER})
    assert (loaded.settings.tls, loaded.tls) == (None, None)
    assert loaded.files() == frozenset()


def test_the_listeners_files_are_read_and_watched(pair: Pair) -> None:
    ca = pair.certificate.with_name("ca.pem")
    words = {"upstream": "http://a", "pepper": PEPPER, "tls_certificate": pair.certificate}
    loaded = load_settings({**words, "tls_key": pair.key, "tls_client_ca": ca})
    assert loaded.settings.tls == ListenerTls(pair.certificate, pair.key, ca)
    assert loaded.tls is not None
    assert loaded.files() == {pair.certificate, pair.key, ca}


def test_the_key_is_looked_for_in_the_certificates_file_if_it_is_not_given(pair: Pair) -> None:
    both = write_file(pair.certificate.with_name("both.pem"), pair.issued.key + pair.issued.certificate)
    loaded = load_settings({"upstream": "http://a", "pepper": PEPPER, "tls_certificate": both})
    assert loaded.settings.tls == ListenerTls(both, both)
    (said,) = problems(pepper=PEPPER, upstream="http://a", tls_certificate=str(pair.certificate))
    assert said.startswith("TOLLKEEPER_TLS_")
    assert str(pair.certificate) in said


def test_all_files_that_matter_are_watched(tmp_path: Path, pair: Pair) -> None:
    ca = pair.certificate.with_name("ca.pem")
    own = f"tls = {{ ca = '{ca}', certificate = '{pair.certificate}', key = '{pair.key}' }}"
    table = written(tmp_path, own)
    loaded = load_settings({"config": table, "pepper": PEPPER})
    assert loaded.files() == {Path(table), ca, pair.certificate, pair.key}


@pytest.mark.parametrize("name", ["tls_key", "tls_client_ca"])
def test_a_key_or_authorities_without_a_certificate_are_a_problem(pair: Pair, name: str) -> None:
    (said,) = problems(pepper=PEPPER, upstream="http://a", **{name: str(pair.key)})
    assert "need TOLLKEEPER_TLS_CERTIFICATE" in said


def test_a_route_that_asks_for_client_certificates_needs_authorities_for_them(
    tmp_path: Path, pair: Pair
) -> None:
    table = written(tmp_path, "client_certificate = true")
    files = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    (said,) = problems(pepper=PEPPER, config=table, **files)
    assert said.startswith("route a: client_certificate needs TOLLKEEPER_TLS_CLIENT_CA")
    ca = str(pair.certificate.with_name("ca.pem"))
    load_settings({"pepper": PEPPER, "config": table, "tls_client_ca": ca, **files})


def test_files_of_a_route_that_cannot_be_used_are_named(tmp_path: Path, pair: Pair) -> None:
    missing = tmp_path / "missing.pem"
    (said,) = problems(pepper=PEPPER, config=written(tmp_path, "tls.ca = 'missing.pem'"))
    assert said.startswith("route a: tls: ")
    assert str(missing) in said
    plain = tmp_path / "plain.toml"
    plain.write_text('[[route]]\nname = "a"\npath = "/"\nupstream = "http://a"\ntls.ca = "missing.pem"\n')
    load_settings({"pepper": PEPPER, "config": plain})  # nobody asks for them


def test_every_problem_of_files_and_routes_is_listed_at_once(tmp_path: Path, pair: Pair) -> None:
    table = written(
        tmp_path, "client_certificate = true", "tls.ca = 'missing.pem'",
        "[[route]]\nname = 'b'\npath = '/b/'\nupstream = 'https://b'\ntls.certificate = 'gone.pem'\n",
    )  # fmt: skip
    said = problems(config=table, tls_certificate=str(pair.certificate), tls_key=str(tmp_path / "lost.key"))
    assert len(said) == 5
    for words in ("TOLLKEEPER_PEPPER", "lost.key", "client_certificate needs", "missing.pem", "gone.pem"):
        assert any(words in problem for problem in said), words
    assert not any("PRIVATE" in problem for problem in said)
