"""The recipe of the embedded `demo` model: draw pictures, train VAE, CLIP and UNet, export."""
