"""The numerics: schedule, injection sites, inversion and sampling. Tensors in and out."""
