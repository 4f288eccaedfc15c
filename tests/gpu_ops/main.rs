//! Single GPU kernels against f64 references: one file of tests a stem of `kernels/`. `held.rs`, `operand.rs` and `finish.rs`:
//! device buffers, operands and finished gradients. A test body is generic over the driver and runs on every device there is.

/// Tests named after generic bodies `fn body<D: Driver>(driver: &D)`: emulated in both thread orders, and on a real GPU where
/// there is one.
macro_rules! on_every_device {
    ($($body:ident),* $(,)?) => {$(
        mod $body {
            use sparse_engine::backend::gpu::emu::{Emulated, Order};
            #[test]
            fn emulated_in_both_orders() {
                for order in Order::BOTH {
                    super::$body(&Emulated::new(order).unwrap());
                }
            }
            #[test]
            fn on_a_real_gpu() {
                match sparse_engine::backend::gpu::probe() {
                    Ok(info) => {
                        println!("on {} (compute capability {:?})", info.name, info.capability);
                        super::$body(&sparse_engine::backend::gpu::cuda::Cuda::open().unwrap());
                    }
                    Err(why) => drop(std::io::Write::write_fmt(
                        &mut std::io::stderr(), format_args!("skipped: {why}\n"))),
                }
            }
        }
    )*};
}

mod augment;
mod finish;
mod held;
mod loss;
mod norm;
mod operand;
mod peak;
mod pool;
mod rows;
mod sgd;
mod step;
