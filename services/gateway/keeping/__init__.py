"""Keeps what is stored: checks it, collects what nobody needs, backs it up and restores it."""
