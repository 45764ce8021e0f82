use super::{relay, *};
use crate::transport::{
    frame::FrameError,
    link::{Close, CloseCode, Ended, SendError},
};
use bytes::Bytes;
use std::sync::atomic::Ordering;

fn frame(n: usize, len: usize) -> Bytes {
    let mut body = n.to_le_bytes().to_vec();
    body.resize(len.max(8), u8::try_from(n % 251).unwrap());
    Bytes::from(body)
}

/// Sends `count` frames of `len` bytes over each lane and checks that they arrive in order.
async fn transfer(source: &mut SourceLink, target: &mut TargetLink, count: usize, len: usize) {
    let senders = source.lanes.drain(..).map(|lane| {
        tokio::spawn(async move {
            for n in 0..count {
                lane.send(frame(n, len)).await.unwrap();
            }
        })
    });
    let senders: Vec<_> = senders.collect();
    let receivers = target.lanes.drain(..).map(|mut lane| {
        tokio::spawn(async move {
            for n in 0..count {
                assert_eq!(lane.recv().await.unwrap(), Some(frame(n, len)));
            }
            assert_eq!(lane.recv().await.unwrap(), None, "the sender was dropped");
        })
    });
    let receivers: Vec<_> = receivers.collect();
    for task in senders.into_iter().chain(receivers) {
        task.await.unwrap();
    }
}

