"""What control does in the background. Each job is a module with `async def run_once(context)`, safe to be killed
anywhere and to be run twice.

    drain       events of the streams -> rows of the ledger and their sums
    expire      holds whose deadline has passed -> settled at what was held
    publish     changed rules -> Redis; all rules and counters -> a Redis that lost them
    alerts      thresholds that were crossed -> told to the destinations of their organization
    partitions  days of the ledger, made ahead
    retention   alerts of windows that ended long ago -> gone
    grants      what expired of prepaid credits -> Postgres; grants that are used up for good are closed
    reconcile   counters against rows: says where they differ, repairs nothing

    context     what a job works with: its Postgres connection, Redis, the layout of keys
    ledger      the SQL of one batch of the drain
    stream      entries of the streams: reading, removing
    runner      every job on its interval, once at a time over all processes
    metrics     what is counted of them

`tollkeeper jobs` runs `runner.run`; tests call `run_once` directly.
"""
