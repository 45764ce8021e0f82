use super::*;
use crate::transport::identity::{
    Authority, Ephemeral, HostIdentity, HostKey,
    renewal::{HOST_LIFETIME, Renewal},
    site::Hosts,
};
use std::time::Duration;

const NOW: Moment = Moment(1_800_000_000);
const DAY: Duration = Duration::from_hours(24);

fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms
}

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

fn host(authority: &Authority, host: &str, signed: Moment) -> HostIdentity {
    let key = HostKey::generate().unwrap();
    let request = key.request_pem(&name(host)).unwrap();
    let chain = authority.sign(&request, &name(host), signed).unwrap();
    HostIdentity::from_pem(&key.pem(), &chain).unwrap()
}

fn policy(authority: &Authority, hosts: Hosts, expected: Option<&str>) -> Policy {
    let site = Site::from_pem(authority.certificate_pem(), hosts).unwrap();
    Policy::Site { site: Arc::new(site), expected: expected.map(name) }
}

fn decide(policy: &Policy, host: &HostIdentity, now: Moment) -> Result<Admitted, Refusal> {
    policy.decide(&algorithms(), &host.chain(), now)
}

#[test]
fn a_host_of_the_site_is_let_in_with_its_rights() {
    let authority = Authority::generate("test", NOW).unwrap();
    let host2 = host(&authority, "host2", NOW);
    let mut hosts = Hosts::default();
    let rights = Rights::NONE.with(super::super::Right::Control);
    hosts.rights.insert(name("host2"), rights);
    for expected in [None, Some("host2")] {
        let policy = policy(&authority, hosts.clone(), expected);
        let Ok(Admitted::Host(peer)) = decide(&policy, &host2, NOW) else { panic!() };
        assert_eq!((peer.name, peer.rights), (name("host2"), rights));
        assert_eq!(peer.not_after, NOW.plus(HOST_LIFETIME));
    }
}

#[test]
fn each_reason_is_its_own() {
    let ours = Authority::generate("ours", NOW).unwrap();
    let theirs = Authority::generate("theirs", NOW).unwrap();
    let host2 = host(&ours, "host2", NOW);
    let any = policy(&ours, Hosts::default(), None);
    let code =
        |policy: &Policy, host: &HostIdentity, now| decide(policy, host, now).unwrap_err().code();
    let end = NOW.plus(HOST_LIFETIME);
    assert!(decide(&any, &host2, end).is_ok());
    assert_eq!(code(&any, &host2, end.plus(Duration::from_secs(1))), "expired");
    assert_eq!(code(&any, &host2, NOW.minus(DAY)), "not-yet-valid");
    assert_eq!(code(&any, &host(&theirs, "host2", NOW), NOW), "unknown-ca");
    // Also when it is expired on top: the date of a stranger's certificate means nothing.
    assert_eq!(code(&any, &host(&theirs, "host2", NOW), end.plus(DAY)), "unknown-ca");
    let wants_3 = policy(&ours, Hosts::default(), Some("host3"));
    assert_eq!(code(&wants_3, &host2, NOW), "wrong-name");
    assert_eq!(any.decide(&algorithms(), &[], NOW), Err(Refusal::NoCertificate));
    let garbage = [CertificateDer::from(vec![0x30, 3, 1, 2, 3])];
    let refused = any.decide(&algorithms(), &garbage, NOW).unwrap_err();
    assert_eq!(refused.code(), "unusable-certificate");
}

#[test]
fn the_same_ca_name_with_another_key_is_unknown() {
    let ours = Authority::generate("site", NOW).unwrap();
    let fake = Authority::generate("site", NOW).unwrap();
    let any = policy(&ours, Hosts::default(), None);
    let error = decide(&any, &host(&fake, "host2", NOW), NOW).unwrap_err();
    assert_eq!(error.code(), "unknown-ca");
    assert!(error.to_string().contains(&ours.fingerprint().short()));
}

#[test]
fn a_ca_or_a_throw_away_certificate_is_no_host() {
    let ours = Authority::generate("ours", NOW).unwrap();
    let any = policy(&ours, Hosts::default(), None);
    let own_ca = host(&ours, "a", NOW).chain().remove(1);
    let refused = any.decide(&algorithms(), &[own_ca], NOW).unwrap_err();
    assert_eq!(refused.code(), "unusable-certificate");
    let ephemeral = [Ephemeral::generate().unwrap().certificate()];
    assert_eq!(any.decide(&algorithms(), &ephemeral, NOW).unwrap_err().code(), "unknown-ca");
}

#[test]
fn a_host_cannot_sign_another() {
    let ours = Authority::generate("ours", NOW).unwrap();
    let key = HostKey::generate().unwrap();
    let request = key.request_pem(&name("mallory")).unwrap();
    let chain = ours.sign(&request, &name("mallory"), NOW).unwrap();
    assert!(Authority::from_pem(&chain, &key.pem()).is_err(), "ours will not even try");
    // So by hand: a leaf signed with the host's key, the host's certificate as its issuer.
    let keypair = rcgen::KeyPair::from_pem(&key.pem()).unwrap();
    let mallory = HostIdentity::from_pem(&key.pem(), &chain).unwrap().chain();
    let issuer = rcgen::Issuer::from_ca_cert_der(&mallory[0], keypair).unwrap();
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["host1.migrate".to_owned()]).unwrap();
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let leaf = params.signed_by(&leaf_key, &issuer).unwrap().der().clone();
    let shown = [&[leaf], &mallory[..]].concat();
    assert!(policy(&ours, Hosts::default(), None).decide(&algorithms(), &shown, NOW).is_err());
}

