//! Nodes, shape inference, fusion, memory plan, and the executor.
