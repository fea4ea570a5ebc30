"""The techniques that the paper compares with, complete and measured by the same code."""
