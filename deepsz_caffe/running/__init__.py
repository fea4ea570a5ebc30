"""Running fc layers from their compressed form, without ever making their dense weights.

`quantized` is the form in memory, `build` makes it of a `.dsz` file, `product` multiplies with it
(``native/`` has the kernels), `linear` is a layer for users of numpy, `opencv` one for OpenCV.
"""
