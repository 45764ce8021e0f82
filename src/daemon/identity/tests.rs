use std::os::unix::fs::PermissionsExt;

use super::*;

fn home() -> (tempfile::TempDir, Dirs) {
    let home = tempfile::tempdir().unwrap();
    let dirs = Dirs::below(home.path());
    (home, dirs)
}

#[test]
fn the_first_host_is_its_own_ca_and_only_once() {
    let (_home, dirs) = home();
    assert!(Loaded::read(&dirs, &Settings::default()).unwrap().is_none());
    let made = init(&dirs, Some("h1"), None).unwrap();
    assert!(made.ca && made.name == "h1");
    let first = Loaded::read(&dirs, &Settings::default()).unwrap().unwrap();
    assert_eq!(init(&dirs, Some("h1"), None).unwrap(), made);
    let again = Loaded::read(&dirs, &Settings::default()).unwrap().unwrap();
    assert_eq!(first.identity.fingerprint(), again.identity.fingerprint());
    let other = init(&dirs, Some("h2"), None).unwrap_err();
    assert_eq!(other.0.code, ErrorCode::WrongState);
    for secret in ["host.key", "ca.key"] {
        let mode = std::fs::metadata(dirs.config.join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    assert_eq!(init(&dirs, Some("no host"), None).unwrap_err().0.code, ErrorCode::Usage);
}

#[test]
fn a_ca_of_the_users_own_is_taken() {
    let (home, dirs) = home();
    let authority = Authority::generate("corporate", now()).unwrap();
    let (certificate, key) = (home.path().join("c"), home.path().join("k"));
    std::fs::write(&certificate, authority.certificate_pem()).unwrap();
    std::fs::write(&key, authority.key_pem()).unwrap();
    let own = OwnAuthority { certificate: &certificate, key: &key };
    init(&dirs, Some("h1"), Some(own)).unwrap();
    let loaded = Loaded::read(&dirs, &Settings::default()).unwrap().unwrap();
    assert!(loaded.site.fingerprints().any(|print| print == authority.fingerprint()));
    let (_other, elsewhere) = self::home();
    let swapped = OwnAuthority { certificate: &key, key: &certificate };
    assert_eq!(init(&elsewhere, Some("h1"), Some(swapped)).unwrap_err().0.code, ErrorCode::File);
    assert!(Loaded::read(&elsewhere, &Settings::default()).unwrap().is_none());
}

#[test]
fn an_invitation_is_good_once_and_for_one_request() {
    let (_home, dirs) = home();
    init(&dirs, Some("h1"), None).unwrap();
    let loaded = Loaded::read(&dirs, &Settings::default()).unwrap().unwrap();
    let later = now().plus(Duration::from_mins(5));
    assert!(invite(&dirs, &loaded, "nowhere", later).is_err());
    let invitation = invite(&dirs, &loaded, "h1:7420", later).unwrap();
    let secret = hex::encode(&invitation.secret().bytes());
    let h2: HostName = "h2".parse().unwrap();
    let request = HostKey::generate().unwrap().request_pem(&h2).unwrap();
    let redeem = |secret: &str, request: &str| redeem(&dirs, &loaded, secret, request, &h2);

    assert!(redeem(&"0".repeat(32), &request).is_err(), "another secret");
    assert!(redeem("zz", &request).is_err());
    assert!(redeem(&secret, "no request").is_err());
    redeem(&secret, &request).unwrap();
    let again = redeem(&secret, &request).unwrap_err();
    assert!(again.0.message.contains("used already"), "{again}");

    let over = invite(&dirs, &loaded, "h1:7420", Moment(5)).unwrap();
    let over = redeem(&hex::encode(&over.secret().bytes()), &request).unwrap_err();
    assert!(over.0.message.contains("ran out"), "{over}");
    let own = invite(&dirs, &loaded, "h1:7420", later).unwrap();
    let own_secret = hex::encode(&own.secret().bytes());
    let h1 = loaded.name().clone();
    let request = HostKey::generate().unwrap().request_pem(&h1).unwrap();
    assert!(super::redeem(&dirs, &loaded, &own_secret, &request, &h1).is_err());
}

#[test]
fn a_renewed_certificate_must_fit() {
    let (_home, dirs) = home();
    init(&dirs, Some("h1"), None).unwrap();
    let loaded = Loaded::read(&dirs, &Settings::default()).unwrap().unwrap();
    let request = renewal_request(&dirs, &loaded).unwrap();
    let other: HostName = "h2".parse().unwrap();
    assert!(sign_renewal(&loaded, &request, &other).is_err());
    let chain = sign_renewal(&loaded, &request, loaded.name()).unwrap();
    // It ends in the same second or one later.
    match put_renewed(&dirs, &loaded, &chain) {
        Ok(()) => assert!(Loaded::read(&dirs, &Settings::default()).unwrap().is_some()),
        Err(e) => assert!(e.0.message.contains("no later"), "{e}"),
    }
    let foreign = HostKey::generate().unwrap().request_pem(loaded.name()).unwrap();
    let foreign = sign_renewal(&loaded, &foreign, loaded.name()).unwrap();
    assert!(put_renewed(&dirs, &loaded, &foreign).is_err(), "another key");
    let error = join(&dirs, "migrate-xyz", None).unwrap_err();
    assert_eq!(error.0.code, ErrorCode::Usage);
}
