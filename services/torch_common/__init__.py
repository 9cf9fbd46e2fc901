"""Torch helpers shared by the services that run models.

Importing this package makes torchvision importable beside CPU torch, so import it before
torchvision, timm, open_clip or transformers.
"""

from services.torch_common.torchvision_guard import STUBBED, guard_torchvision

__all__ = ["STUBBED", "guard_torchvision"]
