use std::time::Duration;

use migrate_engine::transport::identity::Invitation;
use migrate_engine::transport::identity::invitation::Secret;
use uuid::Uuid;

use super::*;
use std::os::unix::fs::MetadataExt;

fn files(root: &tempfile::TempDir, name: &str) -> Files {
    Files::new(&Dirs::below(&root.path().join(name)))
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

#[test]
fn a_site_of_two_and_a_removal() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (files(&root, "a"), files(&root, "b"));
    assert!(a.identity().unwrap().is_none());
    a.init(&host("a"), None).unwrap();
    assert_eq!(a.init(&host("a"), None).unwrap_err().0.code, ErrorCode::FileExists);
    let mode = fs::metadata(root.path().join("a/config/host.pem")).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o600);

    let (invitation, _) = a.invite("127.0.0.1:1", Duration::from_mins(1)).unwrap();
    let key = HostKey::generate().unwrap();
    let request = key.request_pem(&host("b")).unwrap();
    let wrong = Secret::generate().unwrap();
    assert!(a.redeem(&wrong, &host("b"), &request).is_err());
    assert!(a.redeem(invitation.secret(), &host("c"), &request).is_err(), "another's name");
    let (chain, joined) = a.redeem(invitation.secret(), &host("b"), &request).unwrap();
    assert!(a.redeem(invitation.secret(), &host("b"), &request).is_err(), "only once");
    b.adopt(&key, &chain, &a.authorities().unwrap()).unwrap();
    assert_eq!(b.identity().unwrap().unwrap().host.name(), &host("b"));
    assert!(b.invite("127.0.0.1:1", Duration::from_mins(1)).is_err(), "not the CA's host");

    let known = Known {
        name: host("b"),
        id: Some(Uuid::nil()),
        address: "x:1".into(),
        since: now(),
        joined,
        ca: false,
    };
    a.remember(known.clone()).unwrap();
    a.remember(Known { id: None, address: "y:1".into(), ..known.clone() }).unwrap();
    let there = a.hosts().unwrap();
    assert_eq!(there, [Known { address: "y:1".into(), ..known.clone() }], "an id is not forgotten");
    let thief = Known { name: host("c"), address: "z:1".into(), ..known };
    assert_eq!(a.remember(thief).unwrap_err().0.code, ErrorCode::HostRefused);
    assert!(a.remove(&host("b")).unwrap().is_some());
    assert!(a.hosts().unwrap().is_empty());
    let removed = a.identity().unwrap().unwrap().site.removed(&host("b")).unwrap();
    assert!(removed >= joined);

    // It joins again in the same second: its new certificate is the later one.
    let (invitation, _) = a.invite("127.0.0.1:1", Duration::from_mins(1)).unwrap();
    let (chain, joined) = a.redeem(invitation.secret(), &host("b"), &request).unwrap();
    assert!(joined > removed);
    b.adopt(&key, &chain, &a.authorities().unwrap()).unwrap();
    let again = b.identity().unwrap().unwrap().host;
    assert!(a.identity().unwrap().unwrap().site.accept(&again, now()).is_ok());
}

/// Two hosts of a site; the second by a certificate signed at `signed`.
fn two(root: &tempfile::TempDir, signed: Moment) -> (Files, Files) {
    let (a, b) = (files(root, "a"), files(root, "b"));
    a.init(&host("a"), None).unwrap();
    let key = HostKey::generate().unwrap();
    let request = key.request_pem(&host("b")).unwrap();
    let chain = a.sign_at(&host("b"), &request, signed).unwrap();
    b.adopt(&key, &chain, &a.authorities().unwrap()).unwrap();
    (a, b)
}

const DAY: Duration = Duration::from_hours(24);

#[test]
fn a_renewal_that_is_killed_leaves_a_pair_that_fits() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = two(&root, now().minus(DAY * 70));
    // The CA's certificate changes with it, so that both files are written.
    let authority = a.authority().unwrap().unwrap();
    let later = authority.reissue(now().plus(DAY)).unwrap().unwrap();
    a.write_config("ca.crt", later.certificate_pem()).unwrap();
    let steps = [Step::Opened, Step::HalfWritten, Step::Written, Step::Synced, Step::Renamed];
    for file in ["ca.crt", "host.pem"] {
        for step in steps {
            let before = b.identity().unwrap().unwrap();
            let key = HostKey::generate().unwrap();
            let request = key.request_pem(&host("b")).unwrap();
            let chain = a.sign(&host("b"), &request).unwrap();
            let new = HostIdentity::from_pem(&key.pem(), &chain).unwrap().fingerprint();
            let authorities = a.authorities().unwrap();
            // The first file is the one of before again, or its steps are passed over.
            b.write_config("ca.crt", authority.certificate_pem()).unwrap();
            let stop = &mut |name: &str, at| name == file && at == step;
            assert!(b.adopt_until(&key, &chain, &authorities, stop).is_err());

            // What the next start finds.
            b.sweep();
            let after = b.identity().unwrap().expect("an identity");
            let is_new = file == "host.pem" && step == Step::Renamed;
            let expected = if is_new { new } else { before.host.fingerprint() };
            assert_eq!(after.host.fingerprint(), expected, "{file} {step:?}");
            let names: Vec<_> = fs::read_dir(&b.config).unwrap().collect();
            assert_eq!(names.len(), 2, "{file} {step:?}: {names:?}");
            // Both sides accept each other.
            let theirs = a.identity().unwrap().unwrap();
            assert!(theirs.site.accept(&after.host, now()).is_ok(), "{file} {step:?}");
            assert!(after.site.accept(&theirs.host, now()).is_ok(), "{file} {step:?}");
        }
    }
}

