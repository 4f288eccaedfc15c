//! A small graph of layers: what a model builds ([`Graph`]), how it becomes operations ([`lower`]), how they run ([`Net`]).
//!
//! ```
//! use sparse_engine::graph::Graph;
//! let mut g = Graph::new(1, 28, 28);
//! let x = g.input();
//! let x = g.conv("conv", x, 8, 3, 2, 1)?;
//! let x = g.norm("bn", x);
//! let x = g.relu(x);
//! let x = g.pool(x);
//! g.linear("fc", x, 10)?;
//! assert_eq!(g.maskable().len(), 2);
//! # Ok::<(), sparse_engine::Error>(())
//! ```

mod backward;
mod device;
mod exec;
mod gradients;
mod init;
pub mod lower;
mod roles;
mod state;

pub use crate::shape::{Exempt, Fan, InitScale};
pub use device::{OnGpu, StepKind};
pub use exec::Net;
pub use gradients::ParamGradient;
pub use state::{NetState, NormState, ParamState};

use crate::backend::{Plane, PoolSpec};
use crate::error::{Error, Result};
use crate::shape::ConvGeom;
use crate::sparsity::{Maskable, Role};

/// A node of a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(pub(crate) usize);

impl NodeId {
    /// Its place in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// What a node computes.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The images.
    Input,
    /// Convolution or linear layer; index into [`Graph::convs`].
    Conv(usize),
    /// Batch norm; index into [`Graph::norms`].
    Norm(usize),
    /// max(x, 0).
    Relu,
    /// a + b.
    Add,
    /// Mean over rows and columns.
    Pool,
    /// Maximum over windows; index into [`Graph::pools`].
    MaxPool(usize),
}

/// A node: operation, inputs, and the shape C,H,W of its output for one image.
#[derive(Clone, Debug)]
pub struct Node {
    /// Operation.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<NodeId>,
    /// Output channels, rows, columns.
    pub chw: (u32, u32, u32),
}

/// How a parameter starts (paper sections 2.1 to 2.3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal with standard deviation sqrt(2 / fan).
    KaimingNormal {
        /// fan_in, the inputs of one output (C*R*S), or fan_out, the outputs of one input (K*R*S).
        fan: usize,
    },
    /// Normal.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform in +-1/sqrt(fan_in): PyTorch's default of a linear layer, weight and bias.
    Uniform {
        /// Inputs of one output.
        fan_in: usize,
    },
    /// One value.
    Constant(f64),
}

/// A parameter tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Name, such as "segment1.block0.conv1.weight".
    pub name: String,
    /// K,C,R,S for a convolution, out,in for a linear layer, one length for a vector.
    pub shape: Vec<usize>,
    /// Initial values.
    pub init: Init,
    /// Whether a mask may prune it: convolution and linear weights, the first and last included; never biases or norms.
    pub maskable: bool,
    /// Whether weight decay applies ([`Graph::set_weight_decay`]).
    pub decay: bool,
}

impl Param {
    /// Elements of the dense tensor.
    pub fn size(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A convolution, or a linear layer as a 1x1 convolution of a 1x1 plane.
#[derive(Clone, Debug)]
pub struct Conv {
    /// Layer name.
    pub name: String,
    /// Geometry.
    pub geom: ConvGeom,
    /// Index of the weight in [`Graph::params`].
    pub weight: usize,
    /// Index of the bias.
    pub bias: Option<usize>,
}

/// A batch norm.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Layer name.
    pub name: String,
    /// Channels.
    pub c: u32,
    /// Index of the scale in [`Graph::params`].
    pub gamma: usize,
    /// Index of the shift.
    pub beta: usize,
}

/// A network: nodes in topological order, the last one gives the logits.
#[derive(Clone, Debug)]
pub struct Graph {
    nodes: Vec<Node>,
    params: Vec<Param>,
    convs: Vec<Conv>,
    norms: Vec<Norm>,
    pools: Vec<PoolSpec>,
}

impl Graph {
    /// A graph that takes images of `c` channels, `h` rows, `w` columns.
    pub fn new(c: usize, h: usize, w: usize) -> Self {
        let node = Node { op: Op::Input, inputs: vec![], chw: (c as u32, h as u32, w as u32) };
        Graph { nodes: vec![node], params: vec![], convs: vec![], norms: vec![], pools: vec![] }
    }

    /// The images.
    pub fn input(&self) -> NodeId {
        NodeId(0)
    }

    /// Nodes in topological order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Parameters in creation order, which is the order of the flat stores and of checkpoints.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Convolutions and linear layers in creation order.
    pub fn convs(&self) -> &[Conv] {
        &self.convs
    }

    /// Batch norms in creation order.
    pub fn norms(&self) -> &[Norm] {
        &self.norms
    }

    /// Maximum poolings in creation order.
    pub fn pools(&self) -> &[PoolSpec] {
        &self.pools
    }

    /// Parameters of the dense network.
    pub fn param_count(&self) -> usize {
        self.params.iter().map(Param::size).sum()
    }

