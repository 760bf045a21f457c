//! Mounts of those who may not mount: fusermount3(1), which is set-user-id root, makes them and passes the `/dev/fuse` descriptor over a socket.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType};

use crate::{Errno, process};

/// The program.
pub const FUSERMOUNT: &str = "fusermount3";

/// Why fusermount3 did not do it.
#[derive(Debug, thiserror::Error)]
pub enum FusermountError {
    /// It could not be run.
    #[error("{FUSERMOUNT} cannot be run: {0}")]
    Run(std::io::Error),
    /// It refused; in its own words.
    #[error("{0}")]
    Refused(String),
    /// A system call failed.
    #[error("{FUSERMOUNT}: {0}")]
    Os(Errno),
}

impl From<Errno> for FusermountError {
    fn from(errno: Errno) -> Self {
        Self::Os(errno)
    }
}

/// Mounts a FUSE filesystem at a directory, and gives the descriptor to serve it from. The kernel's first request waits in it.
///
/// # Errors
///
/// See [`FusermountError`].
pub fn fusermount(options: &str, mountpoint: &Path) -> core::result::Result<OwnedFd, FusermountError> {
    let (own, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let mut command = Command::new(FUSERMOUNT);
    command.args(["-o", options, "--"]).arg(mountpoint).env("_FUSE_COMMFD", process::number(theirs.as_fd()).to_string());
    process::pass(&mut command, vec![theirs]);
    run(command)?;
    receive(&own)?.ok_or_else(|| FusermountError::Refused(format!("{FUSERMOUNT} passed no descriptor")))
}

/// Takes such a mount away.
///
/// # Errors
///
/// See [`FusermountError`].
pub fn fuserumount(mountpoint: &Path, lazy: bool) -> core::result::Result<(), FusermountError> {
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-u").env("LC_ALL", "C").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
    run(command)
}

fn run(mut command: Command) -> core::result::Result<(), FusermountError> {
    let done = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    // The command's end of the socket goes with it: who waits for a descriptor must not wait for this process.
    drop(command);
    let done = done.map_err(FusermountError::Run)?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Err(FusermountError::Refused(if said.is_empty() { format!("{FUSERMOUNT} failed ({})", done.status) } else { said }))
}

/// One byte, and the descriptor that comes with it.
fn receive(socket: &OwnedFd) -> crate::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8];
    rustix::io::retry_on_intr(|| rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC))?;
    let passed = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(passed)
}
