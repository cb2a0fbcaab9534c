"""A policy that others ask over the network, in openpi's protocol."""
