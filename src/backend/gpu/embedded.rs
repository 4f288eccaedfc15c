//! The compiled kernels that build.rs put into this binary, if it found an nvcc.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
