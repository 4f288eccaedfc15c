//! 1x1 convolutions with stride 1, and linear layers, as matrix products by cuBLASLt. See [`super::cuda`] for what has not
//! been run.
//!
//! The library counts columns first: a tensor of rows of `cp` channels is a matrix of `cp` rows to it.

use super::super::cuda::Session;
use super::super::ops::operand::{Element, Precision, padded};
use super::libraries::Library;
use super::{Pass, Prepared, Product};
use crate::error::Error;
use cudarc::cublaslt::{
    result::{self, CublasError},
    sys,
};
use std::ffi::c_void;
use std::ptr::from_ref;
use std::sync::Arc;

const LIBRARY: Library = Library {
    title: "cuBLASLt",
    package: "nvidia-cublas",
    files: &["libcublasLt.so.13", "libcublasLt.so.12"],
    parts: &[],
    oldest: [12, 0, 0],
    symbols: &[
        "cublasLtGetVersion",
        "cublasLtCreate",
        "cublasLtDestroy",
        "cublasLtMatrixLayoutCreate",
        "cublasLtMatrixLayoutDestroy",
        "cublasLtMatmulDescCreate",
        "cublasLtMatmulDescSetAttribute",
        "cublasLtMatmulDescDestroy",
        "cublasLtMatmulPreferenceCreate",
        "cublasLtMatmulPreferenceSetAttribute",
        "cublasLtMatmulPreferenceDestroy",
        "cublasLtMatmulAlgoGetHeuristic",
        "cublasLtMatmul",
    ],
    present: sys::is_culib_present,
    // SAFETY: only looked up, never called through this type.
    address: |name| unsafe { sys::culib().get::<*const ()>(name.as_bytes()) }.ok().map(|f| *f as usize),
    // SAFETY: no preconditions but that the function is there.
    version: || unsafe { sys::cublasLtGetVersion() },
};

/// Most workspace that a product may want, as much as PyTorch allows on a Hopper.
const WORKSPACE: usize = 32 << 20;

/// The library with a handle on one device.
pub(super) struct Matrices {
    session: Arc<Session>,
    /// Any number of threads may use it.
    handle: sys::cublasLtHandle_t,
    /// For people.
    pub version: String,
}

// SAFETY: NVIDIA's documentation says that a cuBLASLt handle may be shared by threads.
unsafe impl Send for Matrices {}
// SAFETY: as above.
unsafe impl Sync for Matrices {}

impl Drop for Matrices {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn failed(call: &'static str) -> impl Fn(CublasError) -> String {
    move |e| format!("{call} fails with {:?}", e.0)
}

impl Matrices {
    /// Wants the session bound.
    pub fn open(session: Arc<Session>) -> Result<Self, String> {
        let version = LIBRARY.open()?;
        let refused = |e: CublasError| {
            format!("{version} refuses cublasLtCreate: {:?}; is it made for this driver's CUDA, and memory left?", e.0)
        };
        let handle = result::create_handle().map_err(refused)?;
        Ok(Matrices { session, handle, version })
    }
}

/// A descriptor and how to give it back.
struct Descriptor<T>(*mut T, unsafe fn(*mut T) -> Result<(), CublasError>);

impl<T> Drop for Descriptor<T> {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { (self.1)(self.0) };
    }
}

/// A matrix product that is ready to run.
pub(super) struct Matrix {
    product: Descriptor<sys::cublasLtMatmulDescOpaque_t>,
    /// Of the left factor, the right one and the result.
    layouts: [Descriptor<sys::cublasLtMatrixLayoutOpaque_t>; 3],
    /// Whether the left factor is the second operand.
    swapped: bool,
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
    output: Element,
    /// Last: its handle goes after the descriptors.
    library: Arc<Matrices>,
}

// SAFETY: descriptors are only read once they are set.
unsafe impl Send for Matrix {}
// SAFETY: as above.
unsafe impl Sync for Matrix {}

/// What a pass multiplies: (rows, columns) as they lie in memory, of the left factor, the right one and the result; which of
/// the two are transposed; whether the left one is the second operand.
fn shape(product: &Product) -> ([(u64, u64); 3], [bool; 2], bool) {
    let g = product.geom;
    let (c, k) = (u64::from(padded(g.c)), u64::from(padded(g.k)));
    let rows = u64::from(product.images) * u64::from(g.h) * u64::from(g.w);
    let (x, y, w) = ((c, rows), (k, rows), (c, k));
    match product.pass {
        Pass::Forward => ([w, x, y], [true, false], true),
        Pass::Data => ([w, y, x], [false, false], true),
        Pass::Weight => ([x, y, w], [false, true], false),
    }
}

