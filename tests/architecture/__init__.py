"""The shape of the sources, kept by tests: who imports whom, how large, what is named, what is documented.
Seconds, no servers.
"""