#[test]
fn a_removed_host_may_join_again() {
    let ours = Authority::generate("ours", NOW).unwrap();
    let removed = NOW.plus(DAY);
    let mut hosts = Hosts::default();
    hosts.removed.insert(name("host2"), removed);
    let any = policy(&ours, hosts, None);
    let later = removed.plus(DAY);
    let error = decide(&any, &host(&ours, "host2", NOW), later).unwrap_err();
    assert_eq!(error, Refusal::Removed { host: name("host2"), removed });
    assert!(decide(&any, &host(&ours, "host2", removed.plus(DAY)), later).is_ok());
    assert!(decide(&any, &host(&ours, "host3", NOW), later).is_ok());
}

#[test]
fn a_pin_accepts_one_certificate() {
    let (a, b) = (Ephemeral::generate().unwrap(), Ephemeral::generate().unwrap());
    let pin = Policy::Pinned(a.fingerprint());
    assert_eq!(pin.decide(&algorithms(), &[a.certificate()], NOW), Ok(Admitted::Pinned));
    let refused = pin.decide(&algorithms(), &[b.certificate()], NOW).unwrap_err();
    assert_eq!(refused.code(), "wrong-fingerprint");
    // The right one further back in the chain is no help.
    let chain = [b.certificate(), a.certificate()];
    assert!(pin.decide(&algorithms(), &chain, NOW).is_err());
}

#[test]
fn an_invitation_finds_its_ca() {
    let ours = Authority::generate("ours", NOW).unwrap();
    let theirs = Authority::generate("theirs", NOW).unwrap();
    let host1 = host(&ours, "host1", NOW);
    let policy = Policy::Invited(ours.fingerprint().into());
    let Ok(Admitted::Inviter { name: who, authority }) = decide(&policy, &host1, NOW) else {
        panic!()
    };
    assert_eq!(who, name("host1"));
    assert_eq!(authority, ours.fingerprint());
    assert_eq!(
        decide(&policy, &host(&theirs, "host1", NOW), NOW).unwrap_err().code(),
        "unknown-ca"
    );
    // Showing the right CA without being signed by it.
    let mut mixed = host(&theirs, "host1", NOW).chain();
    mixed[1] = host1.chain().remove(1);
    assert_eq!(policy.decide(&algorithms(), &mixed, NOW).unwrap_err().code(), "unknown-ca");
}

proptest::proptest! {
    #[test]
    fn hostile_certificates_are_refused_and_never_panic(
        flips in proptest::collection::vec((0usize..600, proptest::num::u8::ANY), 1..6)
    ) {
        static SITE: std::sync::LazyLock<(Policy, Vec<CertificateDer<'static>>)> =
            std::sync::LazyLock::new(|| {
                let ours = Authority::generate("ours", NOW).unwrap();
                (policy(&ours, Hosts::default(), None), host(&ours, "host2", NOW).chain())
            });
        let (policy, chain) = &*SITE;
        let mut leaf = chain[0].to_vec();
        let before = leaf.clone();
        for (at, value) in flips {
            let at = at % leaf.len();
            leaf[at] = value;
        }
        let changed = leaf != before;
        let shown = [CertificateDer::from(leaf), chain[1].clone()];
        proptest::prop_assert_eq!(policy.decide(&algorithms(), &shown, NOW).is_err(), changed);
    }
}

#[test]
fn a_ca_certificate_is_renewed_without_anybody_noticing() {
    let old = Authority::generate("ours", NOW).unwrap();
    let late = NOW.plus(crate::transport::identity::renewal::AUTHORITY_LIFETIME).minus(DAY);
    assert!(matches!(old.renewal(NOW), Renewal::At(_)));
    assert_eq!(old.renewal(late), Renewal::Now);
    let new = old.reissue(late).unwrap().unwrap();
    assert!(new.not_after() > old.not_after());
    assert_ne!(new.fingerprint(), old.fingerprint());
    // Either certificate vouches for hosts signed under the other; and a host signed under the
    // new one outlives the old one.
    let (before, after) = (host(&old, "host2", late.minus(DAY)), host(&new, "host2", late));
    assert!(before.not_after() <= old.not_after() && after.not_after() > old.not_after());
    for trusted in [&old, &new] {
        let policy = policy(trusted, Hosts::default(), None);
        assert!(decide(&policy, &before, late).is_ok());
        assert!(decide(&policy, &after, late).is_ok());
        assert!(decide(&policy, &after, old.not_after().plus(DAY)).is_ok());
    }
    // A CA that somebody gave is not ours to renew.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Example CA");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let given = params.self_signed(&key).unwrap().pem();
    let given = Authority::from_pem(&given, &key.serialize_pem()).unwrap();
    assert!(given.reissue(NOW).unwrap().is_none());
}
