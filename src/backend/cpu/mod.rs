//! The CPU backend: f32, batch-innermost blocks of 16 images, zero halos, rayon threads.
