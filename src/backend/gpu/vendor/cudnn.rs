//! Convolutions by cuDNN's descriptors: NHWC tensors and filters, f32 sums, algorithms that give the same bytes each time.
//! Weight gradients come in the tensors' type: in halves they overflow where the other kernels' f32 ones do not, which the
//! loss scale sees.
//! See [`super::cuda`] for what has not been run.

use super::super::cuda::Session;
use super::super::ops::operand::{Element, Precision, padded};
use super::libraries::Library;
use super::{Pass, Prepared, Product};
use crate::error::Error;
use cudarc::cudnn::{CudnnError, result, sys};
use std::ffi::c_void;
use std::ptr::from_ref;
use std::sync::{Arc, Mutex, MutexGuard};

const LIBRARY: Library = Library {
    title: "cuDNN",
    package: "nvidia-cudnn-cu13",
    files: &["libcudnn.so.9"],
    // libcudnn.so.9 only passes calls on to these; the last two hold the kernels and choose among them.
    parts: &[
        "libcudnn_graph.so.9",
        "libcudnn_ops.so.9",
        "libcudnn_cnn.so.9",
        "libcudnn_engines_precompiled.so.9",
        "libcudnn_heuristic.so.9",
    ],
    oldest: [9, 0, 0],
    symbols: &[
        "cudnnGetVersion",
        "cudnnCreate",
        "cudnnDestroy",
        "cudnnSetStream",
        "cudnnCreateTensorDescriptor",
        "cudnnSetTensor4dDescriptor",
        "cudnnDestroyTensorDescriptor",
        "cudnnCreateFilterDescriptor",
        "cudnnSetFilter4dDescriptor",
        "cudnnDestroyFilterDescriptor",
        "cudnnCreateConvolutionDescriptor",
        "cudnnSetConvolution2dDescriptor",
        "cudnnSetConvolutionMathType",
        "cudnnDestroyConvolutionDescriptor",
        "cudnnGetConvolutionForwardWorkspaceSize",
        "cudnnGetConvolutionBackwardDataWorkspaceSize",
        "cudnnGetConvolutionBackwardFilterWorkspaceSize",
        "cudnnConvolutionForward",
        "cudnnConvolutionBackwardData",
        "cudnnConvolutionBackwardFilter",
    ],
    present: sys::is_culib_present,
    // SAFETY: only looked up, never called through this type.
    address: |name| unsafe { sys::culib().get::<*const ()>(name.as_bytes()) }.ok().map(|f| *f as usize),
    version: result::get_version,
};

/// The library with a handle on one device's stream.
pub(super) struct Convolutions {
    session: Arc<Session>,
    /// One thread at a time may use it.
    handle: Mutex<Handle>,
    /// For people.
    pub version: String,
}

struct Handle(sys::cudnnHandle_t);

// SAFETY: any thread may use it, one at a time.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

fn failed(call: &'static str) -> impl Fn(CudnnError) -> String {
    move |e| format!("{call} fails with {:?}", e.0)
}

impl Convolutions {
    /// Wants the session bound.
    pub fn open(session: Arc<Session>) -> Result<Self, String> {
        let version = LIBRARY.open()?;
        let refused = |e: CudnnError| {
            format!("{version} refuses cudnnCreate: {:?}; is it made for this driver's CUDA, and memory left?", e.0)
        };
        let handle = Handle(result::create_handle().map_err(refused)?);
        // SAFETY: both are alive, and the session outlives the handle.
        unsafe { result::set_stream(handle.0, session.stream().cast()) }.map_err(failed("cudnnSetStream"))?;
        Ok(Convolutions { session, handle: Mutex::new(handle), version })
    }

    fn handle(&self) -> MutexGuard<'_, Handle> {
        self.handle.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A descriptor and how to give it back.
struct Descriptor<T>(*mut T, unsafe fn(*mut T) -> Result<(), CudnnError>);

impl<T> Descriptor<T> {
    fn new(
        made: Result<*mut T, CudnnError>,
        destroy: unsafe fn(*mut T) -> Result<(), CudnnError>,
    ) -> Result<Self, String> {
        made.map(|d| Descriptor(d, destroy)).map_err(failed("a cudnnCreate...Descriptor"))
    }
}

impl<T> Drop for Descriptor<T> {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { (self.1)(self.0) };
    }
}

/// How a product is made. Of each list the first that the library has for it.
#[derive(Clone, Copy)]
enum Algorithm {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    Data(sys::cudnnConvolutionBwdDataAlgo_t),
    Weight(sys::cudnnConvolutionBwdFilterAlgo_t),
}

impl Algorithm {
    /// All forward algorithms are deterministic; of the gradients' those with number 0 are not.
    fn candidates(pass: Pass) -> &'static [Algorithm] {
        use sys::cudnnConvolutionBwdDataAlgo_t as D;
        use sys::cudnnConvolutionBwdFilterAlgo_t as W;
        use sys::cudnnConvolutionFwdAlgo_t as F;
        match pass {
            Pass::Forward => &[
                Algorithm::Forward(F::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM),
                Algorithm::Forward(F::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM),
            ],
            Pass::Data => &[Algorithm::Data(D::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1)],
            Pass::Weight => &[Algorithm::Weight(W::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1)],
        }
    }
}

/// A convolution that is ready to run.
pub(super) struct Convolution {
    x: Descriptor<sys::cudnnTensorStruct>,
    y: Descriptor<sys::cudnnTensorStruct>,
    w: Descriptor<sys::cudnnFilterStruct>,
    conv: Descriptor<sys::cudnnConvolutionStruct>,
    algorithm: Algorithm,
    workspace: usize,
    element: Element,
    /// Last: its handle goes after the descriptors.
    library: Arc<Convolutions>,
}

