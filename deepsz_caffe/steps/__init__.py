"""The method of the paper: prune, assess, optimize, encode; `compress` does the last three.

Nothing here knows Caffe: what a network loses is asked of an evaluator that a step is given.
"""
