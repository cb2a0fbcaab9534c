"""How much of the truth is in a model: reconstruction of images, held-out episodes, fidelity of imagination."""
