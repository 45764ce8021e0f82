//! Other daemons: what is said ([`proto`]) and the sessions in which it is said ([`link`],
//! [`pool`]).

pub mod link;
pub mod pool;
pub mod proto;
