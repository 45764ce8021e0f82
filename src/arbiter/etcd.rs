//! The arbiter in an etcd cluster. One key for each guest, `/migrate/guests/UUID`, whose value says
//! term and host; one key, `/migrate/site`, that says which arbiter this is. Reads are
//! linearizable, changes are transactions that compare the whole value.
//!
//! It keeps no claim in its own memory, and never answers from one.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, GetResponse, Identity,
    KvClient, TlsOptions, Txn, TxnOp, TxnOpResponse,
};
use migrate_engine::handover::term::{HostId, Stamp, Term};
use migrate_engine::port::{Answer, Arbiter, Stands, Unanswered};
use migrate_engine::wire::GuestId;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::Shared;
use crate::api::{ErrorCode, Failure};
use crate::config::ArbiterConfig;

/// A request is given up after this.
const PATIENCE: Duration = Duration::from_millis(1500);
/// A connection on which nothing comes for so long is looked at, and given up after as long again.
const ALIVE: Duration = Duration::from_secs(2);
/// First field of a value: how the rest is written.
const FORMAT: &str = "1";
/// Most characters of a cause that is told.
const CAUSE_MAX: usize = 300;

/// The cluster.
pub(super) struct Etcd {
    shown: String,
    endpoints: Vec<String>,
    options: ConnectOptions,
    client: OnceCell<Client>,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl Etcd {
    /// Reads the files of its TLS; connects when it is asked first.
    pub(super) fn new(config: &ArbiterConfig) -> Result<Self, Failure> {
        let mut options = ConnectOptions::new()
            .with_timeout(PATIENCE)
            .with_connect_timeout(PATIENCE)
            .with_keep_alive(ALIVE, ALIVE)
            .with_require_leader(true);
        if let Some(ca) = &config.ca {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?));
            if let Some((cert, key)) = &config.identity {
                tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            options = options.with_tls(tls);
        }
        let (shown, endpoints) = (config.to_string(), config.endpoints.clone());
        Ok(Self { shown, endpoints, options, client: OnceCell::new() })
    }

    async fn kv(&self) -> Result<KvClient, Unanswered> {
        let connect = || Client::connect(&self.endpoints, Some(self.options.clone()));
        let client = self.client.get_or_try_init(connect).await;
        Ok(client.map_err(|e| self.unanswered(&e))?.kv_client())
    }

    fn unanswered(&self, error: &Error) -> Unanswered {
        Unanswered(format!("{}: {}", self.shown, cause(error)))
    }

    fn wrong(&self, key: &str, value: &[u8]) -> Unanswered {
        let value: String = String::from_utf8_lossy(value).chars().take(80).collect();
        let value = value.escape_debug().to_string();
        Unanswered(format!("{}: the value of {key} cannot be read: '{value}'", self.shown))
    }

    fn stands(&self, key: &str, found: &GetResponse) -> Stands {
        let Some(found) = found.kvs().first() else { return Ok(None) };
        decode(found.value()).map(Some).ok_or_else(|| self.wrong(key, found.value()))
    }

    /// Does `then` if `compare` holds. `None`: it did not, and this stands at `key`.
    async fn change(
        &self,
        key: &str,
        compare: Compare,
        value: String,
    ) -> Result<Option<GetResponse>, Unanswered> {
        let txn = Txn::new()
            .when([compare])
            .and_then([TxnOp::put(key, value, None)])
            .or_else([TxnOp::get(key, None)]);
        let done = self.kv().await?.txn(txn).await.map_err(|e| self.unanswered(&e))?;
        if done.succeeded() {
            return Ok(None);
        }
        match done.op_responses().into_iter().next() {
            Some(TxnOpResponse::Get(found)) => Ok(Some(found)),
            _ => Err(Unanswered(format!("{}: its answer is not understood", self.shown))),
        }
    }

    async fn read_key(&self, key: String) -> Stands {
        let found = self.kv().await?.get(key.as_str(), None).await;
        self.stands(&key, &found.map_err(|e| self.unanswered(&e))?)
    }

