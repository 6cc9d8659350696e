"""What people look at: pictures made from an output."""
