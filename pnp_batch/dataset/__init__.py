"""An output as a data set that others load: its card, and the table that goes with it."""
