"""The data plane: an authenticating reverse proxy that needs Redis only.

The path of a request, and the room for each step:

    http1.client      a connection of a workload: bytes -> heads and bodies, answers -> bytes
    http1.head        the strict grammar of heads; http1.target normalises what is asked for; http1.chunked the framing
    routing           target -> route
    directory         token -> caller (who it is, and the prepared commands for Redis)
    ledger            admit, settle, extend: scripts sent through redis_pipe, answers matched by order
    exchange          one admitted request: joins client and upstream, counts, settles exactly once
    http1.upstream    connections to upstreams and their pools
    pricing, refusals what it costs; what is said to those who may not

    server            composition root of one worker;  supervisor: N workers on one port, and the management listener
    settings          environment and the route table, validated together
    metrics, logs, management

Three kinds of module. `contract` is shared with the control plane. The pure ones (routing, pricing, refusals, http1.head,
http1.target, http1.chunked) decide and never wait. The others act: they are callbacks on asyncio protocols, because a task
and a future for each request would cost more than everything else in this list (DESIGN §6).

Who may import whom: pure modules only each other and `contract`; nobody imports `server` or `supervisor` but `__main__`.
"""
