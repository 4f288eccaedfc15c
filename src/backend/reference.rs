//! The f64 reference backend: slow, simple, one loop nest an op, logical N,C,H,W storage.
