//! The forms of answers that several requests share.

use fuser::{Errno, Generation, ReplyEmpty, ReplyXattr};

/// What a request came to.
pub(crate) type Answer<R> = Result<R, Errno>;

/// What a node id means does not change while the kernel knows it: the union does not give a number to two objects at once.
pub(crate) const GENERATION: Generation = Generation(0);

pub(crate) fn answer_empty(reply: ReplyEmpty, answer: Answer<()>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// The protocol of getxattr(2) and listxattr(2): size 0 asks how long the answer is; an answer that does not fit is ERANGE.
pub(crate) fn answer_xattr(reply: ReplyXattr, size: u32, answer: Answer<Vec<u8>>) {
    match answer {
        Ok(data) if size == 0 => match u32::try_from(data.len()) {
            Ok(length) => reply.size(length),
            Err(_) => reply.error(Errno::E2BIG),
        },
        Ok(data) if data.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(data) => reply.data(&data),
        Err(errno) => reply.error(errno),
    }
}

/// The bytes of an answer, as the protocol counts them; the kernel never asks for more than it can count.
pub(crate) fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
