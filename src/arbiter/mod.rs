//! The arbiter: a third party that every host of a site asks who has the right to a guest.
//!
//! | module | what it does |
//! |---|---|
//! | `etcd` | the arbiter in an etcd cluster; only with the feature of that name |
//! | [`agent`] | a small process that asks it for one guest, and how it is started |
//! | [`remote`] | an arbiter behind an agent, as a guest's process sees it |
//! | [`gate`] | the right to start a guest, taken before it runs |
//! | [`words`] | what is said between an agent and those who ask it |
//!
//! A guest's process reaches no network but its own links, and holds no key of the site: it asks
//! an agent, which knows no other guest. The daemon asks directly. Nothing here decides who may
//! have a guest: [`claim`](migrate_engine::handover::claim) and the machines of the hand-over do.

pub mod agent;
#[cfg(feature = "etcd")]
mod etcd;
pub mod gate;
pub mod remote;
pub mod words;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use migrate_engine::port::{Arbiter, Unanswered};
use uuid::Uuid;

use crate::api::{ErrorCode, Failure};
use crate::config::ArbiterConfig;

/// An arbiter that hosts share. Two hosts have the same one if its identity is the same.
pub trait Shared: Arbiter {
    /// Which one it is: made by whoever asks first, and kept there for ever.
    fn identity(&self) -> Pin<Box<dyn Future<Output = Result<Uuid, Unanswered>> + Send + '_>>;
}

/// The arbiter that `config` names. Nothing is asked yet, and no connection is made.
///
/// # Errors
/// `file` if a file of its TLS cannot be used; `usage` if this program knows no such arbiter.
pub fn open(config: &ArbiterConfig) -> Result<Arc<dyn Shared>, Failure> {
    #[cfg(feature = "etcd")]
    {
        Ok(Arc::new(etcd::Etcd::new(config)?))
    }
    #[cfg(not(feature = "etcd"))]
    {
        let what = format!("host.toml names the arbiter '{config}', which this program cannot ask");
        Err(Failure::new(
            ErrorCode::Usage,
            what,
            "use a program that was built with the feature etcd",
        ))
    }
}

/// An answer that must come within `limit`.
///
/// # Errors
/// It did not, or none came.
pub async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, Unanswered>>,
) -> Result<T, Unanswered> {
    let late = |_| Err(Unanswered(format!("nothing came within {} s", limit.as_secs())));
    tokio::time::timeout(limit, answer).await.unwrap_or_else(late)
}

/// An arbiter that does not answer, as users hear it.
pub fn silent(why: &Unanswered) -> Failure {
    let remedy = "see whether it runs and can be reached: migrate help arbiter";
    Failure::new(ErrorCode::Arbiter, why.to_string(), remedy).retryable()
}
