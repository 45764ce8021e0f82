//! Links and sessions over loopback, friendly and hostile.

mod data;
#[expect(clippy::similar_names, reason = "dialler and dialled, host1 and hosts: each is its thing")]
mod hosts;
mod probe;
mod relay;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::*;
use crate::transport::{
    identity::{Authority, Ephemeral, HostIdentity, HostKey, HostName, Moment, Site, site::Hosts},
    link::{SourceLink, TargetLink},
};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const DAY: Duration = Duration::from_hours(24);
/// Longer than any test takes; only a hanging test notices.
const PATIENCE: Duration = Duration::from_mins(1);

fn run<F: Future>(work: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(PATIENCE, work).await.expect("the test hangs") })
}

fn now() -> Moment {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Moment(since.as_secs())
}

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

fn identity(authority: &Authority, host: &str, signed: Moment) -> Arc<HostIdentity> {
    let key = HostKey::generate().unwrap();
    let request = key.request_pem(&name(host)).unwrap();
    let chain = authority.sign(&request, &name(host), signed).unwrap();
    Arc::new(HostIdentity::from_pem(&key.pem(), &chain).unwrap())
}

fn site(authority: &Authority, hosts: Hosts) -> Arc<Site> {
    Arc::new(Site::from_pem(authority.certificate_pem(), hosts).unwrap())
}

/// A data link over loopback.
async fn link(lanes: usize, settings: &Settings) -> (SourceLink, TargetLink) {
    let listener = DataListener::bind(LOCAL, 0..0, lanes).unwrap();
    let addresses = listener.addresses().unwrap();
    link_to(listener, &addresses, settings).await
}

async fn link_to(
    listener: DataListener,
    addresses: &[SocketAddr],
    settings: &Settings,
) -> (SourceLink, TargetLink) {
    let (ours, theirs) = (Ephemeral::generate().unwrap(), Ephemeral::generate().unwrap());
    let (dialled, accepted) = tokio::join!(
        dial(addresses, None, &ours, theirs.fingerprint(), settings),
        listener.accept(&theirs, ours.fingerprint(), settings, PATIENCE),
    );
    (dialled.unwrap().0, accepted.unwrap())
}