#[test]
fn frames_arrive_in_order_on_every_stream() {
    run(async {
        let (mut source, mut target) = link(2, &Settings::default()).await;
        source.control.sender.send(frame(1, 10)).await.unwrap();
        target.control.sender.send(frame(2, 1 << 20)).await.unwrap();
        source.urgent.send(frame(3, 4096)).await.unwrap();
        assert_eq!(target.control.receiver.recv().await.unwrap(), Some(frame(1, 10)));
        assert_eq!(source.control.receiver.recv().await.unwrap(), Some(frame(2, 1 << 20)));
        assert_eq!(target.urgent.recv().await.unwrap(), Some(frame(3, 4096)));
        transfer(&mut source, &mut target, 200, 64 << 10).await;
        target.handle.close(Close::new(CloseCode::Done, "all here"));
        let Ended::Peer(close) = source.handle.ended().await else { panic!() };
        assert_eq!((close.code, close.reason.as_str()), (CloseCode::Done, "all here"));
        // The last counters come with the end of each connection; the test's clock ends waiting.
        loop {
            let stats = source.handle.stats();
            let frames: Vec<u64> = stats.lanes.iter().map(|lane| lane.frame_bytes).collect();
            if frames == [200 << 16; 2] && stats.sent_bytes() > 400 << 16 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn ipv6_works_too() {
    let six = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
    if std::net::UdpSocket::bind((six, 0)).is_err() {
        eprintln!("SKIPPED: this machine has no IPv6 loopback");
        return;
    }
    run(async {
        let listener = DataListener::bind(six, 0..0, 1).unwrap();
        let addresses = listener.addresses().unwrap();
        let payload = socket::path_payload(addresses[0], None).unwrap();
        assert_eq!(payload, socket::MAX_PAYLOAD, "the MTU of the loopback interface");
        let settings = Settings { payload, ..Settings::default() };
        let (mut source, mut target) = link_to(listener, &addresses, &settings).await;
        transfer(&mut source, &mut target, 10, 64 << 10).await;
    });
}

#[test]
fn a_range_of_ports_that_is_too_small_is_said() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = DataListener::bind(LOCAL, port..port + 1, 1).unwrap_err().to_string();
    assert!(error.contains("data_ports"), "{error}");
}

#[test]
fn large_datagrams_are_found_and_not_lost() {
    // Ten segments of 8952 bytes do not fit a UDP datagram: without the cap a fifth is lost and
    // the MTU falls back to 1200.
    for payload in [8952, 65_000] {
        run(async {
            let settings = Settings { payload, ..Settings::default() };
            let (mut source, mut target) = link(1, &settings).await;
            transfer(&mut source, &mut target, 400, 128 << 10).await;
            source.handle.close(Close::new(CloseCode::Done, ""));
            // The last counters come with the end of the connection's thread.
            target.handle.ended().await;
            let lane = loop {
                let lane = source.handle.stats().lanes[0];
                if lane.frame_bytes == 400 << 17 && lane.mtu != 0 {
                    break lane;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            assert!(lane.mtu > payload - 100, "{lane:?}");
            assert!(lane.lost_packets * 10 < lane.sent_packets, "{lane:?}");
        });
    }
}

#[test]
fn a_slow_receiver_holds_the_sender_back() {
    run(async {
        let (source, mut target) = link(1, &Settings::default()).await;
        let lane = &source.lanes[0];
        let mut sent = 0;
        while let Ok(done) =
            tokio::time::timeout(Duration::from_secs(1), lane.send(frame(sent, 256 << 10))).await
        {
            done.unwrap();
            sent += 1;
        }
        // Two queues of 4 MiB, the send window, and frames in hand.
        assert!(sent <= 64, "{sent} frames of 256 KiB are in memory");
        assert_eq!(source.handle.has_ended(), None);
        for n in 0..sent {
            assert_eq!(target.lanes[0].recv().await.unwrap(), Some(frame(n, 256 << 10)));
        }
        // Control is not in the queue behind it.
        source.control.sender.send(frame(7, 8)).await.unwrap();
        assert_eq!(target.control.receiver.recv().await.unwrap(), Some(frame(7, 8)));
    });
}

#[test]
fn frames_that_are_not_allowed_do_not_leave() {
    run(async {
        let (source, _target) = link(1, &Settings::default()).await;
        let limit = source.lanes[0].limit();
        let sent = source.lanes[0].send(Bytes::from(vec![1; limit + 1])).await;
        let error = FrameError::TooLong { len: limit + 1, limit };
        assert_eq!(sent, Err(SendError::Frame(error)));
        assert_eq!(source.handle.has_ended(), None);
    });
}

#[test]
fn plain_threads_can_send_and_receive() {
    let (source, target) = run(link(1, &Settings::default()));
    let sender = std::thread::spawn(move || {
        for n in 0..50 {
            source.lanes[0].blocking_send(frame(n, 5000)).unwrap();
        }
        source
    });
    let mut target = target;
    for n in 0..50 {
        assert_eq!(target.lanes[0].blocking_recv().unwrap(), Some(frame(n, 5000)));
    }
    drop(sender.join().unwrap());
}

#[test]
fn somebody_else_is_refused_and_the_right_one_still_gets_in() {
    run(async {
        let settings = Settings::default();
        let listener = DataListener::bind(LOCAL, 0..0, 1).unwrap();
        let addresses = listener.addresses().unwrap();
        let [ours, theirs, mallory] = [(); 3].map(|()| Ephemeral::generate().unwrap());
        let dialler = async {
            let refused = dial(&addresses, None, &mallory, theirs.fingerprint(), &settings).await;
            let ConnectError::RefusedByPeer { heard, .. } = refused.unwrap_err() else { panic!() };
            assert_eq!(heard.code, "wrong-fingerprint");
            assert!(heard.text.contains(&ours.fingerprint().short()), "{heard}");
            assert!(heard.text.contains(&mallory.fingerprint().short()), "{heard}");
            dial(&addresses, None, &ours, theirs.fingerprint(), &settings).await.unwrap()
        };
        let accept = listener.accept(&theirs, ours.fingerprint(), &settings, PATIENCE);
        let ((mut source, _), accepted) = tokio::join!(dialler, accept);
        transfer(&mut source, &mut accepted.unwrap(), 3, 100).await;
    });
}

#[test]
fn both_ends_know_why_when_the_listener_is_somebody_else() {
    run(async {
        let settings = Settings::default();
        let listener = DataListener::bind(LOCAL, 0..0, 1).unwrap();
        let addresses = listener.addresses().unwrap();
        let [ours, theirs, mallory] = [(); 3].map(|()| Ephemeral::generate().unwrap());
        let (dialled, accepted) = tokio::join!(
            dial(&addresses, None, &ours, theirs.fingerprint(), &settings),
            listener.accept(&mallory, ours.fingerprint(), &settings, Duration::from_secs(1)),
        );
        let dialled = dialled.unwrap_err();
        assert!(
            matches!(&dialled, ConnectError::Refused { refusal, .. }
            if refusal.code() == "wrong-fingerprint"),
            "{dialled}"
        );
        let ConnectError::NobodyCame { last: Some(last) } = accepted.unwrap_err() else { panic!() };
        assert!(
            matches!(&*last, ConnectError::RefusedByPeer { heard, .. }
            if heard.code == "wrong-fingerprint"),
            "{last}"
        );
    });
}

#[test]
fn nobody_there_is_said_with_the_port() {
    run(async {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap();
        let own = Ephemeral::generate().unwrap();
        let settings = Settings { connect: Duration::from_millis(300), ..Settings::default() };
        let error = dial(&[address; 2], None, &own, own.fingerprint(), &settings).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&format!("port {}", address.port())), "{error}");
    });
}

#[test]
fn a_short_cut_is_survived_and_a_long_one_is_not() {
    run(async {
        let listener = DataListener::bind(LOCAL, 0..0, 1).unwrap();
        let real = listener.addresses().unwrap();
        let relays = [relay::start(real[0]).await, relay::start(real[1]).await];
        let addresses = [relays[0].address, relays[1].address];
        let settings = Settings { idle: Duration::from_secs(5), ..Settings::default() };
        let (source, mut target) = link_to(listener, &addresses, &settings).await;
        let lane = &source.lanes[0];
        for n in 0..20 {
            if n == 10 {
                relays[0].up.store(false, Ordering::SeqCst);
                relays[1].up.store(false, Ordering::SeqCst);
            }
            lane.send(frame(n, 100_000)).await.unwrap();
        }
        while relays[1].dropped.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        relays[0].up.store(true, Ordering::SeqCst);
        relays[1].up.store(true, Ordering::SeqCst);
        for n in 0..20 {
            assert_eq!(target.lanes[0].recv().await.unwrap(), Some(frame(n, 100_000)));
        }
        assert_eq!((source.handle.has_ended(), target.handle.has_ended()), (None, None));
        relays[0].up.store(false, Ordering::SeqCst);
        relays[1].up.store(false, Ordering::SeqCst);
        for ended in [source.handle.ended().await, target.handle.ended().await] {
            assert!(matches!(&ended, Ended::Lost(why) if why.contains("nothing was heard")));
        }
        assert!(matches!(target.lanes[0].recv().await, Err(Ended::Lost(_))));
        assert!(matches!(lane.send(frame(0, 8)).await, Err(SendError::Ended(Ended::Lost(_)))));
    });
}

#[test]
fn a_dropped_link_ends_the_peers() {
    run(async {
        let (source, target) = link(2, &Settings::default()).await;
        drop(target);
        assert!(matches!(source.handle.ended().await, Ended::Peer(_)));
        assert!(source.control.sender.send(frame(1, 8)).await.is_err());
    });
}

/// A peer with the right certificate that writes `bytes` where frames should be.
async fn hostile(bytes: Vec<u8>) -> (Ended, String) {
    let settings = Settings::default();
    let listener = DataListener::bind(LOCAL, 0..0, 1).unwrap();
    let addresses = listener.addresses().unwrap();
    let (ours, theirs) = (Ephemeral::generate().unwrap(), Ephemeral::generate().unwrap());
    let connect = async |address: SocketAddr, opening: stream::Role| {
        let policy = crate::transport::identity::verify::Policy::Pinned(theirs.fingerprint());
        let doorkeeper =
            crate::transport::identity::verify::Doorkeeper::strict(policy, tls::algorithms());
        let tls = tls::client(tls::Own::Ephemeral(&ours), doorkeeper, tls::DATA).unwrap();
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(tls));
        let connection =
            endpoint.connect_with(config, address, "data.migrate").unwrap().await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&opening.opening()).await.unwrap();
        stream::expect_welcome(&mut recv).await.unwrap();
        (endpoint, connection, send)
    };
    let dialler = async {
        let control = connect(addresses[0], stream::Role::Control { lanes: 1 }).await;
        let mut urgent = control.1.open_uni().await.unwrap();
        urgent.write_all(&stream::Role::Urgent.opening()).await.unwrap();
        let mut bulk = connect(addresses[1], stream::Role::Bulk { index: 0, lanes: 1 }).await;
        bulk.2.write_all(&bytes).await.unwrap();
        let _peer_may_be_faster = bulk.2.finish();
        let closed = bulk.1.closed().await.to_string();
        drop((control, urgent));
        closed
    };
    let target = async {
        let accept = listener.accept(&theirs, ours.fingerprint(), &settings, PATIENCE);
        let mut target = accept.await.unwrap();
        while let Ok(Some(frame)) = target.lanes[0].recv().await {
            assert!(frame.len() <= settings.limits.bulk.frame);
        }
        target.handle.ended().await
    };
    let (said, ended) = tokio::join!(dialler, target);
    (ended, said)
}

#[test]
fn hostile_bytes_on_a_stream_end_the_link_and_the_peer_is_told() {
    for (bytes, reason) in [
        (vec![0xff; 64], "a frame of 4294967295 bytes"),
        (vec![0; 64], "an empty frame"),
        (vec![9, 0, 0, 0, 1, 2], "the stream ended inside a frame: 7 bytes are missing"),
        (vec![1, 0, 0, 0, 1, 1], "the stream ended inside a frame: 3 bytes"),
    ] {
        let (ended, said) = run(hostile(bytes));
        assert!(matches!(&ended, Ended::Broken(why) if why.contains(reason)), "{ended}");
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn another_number_of_lanes_is_noticed() {
    run(async {
        let settings = Settings { connect: Duration::from_secs(2), ..Settings::default() };
        let listener = DataListener::bind(LOCAL, 0..0, 2).unwrap();
        let addresses = listener.addresses().unwrap();
        let (ours, theirs) = (Ephemeral::generate().unwrap(), Ephemeral::generate().unwrap());
        let wait = Duration::from_secs(3);
        let (dialled, accepted) = tokio::join!(
            dial(&addresses[..2], None, &ours, theirs.fingerprint(), &settings),
            listener.accept(&theirs, ours.fingerprint(), &settings, wait),
        );
        let dialled = dialled.unwrap_err().to_string();
        assert!(dialled.contains("another number of lanes"), "{dialled}");
        let accepted = accepted.unwrap_err().to_string();
        assert!(accepted.contains("another number of lanes"), "{accepted}");
    });
}

#[test]
fn noise_on_the_port_changes_nothing() {
    run(async {
        let listener = DataListener::bind(LOCAL, 0..0, 1).unwrap();
        let addresses = listener.addresses().unwrap();
        let noise = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for n in 0..500u32 {
            let bytes: Vec<u8> = (0..n % 1300)
                .map(|i| (n.wrapping_mul(2_654_435_761) >> (i % 24)).to_le_bytes()[0])
                .collect();
            noise.send_to(&bytes, addresses[n as usize % 2]).unwrap();
        }
        let (mut source, mut target) = link_to(listener, &addresses, &Settings::default()).await;
        transfer(&mut source, &mut target, 10, 1000).await;
    });
}

#[test]
fn a_budget_is_shared_by_all_sockets() {
    run(async {
        let rate = 20_000_000;
        let limiter = Arc::new(Limiter::new(Some(rate)));
        let settings = Settings { limiter: Some(limiter), ..Settings::default() };
        let (mut source, mut target) = link(2, &settings).await;
        let start = std::time::Instant::now();
        transfer(&mut source, &mut target, 80, 64 << 10).await;
        // One-sided, so a slow machine cannot break it: what arrived cannot have been sent
        // faster than the budget allows, with its depth of 40 ms and a batch on each socket.
        let bytes = 2.0 * 80.0 * 65_536.0 - 0.06 * 20e6 - 2.0 * 14_520.0;
        let least = bytes / 20e6;
        let took = start.elapsed().as_secs_f64();
        assert!(took >= least, "{took} s, at least {least} s are needed at {rate} B/s");
    });
}