    /// The first node but the last whose output no other reads, images aside: such a network is a slip, and none runs it.
    pub(crate) fn unused(&self) -> Option<NodeId> {
        let mut used = vec![false; self.nodes.len()];
        self.nodes.iter().flat_map(|node| &node.inputs).for_each(|x| used[x.0] = true);
        (1..self.nodes.len() - 1).find(|&i| !used[i]).map(NodeId)
    }

    /// What a node is, for messages.
    pub(crate) fn describe(&self, node: NodeId) -> String {
        match self.nodes[node.0].op {
            Op::Input => "the images".into(),
            Op::Conv(i) => format!("convolution {}", self.convs[i].name),
            Op::Norm(i) => format!("batch norm {}", self.norms[i].name),
            Op::Relu => "a ReLU".into(),
            Op::Add => "an addition".into(),
            Op::Pool => "a mean pool".into(),
            Op::MaxPool(_) => "a maximum pool".into(),
        }
    }

    /// Maskable tensors in creation order, each with its [`Role`]: first are the layers that read the images through norms,
    /// ReLUs, pools and additions alone, last those from which only such lead to the logits.
    pub fn maskable(&self) -> Vec<Maskable> {
        let roles = roles::roles(self);
        let role = |weight| self.convs.iter().position(|c| c.weight == weight).map_or(Role::Inner, |conv| roles[conv]);
        let weights = self.params.iter().enumerate().filter(|(_, p)| p.maskable);
        weights.map(|(i, p)| Maskable { name: p.name.clone(), shape: p.shape.clone(), role: role(i) }).collect()
    }

    /// Multiply-accumulates of the dense network for one image, a maskable tensor, in [`Graph::maskable`]'s order.
    pub fn macs(&self) -> Vec<u64> {
        self.convs.iter().map(|c| c.geom.macs()).collect()
    }

    /// Square convolution without bias, `r` x `r`; the weight starts Kaiming-normal by fan_in.
    ///
    /// # Errors
    /// A kernel larger than the padded input, or a zero size.
    pub fn conv(&mut self, name: &str, x: NodeId, k: usize, r: usize, stride: usize, pad: usize) -> Result<NodeId> {
        let (c, h, w) = self.nodes[x.0].chw;
        if k == 0 || r == 0 || stride == 0 || c == 0 || h as usize + 2 * pad < r || w as usize + 2 * pad < r {
            return Err(Error::Usage(format!(
                "layer {name}: a {r}x{r} convolution to {k} channels with stride {stride} and padding {pad} \
                 does not fit an input of {c}x{h}x{w}; use a larger image or a smaller kernel"
            )));
        }
        let [k, r, stride, pad] = [k, r, stride, pad].map(|v| v as u32);
        let geom = ConvGeom { c, h, w, k, r, s: r, stride, pad };
        let fan = (c * r * r) as usize;
        let shape = [k, c, r, r].map(|v| v as usize).to_vec();
        let weight = self.param(format!("{name}.weight"), shape, Init::KaimingNormal { fan }, true);
        Ok(self.push_conv(name, x, geom, weight, None))
    }

    /// The same with a bias a channel, which starts uniform.
    ///
    /// # Errors
    /// As [`Graph::conv`].
    pub fn conv_with_bias(
        &mut self,
        name: &str,
        x: NodeId,
        k: usize,
        r: usize,
        stride: usize,
        pad: usize,
    ) -> Result<NodeId> {
        let y = self.conv(name, x, k, r, stride, pad)?;
        let conv = self.convs.len() - 1;
        let fan_in = self.params[self.convs[conv].weight].size() / k;
        self.convs[conv].bias = Some(self.param(format!("{name}.bias"), vec![k], Init::Uniform { fan_in }, false));
        Ok(y)
    }

    /// Linear layer with bias on a 1x1 plane: the last one gives the logits. The weight starts Kaiming-normal, the bias
    /// uniform.
    ///
    /// # Errors
    /// An input that is not a 1x1 plane, or no outputs.
    pub fn linear(&mut self, name: &str, x: NodeId, out: usize) -> Result<NodeId> {
        let (c, h, w) = self.nodes[x.0].chw;
        if (h, w) != (1, 1) || out == 0 {
            return Err(Error::Usage(format!(
                "layer {name}: a linear layer to {out} outputs wants an input of Cx1x1, got {c}x{h}x{w}; pool first"
            )));
        }
        let geom = ConvGeom { c, h: 1, w: 1, k: out as u32, r: 1, s: 1, stride: 1, pad: 0 };
        let fan_in = c as usize;
        let weight = self.param(format!("{name}.weight"), vec![out, fan_in], Init::KaimingNormal { fan: fan_in }, true);
        let bias = self.param(format!("{name}.bias"), vec![out], Init::Uniform { fan_in }, false);
        Ok(self.push_conv(name, x, geom, weight, Some(bias)))
    }

