//! A UDP relay that can be cut and healed.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::net::UdpSocket;

pub struct Relay {
    pub address: SocketAddr,
    pub up: Arc<AtomicBool>,
    pub dropped: Arc<AtomicU64>,
}

/// Relays between whoever sends to its address and `target`.
pub async fn start(target: SocketAddr) -> Relay {
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let relay = Relay {
        address: front.local_addr().unwrap(),
        up: Arc::new(AtomicBool::new(true)),
        dropped: Arc::default(),
    };
    let (up, dropped) = (Arc::clone(&relay.up), Arc::clone(&relay.dropped));
    tokio::spawn(async move {
        let (mut one, mut two) = (vec![0; 65536], vec![0; 65536]);
        let mut client = None;
        loop {
            let (socket, bytes, to) = tokio::select! {
                got = front.recv_from(&mut one) => {
                    let (len, from) = got.unwrap();
                    client = Some(from);
                    (&back, &one[..len], target)
                }
                got = back.recv_from(&mut two) => {
                    let (len, _) = got.unwrap();
                    (&front, &two[..len], client.unwrap())
                }
            };
            if up.load(Ordering::SeqCst) {
                let _full = socket.send_to(bytes, to).await;
            } else {
                dropped.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    relay
}
