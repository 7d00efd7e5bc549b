"""HTTP/1.1 on both sides of the gateway (RFC 9110, RFC 9112).

`head`, `target` and `chunked` are pure: bytes in, values out. `client` and `upstream` are asyncio protocols that own a
socket each and know nothing of Redis; `gateway.exchange` joins them.
"""