    async fn swap_key(&self, key: String, expect: Option<Stamp>, want: Stamp) -> Stands {
        let compare = match expect {
            None => Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
            Some(stamp) => Compare::value(key.as_str(), CompareOp::Equal, encode(stamp)),
        };
        match self.change(&key, compare, encode(want)).await? {
            None => Ok(Some(want)),
            Some(found) => self.stands(&key, &found),
        }
    }

    async fn site(&self) -> Result<Uuid, Unanswered> {
        let key = "/migrate/site";
        let fresh = Uuid::new_v4();
        let absent = Compare::create_revision(key, CompareOp::Equal, 0);
        let Some(found) = self.change(key, absent, fresh.to_string()).await? else {
            return Ok(fresh);
        };
        let value = found.kvs().first().map(|kv| kv.value().to_vec()).unwrap_or_default();
        let text = std::str::from_utf8(&value).ok();
        text.and_then(|t| t.parse().ok()).ok_or_else(|| self.wrong(key, &value))
    }
}

impl Arbiter for Etcd {
    fn read(&self, guest: GuestId) -> Answer<'_> {
        Box::pin(self.read_key(key(guest)))
    }

    fn swap(&self, guest: GuestId, expect: Option<Stamp>, want: Stamp) -> Answer<'_> {
        Box::pin(self.swap_key(key(guest), expect, want))
    }
}

impl Shared for Etcd {
    fn identity(&self) -> Pin<Box<dyn Future<Output = Result<Uuid, Unanswered>> + Send + '_>> {
        Box::pin(self.site())
    }
}

fn read(path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|e| {
        let message = format!("cannot read {} for the arbiter: {e}", path.display());
        Failure::new(ErrorCode::File, message, "check the arbiter_... lines of host.toml")
    })
}

fn key(guest: GuestId) -> String {
    format!("/migrate/guests/{guest}")
}

fn encode(stamp: Stamp) -> String {
    format!("{FORMAT} {} {}", stamp.term, Uuid::from_u128(stamp.host.0))
}

/// Exactly what [`encode`] writes: a value is compared as a whole when it is changed.
fn decode(value: &[u8]) -> Option<Stamp> {
    let text = std::str::from_utf8(value).ok()?;
    let mut fields = text.split(' ');
    let (FORMAT, term, host) = (fields.next()?, fields.next()?, fields.next()?) else {
        return None;
    };
    let term = Term::new(term.parse().ok()?);
    let stamp = Stamp { term, host: HostId(host.parse::<Uuid>().ok()?.as_u128()) };
    let sound = Term::NONE < term && term < Term::LIMIT && encode(stamp) == text;
    sound.then_some(stamp)
}

/// An error with everything below it; gRPC's own form says too much.
fn cause(error: &Error) -> String {
    let mut text = match error {
        Error::GRpcStatus(status) => format!("{:?}: {}", status.code(), status.message()),
        other => other.to_string(),
    };
    let mut below = std::error::Error::source(error);
    while let Some(source) = below {
        let more = source.to_string();
        if !text.contains(&more) && !matches!(error, Error::GRpcStatus(_)) {
            text = format!("{text}: {more}");
        }
        below = source.source();
    }
    text.chars().filter(|c| !c.is_control()).take(CAUSE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_as_it_was_written_and_not_otherwise() {
        let stamp = Stamp { term: Term::new(7), host: HostId(0x0123_4567_89ab) };
        let text = encode(stamp);
        assert_eq!(text, "1 7 00000000-0000-0000-0000-0123456789ab");
        assert_eq!(decode(text.as_bytes()), Some(stamp));
        for bad in [
            String::new(),
            format!("{text}\n"),
            format!("{text} x"),
            text.replace("1 7", "2 7"),
            text.replace("1 7", "1 07"),
            text.replace("1 7", "1 0"),
            text.replace("1 7", "1 4611686018427387904"),
            text.to_uppercase().replace("89AB", "89aB"),
            "1 7 x".into(),
        ] {
            assert_eq!(decode(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(decode(&[0xff]), None);
    }
}
