"""A whole suite on one machine: Redis and the four services as child processes."""
