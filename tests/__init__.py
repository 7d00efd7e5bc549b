"""Tests: sentences that state a guarantee, against real servers."""
