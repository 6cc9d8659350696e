"""What images from strangers may be, module by module of `pnp_batch.source`."""
