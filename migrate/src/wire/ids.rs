//! Names of things that outlive a message.

/// Defines an id of 16 bytes, printed like a UUID.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(pub [u8; 16]);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                for (at, byte) in self.0.iter().enumerate() {
                    if matches!(at, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

id! {
    /// A guest, for its whole life.
    GuestId
}
id! {
    /// A move that somebody asked for: the same in commands, daemons, journals, logs and reports.
    MoveId
}
id! {
    /// One attempt of a move. Streams, certificates and receivers belong to an attempt.
    AttemptId
}
id! {
    /// One try to hand the guest over. A withdrawn switch is followed by one with another id.
    SwitchId
}

id! {
    /// A host, for life.
    HostId
}

/// Grows with every durable offer of a guest. At most one owner exists in a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term(pub u64);

impl std::fmt::Display for Term {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
