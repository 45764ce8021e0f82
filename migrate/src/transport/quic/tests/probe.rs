use super::*;

fn settings() -> Settings {
    Settings { payload: 9000, ..Settings::default() }
}

#[test]
fn every_port_the_largest_datagram_and_the_speed() {
    run(async {
        let (ours, theirs) = (Ephemeral::generate().unwrap(), Ephemeral::generate().unwrap());
        let taken = std::net::UdpSocket::bind((LOCAL, 0)).unwrap();
        let taken = (taken.local_addr().unwrap().port(), taken);
        let listener = ProbeListener::bind(LOCAL, [0, 0, taken.0]).unwrap();
        assert_eq!(listener.busy(), [taken.0]);
        let ports = listener.ports();
        assert_eq!(ports.len(), 2);
        let (print, settings) = (theirs.fingerprint(), settings());
        let serve = listener.serve(&theirs, ours.fingerprint(), &settings, PATIENCE);
        let probes = async {
            // Somebody else does not use the port up.
            let thief = Ephemeral::generate().unwrap();
            let first = SocketAddr::new(LOCAL, ports[0]);
            let refused = probe(first, None, &thief, print, &settings, None).await.unwrap_err();
            assert!(matches!(refused, ConnectError::RefusedByPeer { .. }), "{refused}");
            let sample = Some(Duration::from_millis(200));
            let found = probe(first, None, &ours, print, &settings, sample).await.unwrap();
            assert_eq!(found.payload, 9000);
            assert!(found.arrived > 0 && found.round_trip > Duration::ZERO);
            let second = SocketAddr::new(LOCAL, ports[1]);
            let found = probe(second, None, &ours, print, &settings, None).await.unwrap();
            assert_eq!(found.arrived, 0);
        };
        tokio::join!(serve, probes);
        // All ports are free again.
        for port in ports {
            std::net::UdpSocket::bind((LOCAL, port)).unwrap();
        }
    });
}

#[test]
fn somebody_else_at_the_port_is_noticed() {
    run(async {
        let (ours, theirs) = (Ephemeral::generate().unwrap(), Ephemeral::generate().unwrap());
        let listener = ProbeListener::bind(LOCAL, [0]).unwrap();
        let address = SocketAddr::new(LOCAL, listener.ports()[0]);
        let settings = settings();
        let other = Ephemeral::generate().unwrap().fingerprint();
        let probe = probe(address, None, &ours, other, &settings, None);
        let serve =
            listener.serve(&theirs, ours.fingerprint(), &settings, Duration::from_millis(500));
        let (probed, ()) = tokio::join!(probe, serve);
        let ConnectError::Refused { refusal, .. } = probed.unwrap_err() else { panic!() };
        assert_eq!(refusal.code(), "wrong-fingerprint");
    });
}
