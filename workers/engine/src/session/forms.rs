//! A message in every form that the subscribers of a channel want it in.

use std::rc::Rc;

use tidegate_ring::entry::EventView;
use tidegate_ring::publication::PublicationView;

use super::tcp;
use crate::hub::{ChannelId, Wants};
use crate::outbox::Frame;
use crate::protocol::centrifuge::{Data, Publication};
use crate::protocol::close::Close;
use crate::protocol::delta;
use crate::protocol::format::{self, FORMATS, Format};

/// By the number of a [`Format`]; `None` where nobody wants it.
pub(super) type Forms = [Option<Rc<Frame>>; FORMATS];

/// Longest frame that is made of several: of longer ones the kernel's work for each byte is most of
/// what a send costs, and it is as much either way.
const JOINED_BYTES_MAX: usize = 16 * 1024;

/// Publications of one channel, in the form for one format, in few frames for who gets them all.
pub(super) fn joined<'a>(format: Format, forms: impl Iterator<Item = &'a Forms>) -> Vec<Rc<Frame>> {
    let frames = forms.filter_map(|each| each[format as usize].as_ref());
    if format == Format::Tcp {
        // These are put into the frames of each connection when it sends them.
        return frames.cloned().collect();
    }
    let (mut all, mut together, mut bytes) = (Vec::new(), Vec::new(), 0);
    for frame in frames {
        bytes += frame.bytes.len();
        if bytes > JOINED_BYTES_MAX && !together.is_empty() {
            all.push(Frame::joined(&together));
            together.clear();
            bytes = frame.bytes.len();
        }
        together.push(frame);
    }
    if !together.is_empty() {
        all.push(Frame::joined(&together));
    }
    all
}

/// A publication for one format; an error if its dialect cannot say it.
pub(super) fn frame(
    format: Format,
    id: ChannelId,
    view: &PublicationView<'_>,
) -> Result<Rc<Frame>, Close> {
    match format {
        Format::Tcp => Ok(tcp::publication_frame(id, view)),
        _ => Ok(Frame::new(format.publication(view.channel, &view.into())?)),
    }
}

/// As [`frame`], for who takes differences, but lacks what this one would be a difference to.
pub(super) fn whole_frame(format: Format, view: &PublicationView<'_>) -> Result<Rc<Frame>, Close> {
    let publication = Publication {
        data: Data::Whole(view.data),
        ..view.into()
    };
    Ok(Frame::new(format.publication(view.channel, &publication)?))
}

/// A publication as it was published; and who cannot be told of it, and why.
pub(super) fn publication(
    wants: Wants,
    id: ChannelId,
    view: &PublicationView<'_>,
) -> (Forms, Option<(Wants, Close)>) {
    let mut unfit: Option<(Wants, Close)> = None;
    let forms = each(wants, |format| match frame(format, id, view) {
        Ok(frame) => Some(frame),
        Err(close) => {
            unfit
                .get_or_insert((Wants::default(), close))
                .0
                .add(format.into());
            None
        }
    });
    (forms, unfit)
}

/// A publication for those who take differences: whole, and as the difference to `base`, the data
/// of the one before, where that is shorter.
pub(super) fn deltas(
    wants: Wants,
    view: &PublicationView<'_>,
    base: Option<&[u8]>,
) -> (Forms, Option<Forms>) {
    let difference = base
        .map(|base| delta::create(base, view.data))
        .filter(|difference| difference.len() < view.data.len());
    let whole = all(wants, view, Data::Whole(view.data));
    let difference = difference.as_ref();
    let difference = difference.map(|difference| all(wants, view, Data::Delta(difference)));
    (whole, difference)
}

/// A publication with its data in this form. [`publication`] tells who cannot be told.
fn all(wants: Wants, view: &PublicationView<'_>, data: Data<'_>) -> Forms {
    let publication = Publication {
        data,
        ..view.into()
    };
    each(wants.without(Format::Tcp.into()), |format| {
        let bytes = format.publication(view.channel, &publication).ok()?;
        Some(Frame::new(bytes))
    })
}

/// The news that somebody came or went. Clients of the binary protocol are not told.
pub(super) fn join_leave(wants: Wants, view: &EventView<'_>) -> Forms {
    each(wants.without(Format::Tcp.into()), |format| {
        let bytes = format.join_leave(view.channel, view.joined, view.info);
        Some(Frame::new(bytes))
    })
}

fn each(wants: Wants, mut make: impl FnMut(Format) -> Option<Rc<Frame>>) -> Forms {
    format::ALL.map(|format| wants.has(format.into()).then(|| make(format)).flatten())
}
