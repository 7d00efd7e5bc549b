"""The gateway beside its peers: CPU microseconds a request, on one core.

`make bench` runs it; README.md says how to read it.

    __main__        the options and the exit status
    run             which contenders start, and what is measured in which order
    rig             what every contender stands on: cores, folder, upstream, Redis, one key to charge
    processes       a child process: started on one core, waited for, its CPU time and memory, stopped
    contender       what a contender is: start, address, processes, stop
    peers           Envoy, nginx, HAProxy, aiohttp: they pass bytes
    lua             nginx + Lua: the same admit and settle, built as API gateways on nginx are
    whole_job       Tollkeeper's gateway
    rules           what control would have published, and the counts that prove the job was done
    load            what an offered load is; wrk, and what it counted
    whole_requests  a load in threads of our own, where wrk cannot do it
    rounds          contenders in rotation: one Sample a load, contender and round
    idle            memory of a worker, with thousands of idle connections too
    drain           events a second from the streams into Postgres
    duel            the gateway and one peer under several loads
    bodies          64 KiB to 100 MiB, down and up, beside HAProxy
    tls             kept and new connections over TLS, beside nginx
    certificate     what both show there, made at run time
    report          table, verdicts, JSON
    report_duels    the same of bodies and TLS
    verdict         what became of a goal

Nothing here is imported by the product, and pytest collects nothing here: a figure is not a test.
"""
