//! The binary TCP protocol, as `workers/WIRE_PROTOCOL.md` specifies it. That page is the contract
//! with clients; this module is the server's half of it, and nothing here knows sockets.
//!
//! - [`frame`]: the 16-byte header, the checksum, where one frame ends.
//! - [`payload`]: what is inside each type of frame, and the fragments of long messages.
//! - [`flow`]: sequence numbers, acknowledgements and windows of one connection.
//!
//! For every frame that comes in: `decode(bytes, &flow.agreed())`, [`Flow::receive`], the payload's
//! `parse`; for CONNECT also [`Flow::agree`]. Out go [`Flow::frame`] for every type but DATA, and
//! [`Flow::piece`] with [`Flow::data`] for publications, whose encoded message is shared by all
//! connections of a worker.

pub mod flow;
pub mod frame;
pub mod payload;
#[cfg(test)]
mod tests;

pub use flow::{DataFrame, Flow, FlowState};
pub use frame::{Agreed, Frame, Header, Kind, decode};
pub use payload::Reassembly;

/// Window that the server tells its clients: bytes of PUBLISH frames that may be on their way to
/// it unacknowledged. It acknowledges in the turn in which it reads, so this bounds bursts, not
/// throughput; twice the largest frame keeps a fragmented publish moving.
pub const SERVER_WINDOW: Window = Window {
    size: 32_768,
    scale: 2,
};

/// How many bytes one side is ready to take: `size << scale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The header's field.
    pub size: u16,
    /// Told once, in CONNECT or CONNECTED; at most [`Window::SCALE_MAX`].
    pub scale: u8,
}

impl Window {
    /// As in RFC 7323 §2.2: 65535 << 14 is just under 1 GiB, so that byte counts fit a `u32`.
    pub const SCALE_MAX: u8 = 14;

    pub fn bytes(self) -> u32 {
        u32::from(self.size) << self.scale
    }
}
