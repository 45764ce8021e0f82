use super::*;
use crate::transport::identity::{Invitation, Right, Rights, invitation::Secret};
use bytes::Bytes;

/// What both ends of one attempt saw.
struct Attempt {
    dialled: Result<Session<crate::transport::identity::verify::Peer>, ConnectError>,
    accepted: Result<Accepted, ConnectError>,
}

/// `dialler` wants to talk to a host called `wanted`; `acceptor` is at that address.
async fn attempt(
    dialler: (Arc<HostIdentity>, Arc<Site>),
    wanted: &str,
    acceptor: (Arc<HostIdentity>, Arc<Site>),
) -> Attempt {
    let any = SocketAddr::new(LOCAL, 0);
    let settings = Settings::default();
    let mut there = HostEndpoint::bind(any, acceptor.0, acceptor.1, settings.clone()).unwrap();
    let here = HostEndpoint::bind(any, dialler.0, dialler.1, settings).unwrap();
    let address = there.local_addr().unwrap();
    let wanted = name(wanted);
    let (dialled, accepted) = tokio::join!(here.dialler().dial(address, &wanted), there.accept());
    Attempt { dialled, accepted: accepted.unwrap() }
}

/// Checks that the one end refused with `code`, and that the other heard the same words.
fn check(refuser: &ConnectError, refused: &ConnectError, code: &str, words: &[&str]) {
    let ConnectError::Refused { refusal, .. } = refuser else { panic!("{refuser}") };
    let ConnectError::RefusedByPeer { heard, .. } = refused else { panic!("{refused}") };
    assert_eq!((refusal.code(), heard.code.as_str()), (code, code));
    assert_eq!(refusal.to_string(), heard.text);
    for word in words {
        assert!(heard.text.contains(word), "`{word}` is not in: {}", heard.text);
    }
}