#[test]
fn a_renewed_certificate_comes_with_the_ca_s_and_from_nobody_else() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = two(&root, now().minus(DAY * 70));
    let old = b.identity().unwrap().unwrap();
    assert!(matches!(old.host.renewal(now()), Renewal::Now));
    let key = HostKey::generate().unwrap();
    let request = key.request_pem(&host("b")).unwrap();
    // Somebody who is asked makes a certificate under a CA of its own.
    let evil = Authority::generate("evil", now()).unwrap();
    let chain = evil.sign(&request, &host("b"), now()).unwrap();
    let refused = b.renewed(&key, &chain).unwrap_err();
    assert!(refused.to_string().contains("not signed by the CA"), "{refused}");
    // Or gives one of another host.
    let other = key.request_pem(&host("c")).unwrap();
    let chain = a.sign(&host("c"), &other).unwrap();
    assert!(b.renewed(&key, &chain).is_err());
    assert_eq!(b.identity().unwrap().unwrap().host.fingerprint(), old.host.fingerprint());

    let newer = a.authority().unwrap().unwrap().reissue(now().plus(DAY)).unwrap().unwrap();
    a.write_config("ca.crt", newer.certificate_pem()).unwrap();
    let chain = a.sign(&host("b"), &request).unwrap();
    // Certificates of strangers that come along are not taken over.
    let smuggled = format!("{chain}{}", evil.certificate_pem());
    b.renewed(&key, &smuggled).unwrap();
    assert_ne!(b.authorities().unwrap(), smuggled);
    assert!(!b.authorities().unwrap().contains(evil.certificate_pem()));
    let key = HostKey::generate().unwrap();
    let request = key.request_pem(&host("b")).unwrap();
    let chain = a.sign_at(&host("b"), &request, now().plus(Duration::from_mins(1))).unwrap();
    b.renewed(&key, &chain).unwrap();
    assert_eq!(b.authorities().unwrap(), newer.certificate_pem());
    assert!(b.identity().unwrap().unwrap().host.not_after() > old.host.not_after());
}

#[test]
fn the_ca_renews_itself() {
    let root = tempfile::tempdir().unwrap();
    let a = files(&root, "a");
    let long_ago = now().minus(DAY * 365 * 8);
    let given = Authority::generate("a", long_ago).unwrap();
    let texts = (given.certificate_pem().to_owned(), given.key_pem().to_owned());
    a.init(&host("a"), Some(texts)).unwrap();
    let before = a.identity().unwrap().unwrap();
    assert!(a.renew_authority().unwrap());
    assert!(!a.renew_authority().unwrap(), "once");
    let after = a.identity().unwrap().unwrap();
    assert!(after.site.not_after() > before.site.not_after());
    assert!(after.site.accept(&before.host, now()).is_ok());
    assert_eq!(age_advice(&after, now()), None);
    let late = after.site.not_after().minus(DAY);
    assert!(age_advice(&before, late).unwrap().contains("clock says"));
}

#[test]
fn a_removal_is_learned_from_anybody_and_from_nobody_s_invention() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = two(&root, now());
    let removal = a.remove(&host("c")).unwrap().unwrap();
    let says = |removals: &[Removal]| Gossip { removals: removals.to_vec(), hosts: Vec::new() };
    let evil = Authority::generate("evil", now()).unwrap();
    let invented = evil.remove(&host("a"), now()).unwrap();
    assert!(!b.learn(says(&[invented])).unwrap());
    assert!(b.learn(says(std::slice::from_ref(&removal))).unwrap());
    assert!(!b.learn(says(std::slice::from_ref(&removal))).unwrap(), "known");
    let site = b.identity().unwrap().unwrap().site;
    assert!(site.removed(&host("c")).is_some() && site.removed(&host("a")).is_none());
    // A host that has not the CA removes for itself alone.
    assert!(b.remove(&host("a")).unwrap().is_none());
    assert!(b.identity().unwrap().unwrap().site.removed(&host("a")).is_some());
    assert_eq!(b.roster().unwrap().removals.len(), 1);
}

#[test]
fn invitations_are_few_and_named_when_they_are_over() {
    let root = tempfile::tempdir().unwrap();
    let a = files(&root, "a");
    a.init(&host("a"), None).unwrap();
    let (_, expires) = a.invite("127.0.0.1:1", Duration::from_mins(1)).unwrap();
    assert!(expires > now());
    let over = Secret::generate().unwrap();
    let authority = a.authority().unwrap().unwrap();
    let at = |end| Invitation::new("127.0.0.1:1", authority.fingerprint(), over.clone(), end);
    let offer = at(now().minus(DAY / 2)).unwrap().offer();
    Files::write(&a.state.join("invitations.json"), &vec![offer]).unwrap();
    let key = HostKey::generate().unwrap();
    let request = key.request_pem(&host("b")).unwrap();
    let refused = a.redeem(&over, &host("b"), &request).unwrap_err();
    assert!(refused.to_string().contains("ran out on"), "{refused}");
    let made = (0..1000).take_while(|_| a.invite("127.0.0.1:1", DAY).is_ok()).count();
    assert!(made > 10 && made < 1000, "{made}");
}
