"""What `tollkeeper demo` shows: an upstream to send requests to (``upstream.py``), the routes with their prices
(``routes.toml``), and the story that is told of real requests and their real answers (``story.py``).

Nothing here is part of an installation in production.
"""
