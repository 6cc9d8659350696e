"""The numerics: schedule, the UNet's injection sites, inversion and sampling. Tensors in and out."""
