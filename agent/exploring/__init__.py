"""A page in the browser on which a person drives the simulator and the dream side by side."""
