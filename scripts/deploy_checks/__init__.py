"""What `make lint` checks of deploy/, beside the schemas."""