    /// Batch norm over N,H,W: eps 1e-5, running momentum 0.1.
    pub fn norm(&mut self, name: &str, x: NodeId) -> NodeId {
        let chw = self.nodes[x.0].chw;
        let gamma = self.param(format!("{name}.weight"), vec![chw.0 as usize], Init::Constant(1.0), false);
        let beta = self.param(format!("{name}.bias"), vec![chw.0 as usize], Init::Constant(0.0), false);
        self.norms.push(Norm { name: name.into(), c: chw.0, gamma, beta });
        self.push(Op::Norm(self.norms.len() - 1), vec![x], chw)
    }

    /// max(x, 0).
    pub fn relu(&mut self, x: NodeId) -> NodeId {
        self.push(Op::Relu, vec![x], self.nodes[x.0].chw)
    }

    /// a + b.
    ///
    /// # Errors
    /// Operands of different shapes.
    pub fn add(&mut self, a: NodeId, b: NodeId) -> Result<NodeId> {
        let (left, right) = (self.nodes[a.0].chw, self.nodes[b.0].chw);
        if left != right {
            return Err(Error::Usage(format!("an addition wants operands of one shape, got {left:?} and {right:?}")));
        }
        Ok(self.push(Op::Add, vec![a, b], left))
    }

    /// Mean over rows and columns.
    pub fn pool(&mut self, x: NodeId) -> NodeId {
        self.push(Op::Pool, vec![x], (self.nodes[x.0].chw.0, 1, 1))
    }

    /// Maximum over `size` x `size` windows, `stride` apart, of the image with `pad` cells around it that never win: rows
    /// P = floor((H + 2 pad - size) / stride) + 1, columns likewise.
    ///
    /// # Errors
    /// A window larger than the padded input, padding of a whole window, a zero size.
    pub fn max_pool(&mut self, x: NodeId, size: usize, stride: usize, pad: usize) -> Result<NodeId> {
        const LARGEST: usize = 1 << 16; // far from overflow below, and beyond any plane
        let (c, h, w) = self.nodes[x.0].chw;
        let sizes = [size, stride].iter().all(|v| (1..=LARGEST).contains(v)) && pad < size;
        if !sizes || (h.min(w) as usize) + 2 * pad < size {
            return Err(Error::Usage(format!(
                "a {size}x{size} maximum pooling with stride {stride} and padding {pad} does not fit an input of \
                 {c}x{h}x{w}; use a larger image, or sizes of 1 to {LARGEST} with less padding than the window"
            )));
        }
        let [size, stride, pad] = [size, stride, pad].map(|v| v as u32);
        self.pools.push(PoolSpec { plane: Plane { c, h, w }, size, stride, pad });
        let [p, q] = [h, w].map(|side| (side + 2 * pad - size) / stride + 1);
        Ok(self.push(Op::MaxPool(self.pools.len() - 1), vec![x], (c, p, q)))
    }

    /// Replaces how a parameter starts.
    ///
    /// # Errors
    /// No parameter of that name.
    pub fn set_init(&mut self, param: &str, init: Init) -> Result<()> {
        let found = self.params.iter_mut().find(|p| p.name == param);
        let param = found.ok_or_else(|| Error::Usage(format!("initial values of {param}: no such parameter")))?;
        param.init = init;
        Ok(())
    }

    /// Says which of the parameters that there are so far have weight decay; without a call all have.
    ///
    /// [`Exempt::Released`] goes by names, as the released code does: exempt is a name that contains "bn", unless one of its
    /// parts between dots is "shortcut". That code's name for the norm of a shortcut has no "bn".
    pub fn set_weight_decay(&mut self, exempt: Exempt) {
        let vectors: Vec<usize> = (self.convs.iter().filter_map(|c| c.bias))
            .chain(self.norms.iter().flat_map(|n| [n.gamma, n.beta]))
            .collect();
        for (i, p) in self.params.iter_mut().enumerate() {
            p.decay = match exempt {
                Exempt::None => true,
                Exempt::ByKind => !vectors.contains(&i),
                Exempt::Released => !p.name.contains("bn") || p.name.split('.').any(|part| part == "shortcut"),
            };
        }
    }

    fn param(&mut self, name: String, shape: Vec<usize>, init: Init, maskable: bool) -> usize {
        self.params.push(Param { name, shape, init, maskable, decay: true });
        self.params.len() - 1
    }

    fn push_conv(&mut self, name: &str, x: NodeId, geom: ConvGeom, weight: usize, bias: Option<usize>) -> NodeId {
        self.convs.push(Conv { name: name.into(), geom, weight, bias });
        self.push(Op::Conv(self.convs.len() - 1), vec![x], (geom.k, geom.p(), geom.q()))
    }

    fn push(&mut self, op: Op, inputs: Vec<NodeId>, chw: (u32, u32, u32)) -> NodeId {
        self.nodes.push(Node { op, inputs, chw });
        NodeId(self.nodes.len() - 1)
    }
}
