#!/bin/bash
# Passes: what is tested is that the programs beside it were built (gpu_programs_build_test in defs.bzl).
