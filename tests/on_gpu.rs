//! The tests that also run on a real GPU, in one program: `benches/gpu/pack.sh` builds it for machines without Rust. `cargo
//! test` leaves it out, as it runs each of them where it stands.

#[path = "gpu_conv/main.rs"]
mod gpu_conv; // convolution kernels: geometries, tiles, masks, operands, epilogues
#[path = "gpu_lockstep.rs"]
mod gpu_lockstep; // 20 training steps of ResNet-20 beside the CPU
#[path = "gpu_ops/main.rs"]
mod gpu_ops; // every other kernel by itself
#[path = "ops.rs"]
mod ops; // every operation of the backend in every precision
