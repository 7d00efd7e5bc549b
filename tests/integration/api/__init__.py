"""The REST API, on real servers."""