#[test]
fn hosts_of_one_site_meet() {
    run(async {
        let ca = Authority::generate("test", now()).unwrap();
        let mut hosts = Hosts::default();
        hosts.rights.insert(name("host1"), Rights::NONE.with(Right::Observe));
        let site = site(&ca, hosts);
        let host1 = (identity(&ca, "host1", now()), Arc::clone(&site));
        let host2 = (identity(&ca, "host2", now()), site);
        let met = attempt(host1, "host2", host2).await;
        let mut here = met.dialled.unwrap();
        let Accepted::Host(mut there) = met.accepted.unwrap() else { panic!() };
        assert_eq!((here.peer.name, there.peer.name), (name("host2"), name("host1")));
        assert!(there.peer.rights.has(Right::Observe) && !there.peer.rights.has(Right::Send));
        assert_eq!(here.peer.rights, Rights::usual());
        here.control.sender.send(Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(there.control.receiver.recv().await.unwrap().unwrap(), &b"hello"[..]);
        there.control.sender.send(Bytes::from_static(b"there")).await.unwrap();
        assert_eq!(here.control.receiver.recv().await.unwrap().unwrap(), &b"there"[..]);
    });
}

#[test]
fn a_dialler_with_a_bad_certificate_is_refused_with_the_cause() {
    run(async {
        let ca = Authority::generate("test", now()).unwrap();
        let other = Authority::generate("other", now()).unwrap();
        let good = identity(&ca, "host1", now());
        let plain = site(&ca, Hosts::default());
        let acceptor = (Arc::clone(&good), Arc::clone(&plain));

        let expired = identity(&ca, "host2", now().minus(DAY * 100));
        let met = attempt((expired, Arc::clone(&plain)), "host1", acceptor.clone()).await;
        let (refused, refuser) = (met.dialled.unwrap_err(), met.accepted.unwrap_err());
        check(&refuser, &refused, "expired", &["host2 expired on 20", "clock", "timedatectl"]);

        let early = identity(&ca, "host2", now().plus(DAY));
        let met = attempt((early, Arc::clone(&plain)), "host1", acceptor.clone()).await;
        let (refused, refuser) = (met.dialled.unwrap_err(), met.accepted.unwrap_err());
        check(&refuser, &refused, "not-yet-valid", &["host2 is valid from", "clocks is wrong"]);

        let stranger = identity(&other, "host2", now());
        let met = attempt((stranger, Arc::clone(&plain)), "host1", acceptor.clone()).await;
        let (refused, refuser) = (met.dialled.unwrap_err(), met.accepted.unwrap_err());
        let print = ca.fingerprint().short();
        check(&refuser, &refused, "unknown-ca", &["host2", &print, "migrate host join"]);

        let mut hosts = Hosts::default();
        hosts.removed.insert(name("host2"), now());
        let removed = identity(&ca, "host2", now().minus(DAY));
        let met = attempt((removed, plain), "host1", (good, site(&ca, hosts))).await;
        let (refused, refuser) = (met.dialled.unwrap_err(), met.accepted.unwrap_err());
        check(&refuser, &refused, "removed", &["host2 was removed", "migrate host invite"]);
    });
}

#[test]
fn a_listener_with_a_bad_certificate_is_refused_with_the_cause() {
    run(async {
        let ca = Authority::generate("test", now()).unwrap();
        let other = Authority::generate("other", now()).unwrap();
        let plain = site(&ca, Hosts::default());
        let dialler = (identity(&ca, "host1", now()), Arc::clone(&plain));
        for (at_address, code, words) in [
            (identity(&ca, "host3", now()), "wrong-name", "expected host2, but"),
            (identity(&ca, "host2", now().minus(DAY * 100)), "expired", "host2 expired on"),
            (identity(&ca, "host2", now().plus(DAY)), "not-yet-valid", "valid from"),
            (identity(&other, "host2", now()), "unknown-ca", "not signed by the CA"),
        ] {
            let acceptor = (at_address, Arc::clone(&plain));
            let met = attempt(dialler.clone(), "host2", acceptor).await;
            let (refuser, refused) = (met.dialled.unwrap_err(), met.accepted.unwrap_err());
            check(&refuser, &refused, code, &[words]);
        }
    });
}

#[test]
fn without_a_certificate_there_is_only_joining() {
    run(async {
        let ca = Authority::generate("test", now()).unwrap();
        let any = SocketAddr::new(LOCAL, 0);
        let settings = Settings::default();
        let host1 = identity(&ca, "host1", now());
        let site = site(&ca, Hosts::default());
        let mut there = HostEndpoint::bind(any, host1, site, settings.clone()).unwrap();
        let address = there.local_addr().unwrap();

        // Somebody who pretends to be a host.
        let policy = crate::transport::identity::verify::Policy::Invited(ca.fingerprint().into());
        let keeper =
            crate::transport::identity::verify::Doorkeeper::strict(policy, tls::algorithms());
        let tls = tls::client(tls::Own::Nothing, keeper, tls::HOSTS).unwrap();
        let endpoint = quinn::Endpoint::client(any).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(tls));
        let pretend = async {
            let made = endpoint.connect_with(config, address, "host1.migrate").unwrap().await;
            made.unwrap().closed().await.to_string()
        };
        let (said, accepted) = tokio::join!(pretend, there.accept());
        assert!(said.contains("no-certificate"), "{said}");
        let refused = accepted.unwrap().unwrap_err();
        assert!(refused.to_string().contains("no certificate was shown"), "{refused}");

        // Somebody who was invited: the line, the inviter, the secret, the certificate.
        let expires = now().plus(DAY);
        let secret = Secret::generate().unwrap();
        let line = Invitation::new(&address.to_string(), ca.fingerprint(), secret, expires);
        let (line, offer) = (line.clone().unwrap().to_string(), line.unwrap().offer());
        let invitation: Invitation = line.parse().unwrap();
        invitation.check_time(now()).unwrap();
        let address: SocketAddr = invitation.address().parse().unwrap();
        let key = HostKey::generate().unwrap();
        let joiner = async {
            let mut session =
                dial_to_join(address, invitation.authority(), &settings).await.unwrap();
            assert_eq!(session.peer.name, name("host1"));
            let request = key.request_pem(&name("host2")).unwrap();
            let control = &mut session.control;
            control.sender.send(invitation.secret().bytes().to_vec().into()).await.unwrap();
            control.sender.send(request.into()).await.unwrap();
            let chain = control.receiver.recv().await.unwrap().unwrap();
            let chain = String::from_utf8(chain.to_vec()).unwrap();
            HostIdentity::from_pem(&key.pem(), &chain).unwrap()
        };
        let host = async {
            let Some(Ok(Accepted::Joining(mut session))) = there.accept().await else { panic!() };
            let control = &mut session.control;
            let secret = control.receiver.recv().await.unwrap().unwrap();
            let secret: [u8; 16] = secret[..].try_into().unwrap();
            offer.redeem(&secret.into(), now()).unwrap();
            let request = control.receiver.recv().await.unwrap().unwrap();
            let request = String::from_utf8(request.to_vec()).unwrap();
            let chain = ca.sign(&request, &name("host2"), now()).unwrap();
            control.sender.send(chain.into()).await.unwrap();
            session.handle.ended().await;
        };
        let (identity, ()) = tokio::join!(joiner, host);
        assert_eq!(identity.name(), &name("host2"));
    });
}

