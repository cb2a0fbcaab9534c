"""How much of the truth is in a model: reconstruction, held-out episodes, fidelity of imagination."""
