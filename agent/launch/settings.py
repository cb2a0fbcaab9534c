"""Settings become objects. The code lives where the commands of world_model and policies can import it too."""

from envs.data.settings import from_settings

__all__ = ["from_settings"]