#[test]
fn an_invited_host_notices_somebody_else_at_the_address() {
    run(async {
        let ca = Authority::generate("test", now()).unwrap();
        let other = Authority::generate("other", now()).unwrap();
        let any = SocketAddr::new(LOCAL, 0);
        let settings = Settings::default();
        let mallory = identity(&other, "host1", now());
        let site = site(&other, Hosts::default());
        let mut there = HostEndpoint::bind(any, mallory, site, settings.clone()).unwrap();
        let address = there.local_addr().unwrap();
        let (joined, accepted) =
            tokio::join!(dial_to_join(address, ca.fingerprint().into(), &settings), there.accept());
        check(&joined.unwrap_err(), &accepted.unwrap().unwrap_err(), "unknown-ca", &["invitation"]);
    });
}

#[test]
fn a_renewed_certificate_and_a_changed_site_take_effect() {
    run(async {
        let ca = Authority::generate("test", now()).unwrap();
        let any = SocketAddr::new(LOCAL, 0);
        let settings = Settings::default();
        let plain = site(&ca, Hosts::default());
        let host1 = identity(&ca, "host1", now());
        let mut there =
            HostEndpoint::bind(any, Arc::clone(&host1), Arc::clone(&plain), settings.clone())
                .unwrap();
        let host2 = identity(&ca, "host2", now());
        let here = HostEndpoint::bind(any, host2, plain, settings).unwrap();
        let address = there.local_addr().unwrap();
        let wanted = name("host1");
        let (first, _) = tokio::join!(here.dialler().dial(address, &wanted), there.accept());
        first.unwrap();
        let mut hosts = Hosts::default();
        hosts.removed.insert(name("host2"), now().plus(DAY));
        there.replace(host1, site(&ca, hosts));
        let (second, _) = tokio::join!(here.dialler().dial(address, &wanted), there.accept());
        let second = second.unwrap_err();
        assert!(
            matches!(&second, ConnectError::RefusedByPeer { heard, .. }
            if heard.code == "removed"),
            "{second}"
        );
        there.close("shutting down").await;
    });
}

#[test]
fn another_service_at_the_address_is_named_as_such() {
    run(async {
        let ca = Authority::generate("test", now()).unwrap();
        let host1 = identity(&ca, "host1", now());
        let any = SocketAddr::new(LOCAL, 0);
        let site = site(&ca, Hosts::default());
        let there = HostEndpoint::bind(any, host1, site, Settings::default()).unwrap();
        let address = there.local_addr().unwrap();
        let own = Ephemeral::generate().unwrap();
        // A data connection to a control port.
        let dialled =
            dial(&[address; 2], None, &own, own.fingerprint(), &Settings::default()).await;
        let error = dialled.unwrap_err();
        assert_eq!(error, ConnectError::NoCommonProtocol { peer: address });
    });
}

#[test]
fn somebody_without_a_certificate_says_little() {
    run(async {
        let ca = Authority::generate("test", now()).unwrap();
        let host1 = identity(&ca, "host1", now());
        let any = SocketAddr::new(LOCAL, 0);
        let site = site(&ca, Hosts::default());
        let mut there = HostEndpoint::bind(any, host1, site, Settings::default()).unwrap();
        let address = there.local_addr().unwrap();
        let settings = Settings::default();
        let joining = async {
            let session = dial_to_join(address, ca.fingerprint().into(), &settings).await.unwrap();
            session.control.sender.send(vec![7; 1 << 20].into()).await.unwrap();
            session.handle.ended().await
        };
        let host = async {
            let Some(Ok(Accepted::Joining(mut session))) = there.accept().await else { panic!() };
            session.control.receiver.recv().await.unwrap_err().to_string()
        };
        let (_ended, refused) = tokio::join!(joining, host);
        assert!(refused.contains("16384"), "{refused}");
    });
}
