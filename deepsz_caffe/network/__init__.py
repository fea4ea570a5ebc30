"""A Caffe network on disk: definition and weights, read and written without Caffe."""

#: ends of names under which weights are written as HDF5: Caffe's, and the usual one
HDF5_SUFFIXES = (".h5", ".hdf5")
