"""Looks into a model: images in, principal components of its features and attention out."""

from pnp_batch.inspection.files import inspect_files
from pnp_batch.inspection.inspection import Inspection, Wanted, inspect

__all__ = ["Inspection", "Wanted", "inspect", "inspect_files"]