impl Matrix {
    /// Wants the session bound.
    pub fn new(library: Arc<Matrices>, product: &Product) -> Result<Self, String> {
        let precision = product.precision;
        let output = if product.pass == Pass::Weight { Element::F32 } else { precision.element() };
        let compute = match precision {
            Precision::Tf32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let number = |element: Element| match element {
            Element::F32 => sys::cudaDataType_t::CUDA_R_32F,
            Element::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Element::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let (shapes, transposed, swapped) = shape(product);
        let made = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F);
        let desc = Descriptor(made.map_err(failed("cublasLtMatmulDescCreate"))?, result::destroy_matmul_desc);
        use sys::cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB};
        for (which, transposed) in
            [CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB].into_iter().zip(transposed)
        {
            let how = i32::from(transposed); // CUBLAS_OP_N, CUBLAS_OP_T
            // SAFETY: the descriptor is alive; the attribute is an i32.
            unsafe { result::set_matmul_desc_attribute(desc.0, which, from_ref(&how).cast(), size_of_val(&how)) }
                .map_err(failed("cublasLtMatmulDescSetAttribute"))?;
        }
        let layout = |i: usize, element: Element| {
            let (rows, columns) = shapes[i];
            let made = result::create_matrix_layout(number(element), rows, columns, rows as i64);
            made.map(|d| Descriptor(d, result::destroy_matrix_layout)).map_err(failed("cublasLtMatrixLayoutCreate"))
        };
        let layouts = [layout(0, precision.element())?, layout(1, precision.element())?, layout(2, output)?];
        let found = choose(&library, &desc, &layouts).map_err(|e| {
            let (version, g) = (&library.version, product.geom);
            format!("{version} has no deterministic {} for {g:?}: {e}", product.pass)
        })?;
        Ok(Matrix {
            library,
            product: desc,
            layouts,
            swapped,
            algorithm: found.algo,
            workspace: found.workspaceSize,
            output,
        })
    }
}

/// The library's first choice among those that add up parts, if any, in a fixed order and in f32.
fn choose(
    library: &Matrices,
    desc: &Descriptor<sys::cublasLtMatmulDescOpaque_t>,
    layouts: &[Descriptor<sys::cublasLtMatrixLayoutOpaque_t>; 3],
) -> Result<sys::cublasLtMatmulHeuristicResult_t, String> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Wish;
    let made = result::create_matmul_pref().map_err(failed("cublasLtMatmulPreferenceCreate"))?;
    let wishes = Descriptor(made, result::destroy_matmul_pref);
    let scheme = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
    // SAFETY: the descriptors are alive; the attributes are a u64 and a u32.
    unsafe {
        let workspace = WORKSPACE as u64;
        let set = failed("cublasLtMatmulPreferenceSetAttribute");
        let limit = Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        result::set_matmul_pref_attribute(wishes.0, limit, from_ref(&workspace).cast(), size_of_val(&workspace))
            .map_err(&set)?;
        let mask = Wish::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
        result::set_matmul_pref_attribute(wishes.0, mask, from_ref(&scheme).cast(), size_of_val(&scheme))
            .map_err(&set)?;
        let [a, b, d] = layouts.each_ref().map(|l| l.0);
        result::get_matmul_algo_heuristic(library.handle, desc.0, a, b, d, d, wishes.0)
            .map_err(|e| format!("{:?}", e.0))
    }
}

impl Prepared for Matrix {
    fn workspace_bytes(&self) -> usize {
        self.workspace
    }

    fn output(&self) -> Element {
        self.output
    }

    unsafe fn run(&self, a: u64, b: u64, out: u64, workspace: u64) -> Result<(), Error> {
        let session = &self.library.session;
        session.bind()?;
        let (left, right) = if self.swapped { (b, a) } else { (a, b) };
        let (one, zero) = (1f32, 0f32);
        let [layout_a, layout_b, layout_d] = self.layouts.each_ref().map(|l| l.0);
        // SAFETY: descriptors are alive and say what the caller vouches for. With a factor of zero the third matrix, here the
        // result, is not read.
        unsafe {
            result::matmul(
                self.library.handle,
                self.product.0,
                from_ref(&one).cast(),
                from_ref(&zero).cast(),
                left as *const c_void,
                layout_a,
                right as *const c_void,
                layout_b,
                out as *const c_void,
                layout_d,
                out as *mut c_void,
                layout_d,
                &self.algorithm,
                workspace as *mut c_void,
                self.workspace,
                session.stream().cast(),
            )
        }
        .map_err(|e| Error::Failed(format!("GPU: cublasLtMatmul fails with {:?}", e.0)))
    }
}
