//! The worker's data plane: accept, parse, subscribe, fan out.

pub mod protocol;
