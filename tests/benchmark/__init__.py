"""The gateway beside its peers: CPU microseconds a request, on one core.

`make bench` runs it; README.md says how to read it.

    __main__      the options and the exit status
    run           which contenders start, and what is measured in which order
    rig           what every contender stands on: cores, folder, upstream, Redis, one key to charge
    processes     a child process: started on one core, waited for, its CPU time and memory, stopped
    contender     what a contender is: start, address, processes, stop
    peers         Envoy, nginx, HAProxy, aiohttp: they pass bytes
    lua           nginx + Lua: the same admit and settle, built as API gateways on nginx are
    whole_job     Tollkeeper's gateway
    rules         what control would have published, and the counts that prove the job was done
    load          wrk, and what it counted
    rounds        contenders in rotation: one Sample a contender and round
    idle          memory of a worker, with thousands of idle connections too
    drain         events a second from the streams into Postgres
    report        table, verdicts, JSON

Nothing here is imported by the product, and pytest collects nothing here: a figure is not a test.
"""
