"""The mind, and the commands that a person runs: collect, evaluate, compare, bench, fidelity and demo."""

from agent.launch.packages import check_packages

check_packages()
