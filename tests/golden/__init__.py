"""Inputs and outputs of the Caffe original; see the README beside this file."""
