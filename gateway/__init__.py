"""The data plane: an authenticating reverse proxy that needs Redis only.

The path of a request, and the room for each step:

    acceptor           a new connection: PROXY protocol header (http1.proxy_protocol), TLS handshake (tls)
    http1.client       a connection of a workload: bytes -> requests; http1.client_end: answers -> bytes, and its end
    http1.reading      a head's bytes -> head (http1.head, http1.fields) and normalised target (http1.target)
    http1.body         a body as it is framed (http1.chunked)
    routing            target -> route
    admission          who is calling, and whether they may: token (credentials) -> caller (directory) -> a hold, or a refusal
    estimating         how much to hold; where that depends on the body, it is read ahead (json_document)
    ledger             admit, settle, extend: scripts, gathered (batches), sent through redis_pipe, answers matched by order
    holding            an admitted request's hold: extended and topped up while it runs, settled exactly once
    sending            the request on its way to the upstream
    exchange           the answer on its way back; how long either may stand still: patience
    http1.websocket, http1.event_borders    where an answer that is cut can be told so
    http1.upgrade      which request may become a tunnel;  http1.forwarding: which way it has come (networks)
    http1.targets      the targets of a route: which one is taken (balancing), how they are (http1.health)
    http1.pool         connections to one target (http1.upstream, http1.resolver), lent to one request at a time
    metering           what the answer says that was used (decoding, event_stream, json_scan, pointer_tree, counts)
    pricing, recording what it costs; what is written down about it (refused: of those that were not admitted)
    refusals           what is said to those who may not (reasons, quota_fields, http1.own_answer)
    own_endpoints      what a key asks about itself, of the gateway and no upstream (key_report)

    proxy              what all requests of a worker share, and its heartbeat
    server             composition root of one worker
    supervisor         N workers on one port (worker_process, channel), reloads, restarts, and the management listener
    settings           environment and the route table (route_table, route_prices), validated together
    metrics, logs, management

Three kinds of module. `contract` is shared with the control plane. The pure ones (a list in the architecture tests) decide and
never wait. The others act: they are callbacks on asyncio protocols, because a task and a future for each request would cost
more than everything else in this list (DESIGN §6).

Who may import whom: pure modules only each other and `contract`; nobody imports `server` or `supervisor` but `__main__`.
"""
