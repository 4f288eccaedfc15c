//! The GPU backend: one implementation over two drivers, cudarc and host emulation.
