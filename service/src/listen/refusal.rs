//! What a failed `accept` means.

use std::io;

use rustix::io::Errno;

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The one connection died in the queue, or the network did; the listener is well.
    Connection,
    /// The system has no means for a connection now. It may have later.
    Exhausted,
    /// The listening socket is none.
    Fatal,
}

impl Refusal {
    pub(super) fn of(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            // What accept(2) of Linux passes on from the connection.
            Some(
                Errno::CONNABORTED
                | Errno::CONNRESET
                | Errno::CONNREFUSED
                | Errno::TIMEDOUT
                | Errno::INTR
                | Errno::PERM
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH,
            ) => Self::Connection,
            Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP) => Self::Fatal,
            // EMFILE, ENFILE, ENOBUFS, ENOMEM, and what nobody has foreseen.
            _ => Self::Exhausted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_about_the_connection_the_system_or_the_socket() {
        for (errno, wanted) in [
            (Errno::CONNABORTED, Refusal::Connection),
            (Errno::PROTO, Refusal::Connection),
            (Errno::MFILE, Refusal::Exhausted),
            (Errno::NFILE, Refusal::Exhausted),
            (Errno::NOMEM, Refusal::Exhausted),
            (Errno::NOBUFS, Refusal::Exhausted),
            (Errno::INVAL, Refusal::Fatal),
            (Errno::BADF, Refusal::Fatal),
        ] {
            assert_eq!(Refusal::of(&errno.into()), wanted, "{errno:?}");
        }
    }
}
