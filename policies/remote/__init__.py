"""Policies that act elsewhere: openpi's messages, and a policy of ours that asks a server for every chunk."""
