"""The contract on a real Redis: what the scripts promise, tried by hand, by chance and by crowds."""
