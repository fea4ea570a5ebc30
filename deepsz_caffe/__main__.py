"""``python -m deepsz_caffe``: the command line where `deepsz` is not on the path."""

from deepsz_caffe.cli import main

main()
