"""Routes to `model_upstream` with prices of every kind. `strip_path` is on: what follows a route's path is asked for."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

_OPENAI = """
[[route]]
name = "{name}"
path = "/{name}/"
upstream = ["{models}"]
strip_path = true
hold = "0.02"
price.request = "0.0001"
errors = "openai"
[[route.price.meters]]
unit = "input_tokens"
json = "/usage/prompt_tokens"
events = "{events}"
per_1000000 = "0.15"
[[route.price.meters]]
unit = "output_tokens"
json = "/usage/completion_tokens"
events = "{events}"
per_1000 = "0.0125"
"""

_OTHERS = """
[[route]]
name = "chat-429"
path = "/chat-429/"
upstream = ["{models}"]
strip_path = true
hold = "0.02"
quota_status = 429
price.second = "0.1"
errors = "openai"

[[route]]
name = "messages"
path = "/messages/"
upstream = ["{models}"]
strip_path = true
hold = "0.02"
errors = "anthropic"
[[route.price.meters]]
unit = "input_tokens"
json = "/usage/input_tokens"
event = ["/usage/input_tokens", "/message/usage/input_tokens"]
per_1000000 = "3"
[[route.price.meters]]
unit = "output_tokens"
json = "/usage/output_tokens"
event = ["/usage/output_tokens", "/message/usage/output_tokens"]
per_1000000 = "15"

[[route]]
name = "header"
path = "/header/"
upstream = ["{models}"]
strip_path = true
hold = "0.005"
price.request = "0.001"
price.meters = [{ unit = "units", header = "X-Usage-Units", per_1 = "0.0002" }]

[[route]]
name = "by-model"
path = "/by-model/"
upstream = ["{models}"]
strip_path = true
hold = "0.02"
read_ahead_bytes = 16384
errors = "openai"
price.meters = [{ unit = "output_tokens", json = "/usage/completion_tokens" }]
[route.price.rates]
request = "/model"
otherwise = "refuse"
table.small = { output_tokens = "0.001" }
table.large = { output_tokens = "0.02" }

[[route]]
name = "by-model-or-else"
path = "/by-model-or-else/"
upstream = ["{models}"]
strip_path = true
hold = "0.02"
price.meters = [{ unit = "output_tokens", json = "/usage/completion_tokens" }]
[route.price.rates]
request = "/model"
otherwise = { output_tokens = "0.5" }
table.small = { output_tokens = "0.001" }

[[route]]
name = "by-answer"
path = "/by-answer/"
upstream = ["{models}"]
strip_path = true
hold = "0.02"
price.meters = [{ unit = "output_tokens", json = "/usage/completion_tokens" }]
[route.price.rates]
answer = "/model"
otherwise = { output_tokens = "0.5" }
table.small = { output_tokens = "0.001" }

[[route]]
name = "estimated"
path = "/estimated/"
upstream = ["{models}"]
strip_path = true
hold = "0.001"
estimate = { json = ["/max_completion_tokens", "/max_tokens"], unit = "output_tokens", missing = 4000, per_kib = "0.0001" }
read_ahead_bytes = 65536
price.cap_per_request = "0.5"
price.meters = [{ unit = "output_tokens", json = "/usage/completion_tokens", per_1000 = "0.01" }]
errors = "openai"

[[route]]
name = "charged"
path = "/charged/"
upstream = ["{models}"]
strip_path = true
price.request = "0.01"
price.upstream_failure = "charge"

[[route]]
name = "growing"
path = "/growing/"
upstream = ["{models}"]
strip_path = true
hold = "0.010"
errors = "openai"
price.meters = [{ unit = "output_tokens", json = "/usage/completion_tokens", per_1 = "0.001" }]

[[route]]
name = "growing-messages"
path = "/growing-messages/"
upstream = ["{models}"]
strip_path = true
hold = "0.001"
hold_step = "0.010"
errors = "anthropic"
price.second = "0.1"

[[route]]
name = "capped"
path = "/capped/"
upstream = ["{models}"]
strip_path = true
hold = "0.010"
errors = "openai"
price.cap_per_request = "0.025"
price.meters = [{ unit = "output_tokens", json = "/usage/completion_tokens", per_1 = "0.001" }]

[[route]]
name = "download"
path = "/download/"
upstream = ["{models}"]
strip_path = true
hold = "1"
price.kib_out = "0.1"

[[route]]
name = "clock"
path = "/clock/"
upstream = ["{models}"]
strip_path = true
hold = "0.02"
price.second = "0.1"

[[route]]
name = "flat"
path = "/flat/"
upstream = ["{models}"]
strip_path = true
price.request = "0.1"
errors = "openai"
"""

HOLD = 20_000
"""What the routes "last-event" and "each-event" hold, and charge where nothing is reported."""


def routes_to_models(url: str) -> str:
    """A part of a route table."""
    chat = "".join(
        _OPENAI.replace("{name}", name).replace("{events}", events)
        for name, events in (("last-event", "last"), ("each-event", "each"))
    )
    return (chat + _OTHERS).replace("{models}", url)


def chat_cost(prompt: int, completion: int) -> int:
    """What so many tokens cost on the routes "last-event" and "each-event", in microcredits: each part is rounded up."""
    return 100 + ceil(Fraction("0.15") * prompt) + ceil(Fraction("12.5") * completion)
