"""The `.dsz` file: its specification, reading, writing, and the way back to weights."""
