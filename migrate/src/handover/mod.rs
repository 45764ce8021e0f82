//! The one place where a guest changes hands.
//!
//! Two pure machines, [`source::Source`] and [`target::Target`], run in the two guest processes;
//! [`daemon::Keeper`] acts for a process that is proved dead; [`resolve`] is what an operator may
//! do for a host that is gone. Each takes one [`effect::Input`] and returns [`effect::Effect`]s:
//! values that can be logged, simulated and enumerated. The right to run a guest is no value: it
//! is a type, and [`proof`] has its only constructors.
//!
//! What keeps a guest from running twice, in the order of its weight:
//! * three records that are durable before their consequence: `Offered` before the last piece,
//!   `Receiving` before data is accepted, `Withdrawn` or `Tombstone` before it is said or acted on;
//! * two marks that are set before theirs: `ceded` before the commit, `ran` before the guest runs;
//! * the journal's lock: nobody acts for a process that lives;
//! * locks and terms beside shared disks: a fence against strangers and wrong operators.
//!
//! `tests/handover_explore` explores all of this exhaustively within stated bounds.

pub mod claim;
pub mod daemon;
pub mod effect;
pub mod encode;
pub mod gate;
pub mod journal;
pub mod message;
pub mod proof;
pub mod resolve;
pub mod source;
pub mod target;
pub mod term;
