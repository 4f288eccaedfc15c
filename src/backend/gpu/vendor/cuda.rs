//! [`Vendor`] of a CUDA device: cuBLASLt for 1x1 convolutions with stride 1 and linear layers, cuDNN for the rest. Each is
//! opened when the first product asks for it.
//!
//! No GPU has run this code yet. Counterfeit libraries have (`tests/gpu_vendor_cuda.rs`), which compute on the host what they
//! are asked for; and NVIDIA's own cuBLASLt 13.10 and cuDNN 9.28 were found, opened and checked on a machine without a GPU,
//! where creating a handle is their first refusal. So unknown until a GPU runs it: whether cuDNN has these algorithms for
//! every geometry, in NHWC and each type; its products inside the capture of a graph; that the bytes are the same each
//! time, which NVIDIA's documentation says of what is asked for here; time and workspace.

use super::super::cuda::Session;
use super::cublaslt::{self, Matrices};
use super::cudnn::{self, Convolutions};
use super::{Prepared, Product, Vendor};
use crate::error::{Error, Result};
use std::sync::{Arc, OnceLock};

/// A library that was opened, or why not.
type Opened<T> = OnceLock<std::result::Result<Arc<T>, String>>;

/// The libraries of one device.
pub struct CudaVendor {
    session: Arc<Session>,
    matrices: Opened<Matrices>,
    convolutions: Opened<Convolutions>,
}

impl CudaVendor {
    pub(in super::super) fn new(session: Arc<Session>) -> Self {
        CudaVendor { session, matrices: OnceLock::new(), convolutions: OnceLock::new() }
    }

    /// The library, opened by the first call.
    fn open<T>(&self, place: &Opened<T>, how: fn(Arc<Session>) -> std::result::Result<T, String>) -> Result<Arc<T>> {
        self.session.bind()?;
        let opened = place.get_or_init(|| how(self.session.clone()).map(Arc::new));
        opened.clone().map_err(Error::Failed)
    }
}

impl Vendor for CudaVendor {
    fn describe(&self) -> String {
        let matrices = self.matrices.get().and_then(|m| m.as_ref().ok()).map(|m| m.version.clone());
        let convolutions = self.convolutions.get().and_then(|c| c.as_ref().ok()).map(|c| c.version.clone());
        matrices.into_iter().chain(convolutions).collect::<Vec<_>>().join(", ")
    }

    fn prepare(&self, product: &Product) -> Result<Box<dyn Prepared>> {
        product.check()?;
        if product.is_matrix() {
            let library = self.open(&self.matrices, Matrices::open)?;
            return Ok(Box::new(cublaslt::Matrix::new(library, product).map_err(Error::Failed)?));
        }
        let library = self.open(&self.convolutions, Convolutions::open)?;
        Ok(Box::new(cudnn::Convolution::new(library, product).map_err(Error::Failed)?))
    }
}
