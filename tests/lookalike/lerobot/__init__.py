"""What policies/remote/lerobot_process.py uses of LeRobot, by the same names and with the same signatures (0.4.4), for
machines that have no LeRobot: a policy that tells in its actions what it was given and what it remembers."""
