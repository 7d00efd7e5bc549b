"""What both planes agree on, and nothing else.

The control plane writes rules into Redis, the data plane admits and settles against them, and neither imports the
other: they meet here. This package is pure except for `scripts`, which reads its own Lua files.

    token        the secret string: mint, recognise, digest
    layout       names of every Redis key, and which shard an organization lives on
    records      fields of the rule records, and the packed form of a hold
    usage_event  what is written for every admitted request, and for refused ones in aggregate
    money        microcredits, and decimal credits at the edges
    periods      windows of a budget, in UTC
    grants       prepaid credits that expire, and what is lost of them
    scripts      admit, settle, extend, publish, adopt: the only code that touches counters

Fields and arguments are only ever added: a gateway of one version works beside a control of the next.
"""