// SAFETY: descriptors are only read once they are set, and each call holds the handle's lock.
unsafe impl Send for Convolution {}
// SAFETY: as above.
unsafe impl Sync for Convolution {}

impl Convolution {
    /// Wants the session bound.
    pub fn new(library: Arc<Convolutions>, product: &Product) -> Result<Self, String> {
        use sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC as NHWC;
        let (g, element) = (product.geom, product.precision.element());
        let number = match element {
            Element::F32 => sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
            Element::F16 => sys::cudnnDataType_t::CUDNN_DATA_HALF,
            Element::Bf16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        };
        let math = match product.precision {
            Precision::F32 => sys::cudnnMathType_t::CUDNN_FMA_MATH,
            Precision::Tf32 => sys::cudnnMathType_t::CUDNN_DEFAULT_MATH, // which allows TF32 from Ampere on
            Precision::F16 | Precision::Bf16 => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        };
        let ints = |sizes: [u32; 4]| sizes.map(|s| s as i32); // checked: tensors have fewer than 2^31 numbers
        let (c, k, n) = (padded(g.c), padded(g.k), product.images);
        let x = Descriptor::new(result::create_tensor_descriptor(), result::destroy_tensor_descriptor)?;
        let y = Descriptor::new(result::create_tensor_descriptor(), result::destroy_tensor_descriptor)?;
        let w = Descriptor::new(result::create_filter_descriptor(), result::destroy_filter_descriptor)?;
        let conv = Descriptor::new(result::create_convolution_descriptor(), result::destroy_convolution_descriptor)?;
        let (pad, stride) = (g.pad as i32, g.stride as i32);
        // SAFETY: descriptors just made. Sizes come in the order N,C,H,W and K,C,R,S whatever the layout is.
        unsafe {
            let set = failed("cudnnSetTensor4dDescriptor");
            result::set_tensor4d_descriptor(x.0, NHWC, number, ints([n, c, g.h, g.w])).map_err(&set)?;
            result::set_tensor4d_descriptor(y.0, NHWC, number, ints([n, k, g.p(), g.q()])).map_err(&set)?;
            result::set_filter4d_descriptor(w.0, number, NHWC, ints([k, c, g.r, g.s]))
                .map_err(failed("cudnnSetFilter4dDescriptor"))?;
            result::set_convolution2d_descriptor(
                conv.0,
                pad,
                pad,
                stride,
                stride,
                1,
                1,
                sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
            )
            .map_err(failed("cudnnSetConvolution2dDescriptor"))?;
            result::set_convolution_math_type(conv.0, math).map_err(failed("cudnnSetConvolutionMathType"))?;
        }
        let candidates = Algorithm::candidates(product.pass);
        let mut made = Convolution { library, x, y, w, conv, algorithm: candidates[0], workspace: 0, element };
        let mut why = String::new();
        for &algorithm in candidates {
            made.algorithm = algorithm;
            match made.ask_workspace() {
                Ok(bytes) => {
                    made.workspace = bytes;
                    return Ok(made);
                }
                Err(e) => why = format!("{:?}", e.0),
            }
        }
        Err(format!("{} has no deterministic {} for {g:?}: {why}", made.library.version, product.pass))
    }

    fn ask_workspace(&self) -> Result<usize, CudnnError> {
        let handle = self.library.handle();
        let (x, y, w, conv) = (self.x.0, self.y.0, self.w.0, self.conv.0);
        // SAFETY: handle and descriptors are alive.
        unsafe {
            match self.algorithm {
                Algorithm::Forward(a) => result::get_convolution_forward_workspace_size(handle.0, x, w, conv, y, a),
                Algorithm::Data(a) => result::get_convolution_backward_data_workspace_size(handle.0, w, y, conv, x, a),
                Algorithm::Weight(a) => {
                    result::get_convolution_backward_filter_workspace_size(handle.0, x, y, conv, w, a)
                }
            }
        }
    }
}

impl Prepared for Convolution {
    fn workspace_bytes(&self) -> usize {
        self.workspace
    }

    fn output(&self) -> Element {
        self.element
    }

    unsafe fn run(&self, a: u64, b: u64, out: u64, workspace: u64) -> Result<(), Error> {
        self.library.session.bind()?;
        let handle = self.library.handle();
        let (x, y, w, conv) = (self.x.0, self.y.0, self.w.0, self.conv.0);
        let (one, zero) = (1f32, 0f32); // also for halves, whose sums are f32
        let (one, zero) = (from_ref(&one).cast::<c_void>(), from_ref(&zero).cast::<c_void>());
        let [a, b] = [a, b].map(|at| at as *const c_void);
        let (out, space, bytes) = (out as *mut c_void, workspace as *mut c_void, self.workspace);
        // SAFETY: descriptors are alive and say what the caller vouches for.
        let (call, outcome) = unsafe {
            match self.algorithm {
                Algorithm::Forward(how) => (
                    "cudnnConvolutionForward",
                    result::convolution_forward(handle.0, one, x, a, w, b, conv, how, space, bytes, zero, y, out),
                ),
                Algorithm::Data(how) => (
                    "cudnnConvolutionBackwardData",
                    result::convolution_backward_data(handle.0, one, w, b, y, a, conv, how, space, bytes, zero, x, out),
                ),
                Algorithm::Weight(how) => (
                    "cudnnConvolutionBackwardFilter",
                    result::convolution_backward_filter(
                        handle.0, one, x, a, y, b, conv, how, space, bytes, zero, w, out,
                    ),
                ),
            }
        };
        outcome.map_err(|e| Error::Failed(format!("GPU: {call} fails with {:?}", e.0)))
    }
}
