"""Networks at the paper's full size with generated weights: sizes, times and memory."""
