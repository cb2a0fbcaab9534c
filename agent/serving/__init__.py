"""A policy that others ask over the network, in openpi's protocol."""

import policies.remote  # noqa: F401  says which extra is missing, before a module here needs it
