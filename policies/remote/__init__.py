"""Policies that act elsewhere: openpi's messages, and a policy of ours that asks a server for every chunk."""

try:
    import msgpack  # noqa: F401
    import websockets  # noqa: F401
except ModuleNotFoundError as error:
    raise ValueError(f"policy servers and their clients need {error.name}: pip install 'nextstate[serve]'") from error
